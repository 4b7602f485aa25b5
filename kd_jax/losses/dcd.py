"""Dual correction strategy for distillation (DCD)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kd_jax.base import KD, InputError, Lists
from kd_jax.losses._lists import draw_without_replacement, plackett_luce, rank_in

SEARCH = "weight=log(1e-3, 1); k=20|40|100; temperature=log(1, 100)"

_LEAST = 1e-5  # The smallest weight of an item, so that k items can always be drawn.


def dcd(side: str = "users", k: int = 40, depth: int = 200, temperature: float = 10.0, every: int = 10) -> KD:
  """Dual correction strategy for distillation (DCD): Lee, Kim, CIKM 2021, https://arxiv.org/abs/2109.03459.

  The list-wise likelihood of k items that the student underestimates, in the teacher's order, each before k items
  that the student overestimates. Both are sampled without replacement from the teacher's top `depth` of unseen
  items, with p ~ max(tanh(max(+-(student's rank - teacher's rank) / temperature, 0)), 1e-5): + for underestimated
  items, - for overestimated items.

  One call is one side. The paper's loss adds both sides to the loss of RRD: rrd() + dcd() + dcd(side='items').

  Args:
    side: "users" ranks items for every user (L_UCD), "items" ranks users for every item (L_ICD).
    k: number of underestimated items, and of overestimated items.
    depth: length of the teacher's list from which items are sampled.
    temperature: the scale of rank differences at which p saturates.
    every: epochs between two rankings by the student, which are the most expensive part; items are sampled again
      every epoch. If there are more items than users, side="items" costs several times as much as side="users".

  Departs from the paper: the student's list has length depth + 10 temperature, and items outside it have that rank;
  since tanh(10) = 1 - 4e-9, no weight changes. Departs from the public code of RCE-KD, which has the user side only:
  that code has training items in the student's ranking but not in the teacher's, keeps underestimated items in the
  order in which they were drawn, has k = 100 and depth = 500, and ranks with the student every epoch.
  """
  if side not in ("users", "items"):
    raise InputError(f"side={side!r}: choose from users, items")
  longest = depth + round(10 * temperature)

  def sample(rng, view):
    gap = (rank_in(view.student.items, view.teacher.items) - jnp.arange(depth)) / temperature
    weight = jnp.maximum(jnp.tanh(jnp.maximum(jnp.stack([gap, -gap]), 0)), _LEAST)
    under, over = jax.vmap(draw_without_replacement, (0, 0, None))(jax.random.split(rng), jnp.log(weight), k)
    return {"items": view.teacher.items[jnp.concatenate([jnp.sort(under), over])]}

  def loss(student, teacher, batch):
    return plackett_luce(student.scores[:, :k], student.scores[:, k:])

  return KD(loss, Lists(teacher=depth, student=longest, every=every), sample, teacher_scores=False, rows=side)
