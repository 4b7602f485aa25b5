"""The k best of many scores. The order is everywhere: score descending, index ascending."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Array, Ranked


def top_k(scores: Array, k: int) -> Ranked:
  """The k best items of each row of scores [B, I]; -1 and -inf where fewer are not excluded."""
  scores = _comparable(scores)
  best, items = jax.lax.top_k(scores, min(k, scores.shape[1]))
  return Ranked(jnp.where(best == -jnp.inf, -1, items).astype(jnp.int32), best)


def top_k_and_tail(scores: Array, k: int) -> tuple[Ranked, Array]:
  """`top_k`, and the softmax probability [B] of all the items that it leaves out."""
  ranked = top_k(scores, k)
  listed = jax.nn.logsumexp(ranked.scores, axis=1) - jax.nn.logsumexp(scores, axis=1)
  return ranked, jnp.clip(-jnp.expm1(listed), 0.0, 1.0)


def places(scores: Array) -> Array:
  """Scores as int32 that ascend as scores fall; what is not a number comes first, as in `top_k`."""
  return ~_folded(jax.lax.bitcast_convert_type(_comparable(scores).astype(jnp.float32), jnp.int32))


def top_k_of_places(places: np.ndarray, k: int) -> Ranked:
  """`top_k` of scores whose `places` [B, I] are given, on the host.

  XLA's top-k on a CPU is a heap, slower the longer the list: BENCHMARKS.md.
  """
  size = places.shape[1]
  k, items = min(k, size), np.arange(size)
  listed, row = np.empty((len(places), k), np.int64), np.empty(size, np.int64)
  for own, best in zip(places, listed, strict=True):
    np.left_shift(own, 32, out=row, casting="unsafe", dtype=np.int64)
    np.bitwise_or(row, items, out=row)  # all differ: ties are the item's
    if k < size:
      row.partition(k)
    best[:] = row[:k]
  listed.sort(axis=1)
  scores = _folded(~(listed >> 32).astype(np.int32)).view(np.float32)
  return Ranked(np.where(scores == -np.inf, -1, listed & 0xFFFFFFFF).astype(np.int32), scores)


def _folded(bits):
  """Bits of a float32 as an integer of the same order, and back."""
  return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _comparable(scores):
  """By their bits +0 is above -0, and what is not a number either first or last: here first, so that it is seen."""
  return jnp.where(jnp.isnan(scores), jnp.nan, jnp.where(scores == 0, 0.0, scores))
