"""Sums over the members of groups, computed in blocks of rows; each block belongs to one group.

Often only a few of all pairs (entity, expert), (entity, entity) or (entity, neighbour) contribute to a sum. A dense
computation pays for all pairs, and a list of pairs with a fixed length would be too short in the worst case. Here the
number of blocks is found at run time, and a loop runs over these blocks in turns of BLOCKS blocks each.
Similar to the blocks of MegaBlocks: Gale, Narayanan, Young, Zaharia, MLSys 2023.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kd_jax.base import Array

ROWS = 64  # per block: padding wastes about half a block per group; with fewer rows, matrix products are too small
BLOCKS = 16  # per turn (loop iteration): memory is bounded by ROWS * BLOCKS rows


class Groups(NamedTuple):
  """The members of all groups, group after group; each group starts a new block."""

  size: Array  # [G] int32, number of members
  blocks: Array  # [G] int32, number of blocks: ceil(size / ROWS)
  order: Array  # [G * E] int32, cumulative number of members over (group, entity)


def groups(member: Array) -> Groups:
  """The groups of `member` [E, G] bool; an entity may belong to several groups."""
  size = jnp.sum(member, axis=0, dtype=jnp.int32)
  return Groups(size, -(-size // ROWS), jnp.cumsum(member.T.reshape(-1), dtype=jnp.int32))


def turns(blocks: Array) -> Array:
  """The number of turns [] for all groups; `blocks` [G] is the number of blocks of each group."""
  return -(-jnp.sum(blocks) // BLOCKS)


def of_turn(i: Array, blocks: Array) -> tuple[Array, Array]:
  """(group, number of the block in its group) [BLOCKS] for the blocks of turn `i`; (G, 0) after the last block."""
  ends, block = jnp.cumsum(blocks), i * BLOCKS + jnp.arange(BLOCKS)
  group = jnp.searchsorted(ends, block, side="right")
  return group, block - _get(ends - blocks, group)


def entities(where: Groups, group: Array, number: Array) -> Array:
  """The entities in block `number` of `group`, [BLOCKS, ROWS]; E for empty rows."""
  e = where.order.size // where.size.size
  rank = number[:, None] * ROWS + jnp.arange(ROWS)
  place = jnp.searchsorted(where.order, _get(jnp.cumsum(where.size) - where.size, group)[:, None] + rank + 1)
  return jnp.where(rank < _get(where.size, group)[:, None], place - group[:, None] * e, e)


@jax.custom_batching.custom_vmap
def _longest(count):
  """Returns `count`; under vmap over runs, the largest count: the runs share one loop, and none is masked."""
  return count


@_longest.def_vmap
def _(size, batched, count):
  return jnp.max(count), False


@jax.custom_batching.custom_vmap
def in_any(holds: Array) -> Array:
  """Returns `holds`; under vmap over runs, whether it holds in any run.

  All runs then take the same branch, instead of computing both branches and selecting one.
  """
  return holds


@in_any.def_vmap
def _(size, batched, holds):
  return jnp.any(holds), False


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def summed(compute, places, rows: int, plan, count: Array, *arrays: Array) -> Array:
  """Sums the results of `compute` over the turns i < `count`, [rows, ...].

  `places(plan, i)` returns the rows to which the results of turn i are added, then one index for each of `arrays`;
  `compute` gets the arrays at these indices. Indices out of range are read as zeros and are not written. Only `arrays`
  have gradients. The backward pass computes every turn again, so no intermediate result of a turn is stored.
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
  x = jnp.asarray(x) if x.shape[0] else jnp.zeros((1, *x.shape[1:]), x.dtype)  # an empty array cannot be indexed
  return x.at[index].get(mode="fill", fill_value=0)
