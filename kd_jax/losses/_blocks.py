"""Sums over the members of groups, in blocks of one group each and in as many turns as there are blocks.

Of all pairs (entity, expert), (entity, entity) or (entity, neighbour) often few count. Dense arithmetic pays for all
of them; a list of fixed length would be too short in the worst case. A loop whose length is found at run time does
neither.
Cf. the blocks of MegaBlocks: Gale, Narayanan, Young, Zaharia, MLSys 2023.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.base import Array

ROWS = 64  # of a block: more waste half a block of every group, fewer make products too small
BLOCKS = 16  # of a turn: memory is bounded by ROWS * BLOCKS rows


class Groups(NamedTuple):
  """Members of groups one group after the other, each of them beginning a block of its own."""

  size: Array  # [G] int32, members
  blocks: Array  # [G] int32, ceil(size / ROWS)
  order: Array  # [G * E] int32, how many members there are up to each (group, entity)


def groups(member: Array) -> Groups:
  """Groups of `member` [E, G] bool; an entity may be in several."""
  size = jnp.sum(member, axis=0, dtype=jnp.int32)
  return Groups(size, -(-size // ROWS), jnp.cumsum(member.T.reshape(-1), dtype=jnp.int32))


def turns(blocks: Array) -> Array:
  """How many turns `blocks` of all groups take, []."""
  return -(-jnp.sum(blocks) // BLOCKS)


def of_turn(i: Array, blocks: Array) -> tuple[Array, Array]:
  """(group, number in the group) [BLOCKS] of the blocks of turn `i`; group G and 0 after the last one."""
  ends, block = jnp.cumsum(blocks), i * BLOCKS + jnp.arange(BLOCKS)
  group = jnp.searchsorted(ends, block, side="right")
  return group, block - _get(ends - blocks, group)


def entities(where: Groups, group: Array, number: Array) -> Array:
  """Who is in block `number` of `group`, [BLOCKS, ROWS]; E where nobody is."""
  e = where.order.size // where.size.size
  rank = number[:, None] * ROWS + jnp.arange(ROWS)
  place = jnp.searchsorted(where.order, _get(jnp.cumsum(where.size) - where.size, group)[:, None] + rank + 1)
  return jnp.where(rank < _get(where.size, group)[:, None], place - group[:, None] * e, e)


@jax.custom_batching.custom_vmap
def _longest(count):
  """`count`; of many runs at once the largest, so that their loop has one length and selects nothing."""
  return count


@_longest.def_vmap
def _(size, batched, count):
  return jnp.max(count), False


@jax.custom_batching.custom_vmap
def in_any(holds: Array) -> Array:
  """`holds`; of many runs at once whether it does in any, so that all take one branch and none is computed in vain."""
  return holds


@in_any.def_vmap
def _(size, batched, holds):
  return jnp.any(holds), False


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def summed(compute, places, rows: int, plan, count: Array, *arrays: Array) -> Array:
  """[rows, ...], sums over turns i < `count` of what `compute` makes of `arrays` at some of their places.

  `places(plan, i)` gives the rows to which the results of a turn are added, then an index for each of `arrays`. Places
  that do not exist are read as zeros and not written. The gradient goes to `arrays` alone; it computes every turn
  again, so that nothing of a turn is kept.
  """
  def turn(i, total):
    to, *at = places(plan, i)
    return total.at[to].add(compute(*map(_get, arrays, at)))

  def shape(i):
    to, *at = places(plan, i)
    return to, compute(*map(_get, arrays, at))

  to, made = jax.eval_shape(shape, count)
  start = jnp.zeros((rows, *made.shape[to.ndim:]), made.dtype)
  return jax.lax.fori_loop(0, _longest(count), turn, start)


def _forward(compute, places, rows, plan, count, *arrays):
  return summed(compute, places, rows, plan, count, *arrays), (plan, count, arrays)


def _backward(compute, places, rows, kept, gradient):
  plan, count, arrays = kept

  def turn(i, totals):
    to, *at = places(plan, i)
    _, pull = jax.vjp(compute, *map(_get, arrays, at))
    return [total.at[a].add(x) for total, a, x in zip(totals, at, pull(_get(gradient, to)), strict=True)]

  return None, None, *jax.lax.fori_loop(0, _longest(count), turn, [jnp.zeros_like(x) for x in arrays])


summed.defvjp(_forward, _backward)


def _get(x, index):
  x = jnp.asarray(x) if x.shape[0] else jnp.zeros((1, *x.shape[1:]), x.dtype)  # nothing can be read of no rows
  return x.at[index].get(mode="fill", fill_value=0)
