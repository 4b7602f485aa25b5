"""Unbiased knowledge distillation (UnKD)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kd_jax.base import KD, Array, Lists

_TRIES = 8  # A pair is drawn so often; that all are of one item has a probability below 1e-12 (20 and more items).


def unkd(groups: int = 4, pairs: int = 30, temperature: float = 20.0, depth: int = 900) -> KD:
  """Unbiased knowledge distillation (UnKD): Chen, Chen, et al., WSDM 2023, https://arxiv.org/abs/2211.14729.

  mean over pairs of -log sigmoid(better - worse). Items fall into groups of equal total popularity; pairs
  are spread evenly over them; both items of a pair are of one group, drawn from the teacher's ranking of the
  group's unseen items with p ~ exp(-rank / temperature), again if they are the same; the teacher's order says
  which is better. What popularity does to the teacher's scores between groups is not distilled.

  Args:
    groups: number of groups; items without training interactions are in none.
    pairs: pairs per user, drawn afresh every epoch.
    temperature: how fast the probability of being drawn falls with the rank within the group.
    depth: how much of the teacher's list of all groups is used.

  Departs from the authors' code: it ranks 1,000 items of each group; here a group has what the teacher's top
  `depth` holds of it. A group with fewer than two items there gives pairs of an item with itself: a constant
  log 2 without gradient. An item is in the group where the middle of its share of the total popularity
  falls; the code fills groups one after the other. The code rounds pairs per group up, to 32 in all.
  """
  def sample(rng, view):
    group = popularity_groups(view.popularity, groups)[view.teacher.items]
    ends = jnp.cumsum((group == jnp.arange(groups)[:, None]).reshape(-1))  # [groups * depth]
    ends_of = ends[depth - 1 :: depth]
    size = jnp.diff(ends_of, prepend=0)
    own = jnp.arange(pairs) % groups
    uniform = jax.random.uniform(rng, (_TRIES, 2, pairs))
    # The inverse of the distribution function of exp(-rank / temperature) on 0..size - 1.
    rank = jnp.floor(-temperature * jnp.log1p(uniform * jnp.expm1(-size[own] / temperature))).astype(jnp.int32)
    rank = jnp.clip(rank, 0, jnp.maximum(size[own] - 1, 0))
    chosen = jnp.argmax(rank[:, 0] != rank[:, 1], axis=0)  # the first try of two items
    rank = jnp.sort(rank[chosen, :, jnp.arange(pairs)].T, axis=0)  # [2, pairs], the better first
    place = jnp.searchsorted(ends, (ends_of - size)[own] + rank + 1) % depth  # of the group's rank-th item
    return {"items": view.teacher.items[jnp.where(size[own] > 0, place, 0)].reshape(-1)}

  def loss(student, teacher, batch):
    return -jnp.mean(jax.nn.log_sigmoid(student.scores[:, :pairs] - student.scores[:, pairs:]), axis=1)

  return KD(loss, Lists(teacher=depth), sample, teacher_scores=False)


def popularity_groups(popularity: Array, groups: int) -> Array:
  """The group [I] of every item, 0 the most popular; `groups` for items of popularity 0."""
  order = jnp.argsort(-popularity)
  share = popularity[order].astype(jnp.float32)
  middle = (jnp.cumsum(share) - share / 2) / jnp.maximum(jnp.sum(share), 1)
  group = jnp.minimum((middle * groups).astype(jnp.int32), groups - 1)
  return jnp.zeros_like(group).at[order].set(jnp.where(share > 0, group, groups))
