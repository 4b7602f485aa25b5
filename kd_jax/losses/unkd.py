"""Unbiased knowledge distillation (UnKD)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kd_jax.base import KD, Array, Lists

SEARCH = "weight=log(1e-3, 10); groups=2|4|8; temperature=log(1, 100)"

_TRIES = 8  # Draws per pair. With 20 or more items, p(every draw is one item twice) < 1e-12.


def unkd(groups: int = 4, pairs: int = 30, temperature: float = 20.0, depth: int = 900) -> KD:
  """Unbiased knowledge distillation (UnKD): Chen, Chen, et al., WSDM 2023, https://arxiv.org/abs/2211.14729.

  mean over pairs of -log sigmoid(better - worse). Items are divided into groups of equal total popularity, and pairs
  are spread evenly over the groups. Both items of a pair are in one group. They are drawn from the teacher's ranking of
  the group's unseen items with p ~ exp(-rank / temperature), and drawn again if they are the same item. The better item
  is the one that the teacher ranks higher. Differences of the teacher's scores between groups, which popularity
  influences, are not distilled.

  Args:
    groups: number of groups; items without training interactions are in no group.
    pairs: pairs per user, drawn again every epoch.
    temperature: how fast the sampling probability falls with the rank in the group.
    depth: length of the teacher's list, over all groups.

  Departs from the authors' code: the code ranks 1,000 items of each group; here a group has only its items in the
  teacher's top `depth`. If a group has fewer than two items there, its pairs are an item with itself, which adds a
  constant log 2 without gradient. An item belongs to the group that contains the middle of its share of the total
  popularity; the code fills groups one after another. The code rounds up the number of pairs per group, to 32 in all.
  If the first item of a drawn pair is the worse one, the code means to swap the two, but it swaps views of one tensor
  (so does the code of RCE-KD): both become the better item. Half of its pairs are therefore an item with itself, at
  random: they add log 2 and no gradient. Here all pairs count, as in the paper, so the gradient of the code at weight
  w has the same expectation as ours at weight w / 2: weight 1 there is 0.5*unkd().
  """
  def sample(rng, view):
    group = popularity_groups(view.popularity, view.priority, groups)[view.teacher.items]
    ends = jnp.cumsum((group == jnp.arange(groups)[:, None]).reshape(-1))  # [groups * depth]
    ends_of = ends[depth - 1 :: depth]
    size = jnp.diff(ends_of, prepend=0)
    own = jnp.arange(pairs) % groups
    uniform = jax.random.uniform(rng, (_TRIES, 2, pairs))
    # Inverse transform sampling: p ~ exp(-rank / temperature) on ranks 0..size - 1.
    rank = jnp.floor(-temperature * jnp.log1p(uniform * jnp.expm1(-size[own] / temperature))).astype(jnp.int32)
    rank = jnp.clip(rank, 0, jnp.maximum(size[own] - 1, 0))
    chosen = jnp.argmax(rank[:, 0] != rank[:, 1], axis=0)  # the first draw of two distinct items
    rank = jnp.sort(rank[chosen, :, jnp.arange(pairs)].T, axis=0)  # [2, pairs], better item first
    place = jnp.searchsorted(ends, (ends_of - size)[own] + rank + 1) % depth  # index in the teacher's list
    return {"items": view.teacher.items[jnp.where(size[own] > 0, place, 0)].reshape(-1)}

  def loss(student, teacher, batch):
    return -jnp.mean(jax.nn.log_sigmoid(student.scores[:, :pairs] - student.scores[:, pairs:]), axis=1)

  return KD(loss, Lists(teacher=depth), sample, teacher_scores=False)


def popularity_groups(popularity: Array, priority: Array, groups: int) -> Array:
  """The group [I] of every item; 0 is the most popular group, `groups` means popularity 0.

  Of equally popular items, those with a lower priority [I] are nearer to the most popular ones.
  """
  order = jnp.lexsort((priority, -popularity))
  share = popularity[order].astype(jnp.float32)
  middle = (jnp.cumsum(share) - share / 2) / jnp.maximum(jnp.sum(share), 1)
  group = jnp.minimum((middle * groups).astype(jnp.int32), groups - 1)
  return jnp.zeros_like(group).at[order].set(jnp.where(share > 0, group, groups))
