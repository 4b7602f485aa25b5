"""Dual correction strategy for distillation (DCD)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kd_jax.base import KD, InputError, Lists
from kd_jax.losses._lists import draw_without_replacement, plackett_luce, rank_in

_LEAST = 1e-5  # Least weight of an item in a draw, so that there is always something to draw.


def dcd(side: str = "users", k: int = 40, depth: int = 200, temperature: float = 10.0, every: int = 10) -> KD:
  """Dual correction strategy for distillation (DCD): Lee, Kim, CIKM 2021, https://arxiv.org/abs/2109.03459.

  The list-wise likelihood of k items that the student underestimates, in the teacher's order, each ahead of
  k items that it overestimates. Both are drawn without replacement from the teacher's top `depth` of unseen
  items, with p ~ max(tanh(max(+-(student's rank - teacher's rank) / temperature, 0)), 1e-5).

  One call is one side. The paper's loss adds both to that of RRD: rrd() + dcd() + dcd(side='items').

  Args:
    side: "users" ranks items for every user (L_UCD), "items" ranks users for every item (L_ICD).
    k: items on either side of the likelihood.
    depth: how much of the teacher's list is corrected.
    temperature: how large a difference of ranks saturates.
    every: epochs between two rankings by the student, the dearest part; draws are fresh every epoch. Where items
      outnumber users, the items' side costs several times as much as the users'.

  Departs from the paper: the student's list is depth + 10 temperature long and what is not in it has that
  rank; as tanh(10) = 1 - 4e-9, no weight changes. Departs from the public code of RCE-KD, which has the user
  side only: there training items compete in the student's ranking but not in the teacher's, underestimated
  items keep the order of the draw, k is 100, depth 500, and the student ranks every epoch.
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
