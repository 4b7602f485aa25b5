"""Top k of many scores. All functions order by descending score, and equal scores by ascending index."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Array, Ranked


def top_k(scores: Array, k: int) -> Ranked:
  """The top k items of each row of scores [B, I]. If fewer than k scores exceed -inf, the rest is -1 and -inf."""
  scores = _comparable(scores)
  best, items = jax.lax.top_k(scores, min(k, scores.shape[1]))
  return Ranked(jnp.where(best == -jnp.inf, -1, items).astype(jnp.int32), best)


def top_k_and_tail(scores: Array, k: int) -> tuple[Ranked, Array]:
  """`top_k`, and the total softmax probability [B] of the items outside of it."""
  ranked = top_k(scores, k)
  listed = jax.nn.logsumexp(ranked.scores, axis=1) - jax.nn.logsumexp(scores, axis=1)
  return ranked, jnp.clip(-jnp.expm1(listed), 0.0, 1.0)


def places(scores: Array) -> Array:
  """Maps scores to int32 in reverse order: the highest score becomes the smallest integer. NaN comes first."""
  return ~_folded(jax.lax.bitcast_convert_type(_comparable(scores).astype(jnp.float32), jnp.int32))


def top_k_of_places(places: np.ndarray, k: int) -> Ranked:
  """`top_k` on the host, from the `places` [B, I] of the scores.

  On a CPU, XLA's top-k uses a heap, whose time grows with k: BENCHMARKS.md.
  """
  size = places.shape[1]
  k, items = min(k, size), np.arange(size)
  listed, row = np.empty((len(places), k), np.int64), np.empty(size, np.int64)
  for own, best in zip(places, listed, strict=True):
    np.left_shift(own, 32, out=row, casting="unsafe", dtype=np.int64)
    np.bitwise_or(row, items, out=row)  # (place, item) in one integer: all differ, and the item breaks ties
    if k < size:
      row.partition(k)
    best[:] = row[:k]
  listed.sort(axis=1)
  scores = _folded(~(listed >> 32).astype(np.int32)).view(np.float32)
  return Ranked(np.where(scores == -np.inf, -1, listed & 0xFFFFFFFF).astype(np.int32), scores)


def _folded(bits):
  """Maps the bits of a float32 to an integer with the same order. It is its own inverse."""
  return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _comparable(scores):
  """Replaces -0 by +0 and every NaN by one that sorts first: sorting by bits then gives the order of `top_k`."""
  return jnp.where(jnp.isnan(scores), jnp.nan, jnp.where(scores == 0, 0.0, scores))
