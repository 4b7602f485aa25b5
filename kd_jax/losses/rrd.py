"""Relaxed ranking distillation (RRD)."""

from __future__ import annotations

import jax.numpy as jnp

from kd_jax.base import KD, InputError, Lists
from kd_jax.losses._lists import draw_without_replacement, plackett_luce

SEARCH = "weight=log(1e-4, 1); k=20|40|100; uninteresting=20|40|100|200; temperature=log(1, 100)"


def rrd(k: int = 40, uninteresting: int = 40, temperature: float = 10.0, depth: int = 500) -> KD:
  """Relaxed ranking distillation (RRD): Kang, Hwang, Kweon, Yu, CIKM 2020, https://arxiv.org/abs/2012.04357.

  The list-wise likelihood of k interesting items in the teacher's order, each before all uninteresting items. The order
  of uninteresting items does not matter. Both are sampled again every epoch.

  Args:
    k: number of interesting items, sampled without replacement from the teacher's top `depth` of unseen items with
      p ~ exp(-rank / temperature) (ranks from 1), then sorted by the teacher's rank.
    uninteresting: number of items sampled uniformly from the items that are neither seen nor in the teacher's top
      `depth`.
    temperature: how fast the sampling probability falls with the rank.
    depth: length of the teacher's list.

  Departs from the paper: uninteresting items are a systematic sample (distinct items, all with the same probability),
  not independent draws.
  """
  if k > depth:
    raise InputError(f"k={k} is more than depth={depth}")

  def sample(rng, view):
    log_weights = -(jnp.arange(depth) + 1) / temperature
    ranks = jnp.sort(draw_without_replacement(rng, log_weights, k))
    return {"items": jnp.concatenate([view.teacher.items[ranks], view.unseen])}

  def loss(student, teacher, batch):
    return plackett_luce(student.scores[:, :k], student.scores[:, k:])

  return KD(loss, Lists(teacher=depth, unseen=uninteresting), sample, teacher_scores=False)
