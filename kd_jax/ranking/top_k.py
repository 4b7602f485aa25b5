"""Top k of many scores. All functions order by descending score, and equal scores by ascending priority.

`priority` [I] is a permutation, see `data.order.priority`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Array, Ranked
from kd_jax.data import order


def top_k(scores: Array, priority: Array, k: int) -> Ranked:
  """The top k items of each row of scores [B, I]. If fewer than k scores exceed -inf, the rest is -1 and -inf.

  XLA takes the leftmost of equal scores. Its list is corrected only if it has equal scores, since reading all scores in
  the order of priorities takes longer than the top-k itself.
  """
  scores, size, priority = _comparable(scores), scores.shape[1], jnp.asarray(priority)
  k = min(k, size)
  # Without the barriers, XLA sorts whole rows on CPUs as soon as its list is cut, which takes 50 times as long. With
  # one barrier for both, it aborts if the scores are split over devices.
  best, items = map(jax.lax.optimization_barrier, jax.lax.top_k(scores, min(k + 1, size)))
  tied = (best[:, 1:] == best[:, :-1]) & (best[:, 1:] > -jnp.inf)
  listed = Ranked(items[:, :k], best[:, :k])

  def inside():
    return jax.lax.cond(tied[:, : k - 1].any(), lambda: _reordered(listed, tied[:, : k - 1], priority), lambda: listed)

  # The last item may have the score of the next one, and that of many others.
  items, best = jax.lax.cond(tied[:, k - 1 :].any(), lambda: _of_reordered(scores, priority, k), inside)
  return Ranked(jnp.where(best == -jnp.inf, -1, items).astype(jnp.int32), best)


def _reordered(listed, tied, priority) -> Ranked:
  """Sorts the items of equal score in lists [B, K]; `tied` [B, K - 1] tells whether an item has the score before it."""
  group = jnp.pad(jnp.cumsum(~tied, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))
  return listed._replace(items=jax.lax.sort((group, priority[listed.items], listed.items), num_keys=2)[2])


def _of_reordered(scores, priority, k) -> Ranked:
  """The top k of scores whose columns are in the order of priorities."""
  by_priority = jnp.zeros_like(priority).at[priority].set(jnp.arange(len(priority), dtype=priority.dtype))
  best, places = jax.lax.top_k(scores[:, by_priority], k)
  return Ranked(by_priority[places], best)


def top_k_and_tail(scores: Array, priority: Array, k: int) -> tuple[Ranked, Array]:
  """`top_k`, and the total softmax probability [B] of the items outside of it; 0 if no score exceeds -inf."""
  ranked = top_k(scores, priority, k)
  listed, whole = (jax.nn.logsumexp(x, axis=1) for x in (ranked.scores, scores))
  listed = jnp.where(whole == -jnp.inf, 0, listed - whole)  # a user who has every item has no score above -inf
  return ranked, jnp.clip(-jnp.expm1(listed), 0.0, 1.0)


def places(scores: Array) -> Array:
  """Maps scores to int32 in reverse order: the highest score becomes the smallest integer. NaN comes first."""
  return ~_folded(jax.lax.bitcast_convert_type(_comparable(scores).astype(jnp.float32), jnp.int32))


def top_k_of_places(places: np.ndarray, priority: np.ndarray, k: int) -> Ranked:
  """`top_k` on the host, from the `places` [B, I] of the scores.

  On a CPU, XLA's top-k uses a heap, whose time grows with k: BENCHMARKS.md.
  """
  size = places.shape[1]
  k, unique = min(k, size), priority.astype(np.int64)
  listed, row = np.empty((len(places), k), np.int64), np.empty(size, np.int64)
  for own, best in zip(places, listed, strict=True):
    np.left_shift(own, 32, out=row, casting="unsafe", dtype=np.int64)
    np.bitwise_or(row, unique, out=row)  # (place, priority) in one integer: all differ, and the priority breaks ties
    if k < size:
      row.partition(k)
    best[:] = row[:k]
  listed.sort(axis=1)
  scores = _folded(~(listed >> 32).astype(np.int32)).view(np.float32)
  items = order.inverse(priority)[listed & 0xFFFFFFFF]
  return Ranked(np.where(scores == -np.inf, -1, items).astype(np.int32), scores)


def _folded(bits):
  """Maps the bits of a float32 to an integer with the same order. It is its own inverse."""
  return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _comparable(scores):
  """Replaces -0 by +0 and every NaN by one that sorts first: sorting by bits then gives the order of `top_k`."""
  return jnp.where(jnp.isnan(scores), jnp.nan, jnp.where(scores == 0, 0.0, scores))
