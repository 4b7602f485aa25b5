"""Bidirectional distillation (BD)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from kd_jax.base import KD, Lists
from kd_jax.losses.lists import draw_without_replacement, rank_in

_LEAST = 1e-9  # Weight of items that are not to be drawn, unless there are too few others.


def bd(sampled: int = 20, temperature: float = 5.0, sharpness: float = 0.01, depth: int = 500, every: int = 10) -> KD:
  """Bidirectional distillation (BD): Kweon, Kang, Yu, WWW 2021, https://arxiv.org/abs/2106.02870.

  sum over sampled items of BCE(sigmoid(own score), sigmoid(other's score / temperature)), in both directions
  with --peer=MODEL and a weight of 0.5: student and peer learn together and from each other. Items are drawn
  without replacement from the other's top `depth` with p ~ tanh(max(sharpness (own rank - other's rank), 0)):
  what the other ranks higher is learned from it.

  Args:
    sampled: items per user, drawn afresh every epoch. The paper ties it to the user's interactions.
    temperature: softens the other's probability.
    sharpness: how large a difference of ranks saturates.
    depth: of both lists; what is not in a list has rank `depth`, and tanh(depth sharpness) = 1 - 9e-5.
    every: epochs between two rankings.

  Departs from the paper: the same draw in both directions, while the large network's is
  exp(0.0001 (own rank - other's rank)), nearly uniform over all items, so that items outside of the other's
  top `depth` are never drawn; no warm-up of 1,000 epochs; the other's scores are those of the epoch's begin.
  The sign of rank differences is the paper's; the authors' notebook ranks from the worst item up.
  """
  def sample(rng, view):
    gap = rank_in(view.student.items, view.teacher.items) - jnp.arange(depth)
    weight = jnp.maximum(jnp.tanh(sharpness * gap), _LEAST)
    return {"items": view.teacher.items[draw_without_replacement(rng, jnp.log(weight), sampled)]}

  def loss(student, teacher, batch):
    target = jax.nn.sigmoid(teacher.scores / temperature)
    return jnp.sum(optax.sigmoid_binary_cross_entropy(student.scores, target), axis=1)

  return KD(loss, Lists(teacher=depth, student=depth, every=every), sample)
