"""Ranks all items for many users, in blocks of users, so that the users x items matrix is never in memory.

Items of equal score are in the order of their priority, see `data.order`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent import futures
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Array, Interactions, Ranked
from kd_jax.data import index
from kd_jax.models._inner_product import gathered_product
from kd_jax.ranking.top_k import places, top_k, top_k_and_tail, top_k_of_places

_HELD_OUT_BLOCK = 4  # users whose scores every held-out item reads again: few, so that they fit into one core's cache
_SCORED = 8  # such blocks scored at a time: matrix products with few rows are slow
_MOST_FLOAT = 2**24  # numbers up to this one can be counted in float32
_MOST_PARTS = 8  # more threads would wait for memory


def tables(module: nn.Module, variables: dict, rows: str = "users") -> Any:
  """Values computed once to score many rows: the tables; for rows="items" with inner products, also all queries."""
  own = module.apply(variables, method="tables")
  if rows == "users" or not module.inner_product:
    return own, None
  whole = module.apply(variables, {"users": jnp.arange(module.num_users)}, own)
  return own, (whole.query, whole.items)


def scorer(module: nn.Module, variables: dict, rows: str = "users", ready: Any = None) -> Callable[..., Array]:
  """Returns score(rows [b], candidates [b, C], or None for all) -> [b, C]. `ready` are `tables`, else computed here.

  Rows are users and candidates are items; with rows="items", rows are items and candidates are users.
  """
  own, whole = tables(module, variables, rows) if ready is None else ready

  def apply(**batch):
    return module.apply(variables, batch, own)

  if rows == "users":
    return lambda users, items=None: (apply(users=users) if items is None else apply(users=users, items=items)).scores

  def score(items, users=None):
    if whole is not None:
      query, table = whole
      return table[items] @ query.T if users is None else gathered_product(table[items], query, users)
    if users is not None:
      pairs = apply(users=users.reshape(-1), items=jnp.repeat(items, users.shape[1])[:, None])
      return pairs.scores.reshape(users.shape)
    everyone = jnp.arange(module.num_users)
    return apply(users=everyone, items=jnp.broadcast_to(items, (module.num_users, items.shape[0]))).scores.T

  return score


def _whole(module):
  """With split tables, replicates a block's scores on every device, so that later operations are local."""
  return getattr(module, "whole", lambda scores: scores)


@functools.cache
def _best(select, k):  # cached: the same function object is compiled only once
  return functools.partial(select, k=k)


def network_top_k(module: nn.Module, variables: dict, seen: index.Seen, *, k: int, exclude_seen: bool,
                  rows: str = "users") -> Ranked:
  """The top k items of every user by a network, [U, k] (or users of every item). Call it outside of jit."""
  if not _is_one_cpu():
    return _by_block(module, variables, seen, _best(top_k, k), exclude_seen, rows)
  ready, priority = _tables(module, variables, rows), np.asarray(seen.priority)

  def block(b):
    scored = _places(module, variables, ready, seen.blocks, b, exclude_seen=exclude_seen, rows=rows)
    return top_k_of_places(np.asarray(scored), priority, k)

  with futures.ThreadPoolExecutor(os.cpu_count()) as threads:
    listed = list(threads.map(block, range(seen.blocks.users.shape[0])))
  return jax.tree.map(lambda *x: jnp.asarray(np.concatenate(x)[: seen.starts.shape[0] - 1]), *listed)


_tables = jax.jit(tables, static_argnames=("module", "rows"))


@functools.partial(jax.jit, static_argnames=("module", "exclude_seen", "rows"))
def _places(module, variables, ready, blocks: index.Blocks, b, *, exclude_seen, rows):
  """`top_k.places` of the scores of block `b`."""
  own = jax.tree.map(lambda x: x[b], blocks)
  return places(_scores(scorer(module, variables, rows, ready), own, exclude_seen))


def _scores(score, block: index.Blocks, exclude_seen):
  """Scores [b, I] of a block, -inf for excluded items."""
  scores = score(block.users)
  return scores.at[block.rows, block.items].set(-jnp.inf, mode="drop") if exclude_seen else scores


def network_soft_labels(module: nn.Module, variables: dict, seen: index.Seen, *, k: int, exclude_seen: bool,
                        rows: str = "users") -> tuple[Ranked, Array]:
  """(the top k items of every user [U, k], the total probability [U] of the other items)."""
  return _by_block(module, variables, seen, _best(top_k_and_tail, k), exclude_seen, rows)


def _by_block(module, variables, seen, select, exclude_seen, rows):
  """`select(scores [BLOCK, I], priority [I])` of every block of users, concatenated."""
  def function(x):
    return _select(module, variables, x, seen.priority, select=select, exclude_seen=exclude_seen, rows=rows)

  parts = on_cores(function, seen.blocks)
  num_rows = seen.starts.shape[0] - 1
  # Part p holds the blocks p, p + len(parts), p + 2 len(parts), ...

  def join(*x):
    return jnp.stack(x, axis=1).reshape(-1, *x[0].shape[2:])[:num_rows]

  return jax.tree.map(join, *parts)


@functools.partial(jax.jit, static_argnames=("module", "select", "exclude_seen", "rows"))
def _select(module, variables, blocks: index.Blocks, priority, *, select, exclude_seen, rows):
  score, whole = scorer(module, variables, rows), _whole(module)

  def one(block):
    return select(_scores(lambda users: whole(score(users)), block, exclude_seen), priority)

  return jax.lax.map(one, blocks)


def _is_one_cpu() -> bool:
  return jax.default_backend() == "cpu" and jax.local_device_count() == 1


def on_cores(function: Callable[[Any], Any], blocks: Any) -> list[Any]:
  """Applies `function` to equal parts of `blocks`, arrays [blocks, ...], with one part per CPU core.

  XLA runs a top-k, like most loops, on one core. The last block is repeated to make the parts equal.
  """
  parts = min(os.cpu_count(), _MOST_PARTS) if _is_one_cpu() else 1
  size = -(-jax.tree.leaves(blocks)[0].shape[0] // parts)

  def part(p):
    return jax.tree.map(lambda x: x[jnp.minimum(jnp.arange(size) * parts + p, x.shape[0] - 1)], blocks)

  if parts == 1:
    return [function(blocks)]
  with futures.ThreadPoolExecutor(parts) as threads:
    return list(threads.map(lambda p: jax.block_until_ready(function(part(p))), range(parts)))


class HeldOut(NamedTuple):
  """The layout of held-out items for `network_ranks`: users by descending number of items, in groups of blocks."""

  groups: index.Blocks  # [groups, _SCORED b] users and [groups, P] masked items
  counts: Array  # [groups, _SCORED] int32, the maximal number of items of a user in the block
  starts: Array  # [groups, _SCORED] int32, the block's first line of `items`
  items: Array  # [lines, b] int32, one item of each user of the block; -1 is padding
  priority: Array  # [I] int32


def held_out(held: Interactions, masked: list[Interactions], priority: np.ndarray) -> tuple[HeldOut, np.ndarray]:
  """Makes the layout of `held`; items in `masked` are not ranked. `priority` [I] orders items of equal score.

  Returns it with `where` [M, 2], the line and column of each held-out interaction, in the order of `held`.
  """
  size = _HELD_OUT_BLOCK
  users, inverse, counts = np.unique(held.users, return_inverse=True, return_counts=True)
  falling = np.argsort(-counts, kind="stable")
  place = np.empty_like(falling)
  place[falling] = np.arange(len(falling))
  most = counts[falling][::size].astype(np.int32)
  starts = (np.cumsum(most) - most).astype(np.int32)
  by_user = np.argsort(inverse, kind="stable")
  nth = np.empty(len(inverse), np.int64)
  nth[by_user] = np.arange(len(inverse)) - np.repeat(np.cumsum(counts) - counts, counts)
  where = np.stack([starts[place[inverse] // size] + nth, place[inverse] % size], axis=1)
  items = np.full((most.sum(), size), -1, np.int32)
  items[where[:, 0], where[:, 1]] = held.items
  masked_users, masked_items = (np.concatenate([getattr(m, k) for m in masked]) for k in ("users", "items"))
  groups = index.blocks_of(masked_users, masked_items, users[falling], len(priority), size * _SCORED)

  def by_group(x):
    return np.pad(x, (0, len(groups.users) * _SCORED - len(x))).reshape(-1, _SCORED)

  return HeldOut(groups, by_group(most), by_group(starts), items, priority), where


def network_ranks(module: nn.Module, variables: dict, held: HeldOut) -> np.ndarray:
  """Ranks (from 0) of held-out items among all items that are not masked, in the layout of `held.items`.

  For each held-out item it counts the higher scores, instead of sorting. -1 for padding, -2 if a score is not finite.
  """
  def function(x):
    return _ranks(module, variables, held.items, held.priority, *x)

  parts = on_cores(function, (held.groups, held.counts, held.starts))
  return functools.reduce(lambda x, y: np.where(x == -1, y, x), map(np.asarray, parts))


@functools.partial(jax.jit, static_argnames="module")
def _ranks(module, variables, held_items, priority, groups, counts, starts):
  score, whole = scorer(module, variables), _whole(module)

  def group(lines, x):
    (users, rows, columns), count, start = x
    scores = whole(score(users))  # [_SCORED b, I]
    bad = jnp.sum(0 * scores, axis=1) != 0  # the sum is NaN if a score is not finite
    scores = scores.at[rows, columns].set(-jnp.inf, mode="drop")

    def by_block(x):
      return x.reshape(_SCORED, -1, *x.shape[1:])

    return jax.lax.scan(block, lines, (by_block(scores), by_block(bad), count, start))[0], None

  def block(lines, x):
    scores, bad, count, start = x  # [b, I]
    counts_in = jnp.float32 if scores.shape[1] <= _MOST_FLOAT else jnp.int32  # XLA vectorises sums of floats

    def line(j, lines):
      items = held_items[start + j]  # [b]
      own = jnp.take_along_axis(scores, jnp.maximum(items, 0)[:, None], axis=1)
      above = (scores > own) | ((scores == own) & (priority < priority[items][:, None]))
      rank = jnp.sum(above.astype(counts_in), axis=1).astype(jnp.int32)
      return lines.at[start + j].set(jnp.where(items < 0, -1, jnp.where(bad, -2, rank)))

    return jax.lax.fori_loop(0, count, line, lines), None

  return jax.lax.scan(group, jnp.full(held_items.shape, -1, jnp.int32), (groups, counts, starts))[0]
