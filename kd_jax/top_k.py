"""The k best of many scores. The order is everywhere: score descending, index ascending."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from kd_jax.base import Array, Ranked

_STRIDES = 16  # scores of a group, of which only the best is looked at first
_NEWCOMERS = 1 / 3  # the share of a list that a guess may miss: as many groups of a row are looked into


def top_k(scores: Array, k: int) -> Ranked:
  """The k best items of each row of scores [B, I]; -1 and -inf where fewer are not excluded."""
  scores = _one_zero(scores)
  best, items = jax.lax.top_k(scores, min(k, scores.shape[1]))
  return Ranked(jnp.where(best == -jnp.inf, -1, items).astype(jnp.int32), best)


def top_k_and_tail(scores: Array, k: int) -> tuple[Ranked, Array]:
  """`top_k`, and the softmax probability [B] of all the items that it leaves out."""
  ranked = top_k(scores, k)
  listed = jax.nn.logsumexp(ranked.scores, axis=1) - jax.nn.logsumexp(scores, axis=1)
  return ranked, jnp.clip(-jnp.expm1(listed), 0.0, 1.0)


def top_k_near(scores: Array, guess: Array) -> Ranked:
  """`top_k` for k = K, two to three times faster where most of them are in `guess` [B, K], e.g. an earlier list.

  XLA's top-k on a CPU is a heap, whose cost is in the items that enter it. Here the guess enters first, in its
  order, then the best groups of the others; if these may not be all that belong in the list, all others.
  """
  k, size = guess.shape[1], scores.shape[1] // _STRIDES
  looked_into = max(16, round(_NEWCOMERS * k))
  if size <= looked_into:
    return top_k(scores, k)
  rows, known = jnp.arange(scores.shape[0])[:, None], jnp.maximum(guess, 0).astype(jnp.int32)
  scores = _computed(_one_zero(scores))
  own = scores.at[rows, known].get(mode="promise_in_bounds")
  others = _computed(scores.at[rows, known].set(-jnp.inf, mode="promise_in_bounds"))
  # Group g holds items g, g + size, ...: an elementwise maximum of slices vectorises, a reduction would not.
  slices = [others[:, n * size : (n + 1) * size] for n in range(_STRIDES)]
  peaks, groups = _computed(jax.lax.top_k(functools.reduce(jnp.maximum, slices), looked_into))
  members = (groups[:, :, None] + size * jnp.arange(_STRIDES)).reshape(scores.shape[0], -1)
  everyone = jnp.broadcast_to(jnp.arange(scores.shape[1], dtype=jnp.int32), scores.shape)
  members = _computed(jnp.concatenate([members.astype(jnp.int32), everyone[:, _STRIDES * size :]], axis=1))
  listed, certain = _after(known, own, members, others.at[rows, members].get(mode="promise_in_bounds"))
  certain &= (guess >= 0).all() & (listed.scores[:, -1] > peaks[:, -1]).all()

  def of_everyone():
    listed, certain = _after(known, own, everyone, others)
    return jax.lax.cond(certain & (guess >= 0).all(), lambda: listed, lambda: top_k(scores, k))

  return jax.lax.cond(certain, lambda: listed, of_everyone)


def _after(known, own, items, scores) -> tuple[Ranked, Array]:
  """(the best of known and other items [B, ...] by their scores, whether that is certain in spite of equal scores)."""
  k = known.shape[1]
  best, place = _computed(jax.lax.top_k(_computed(jnp.concatenate([own, scores], axis=1)), k + 1))
  found = jnp.take_along_axis(jnp.concatenate([known, items], axis=1), place[:, :k], axis=1)
  listed = _exchange_equal(Ranked(found, best[:, :k]))
  return listed, (best[:, k - 1] > best[:, k]).all() & ~_misplaced(listed).any()


def _computed(x):
  """XLA would else compute things again in each fusion that reads them, at several times the cost.

  A barrier each: for several devices its compiler stops at one of both results of a top-k.
  """
  return jax.tree.map(jax.lax.optimization_barrier, x)


def _one_zero(scores):
  return jnp.where(scores == 0, 0.0, scores)  # XLA ranks +0 above -0


def _misplaced(ranked: Ranked) -> Array:
  """Where a place [B, K - 1] and the next have equal scores but falling items."""
  return (ranked.scores[:, :-1] == ranked.scores[:, 1:]) & (ranked.items[:, :-1] > ranked.items[:, 1:])


def _exchange_equal(ranked: Ranked) -> Ranked:
  """Mends pairs of equal scores, which are not rare among so many."""
  for start in (0, 1):
    swap = _misplaced(ranked) & (jnp.arange(ranked.items.shape[1] - 1) % 2 == start)
    first, second = jnp.pad(swap, ((0, 0), (0, 1))), jnp.pad(swap, ((0, 0), (1, 0)))
    left, right = jnp.roll(ranked.items, -1, axis=1), jnp.roll(ranked.items, 1, axis=1)
    ranked = ranked._replace(items=jnp.where(first, left, jnp.where(second, right, ranked.items)))
  return ranked
