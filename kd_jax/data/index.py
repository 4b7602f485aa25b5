"""An index of the items that each user has seen, to exclude them from rankings and to draw unseen items."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Array, Dataset, Interactions

BLOCK = 64  # users scored at a time: 64 rows of 25,000 scores fit into a shared cache


class Blocks(NamedTuple):
  """Users in blocks of b, with the items that are excluded from the rankings of each block."""

  users: Array  # [blocks, b] int32
  rows: Array  # [blocks, P] int32: user within the block
  items: Array  # [blocks, P] int32, padded with I, which a scatter ignores


class Seen(NamedTuple):
  """Each user's items in compressed sparse rows (CSR), sorted, and again in blocks of users."""

  starts: Array  # [U + 1] int32: user u has items[starts[u]:starts[u + 1]]
  items: Array  # [N] int32, ascending within a user
  blocks: Blocks  # users in order, BLOCK at a time


def seen_in(dataset: Dataset) -> Interactions:
  """The training interactions, which rankings exclude; empty for labelled data, where labels are not a history."""
  return dataset.train if dataset.contexts is None else Interactions(dataset.train.users[:0], dataset.train.items[:0])


def seen_of(users: np.ndarray, items: np.ndarray, num_users: int, num_items: int) -> Seen:
  """Indexes interactions [N]; repeated ones count once. Runs on the host."""
  keys = np.sort(users.astype(np.int64) * num_items + items)  # np.unique would take 30 times as long
  keys = keys[np.diff(keys, prepend=-1) > 0]
  users, items = (keys // num_items).astype(np.int32), (keys % num_items).astype(np.int32)
  starts = np.searchsorted(users, np.arange(num_users + 1)).astype(np.int32)
  blocks = blocks_of(users, items, np.arange(num_users), num_items, BLOCK)
  return Seen(starts, items if len(items) else np.zeros(1, np.int32), blocks)  # JAX cannot gather from an empty array


def seen_by_users(dataset: Dataset) -> Seen:
  """The index of the training interactions. Runs on the host."""
  history = seen_in(dataset)
  return seen_of(history.users, history.items, dataset.num_users, dataset.num_items)


def blocks_of(users, items, order, num_items, size) -> Blocks:
  """Blocks of `size` users, in `order`, with their interactions out of the N given ones."""
  place = np.full(max(int(order.max(initial=0)), int(users.max(initial=0))) + 1, -1, np.int32)
  place[order] = np.arange(len(order))
  places = place[users]
  places, items = places[places >= 0], items[places >= 0]
  by_block = np.argsort(places // size, kind="stable")
  places, items = places[by_block], items[by_block]
  blocks = -(-len(order) // size)
  counts = np.bincount(places // size, minlength=blocks)
  column = np.arange(len(places), dtype=np.int32) - np.repeat((np.cumsum(counts) - counts).astype(np.int32), counts)
  rows = np.zeros((blocks, counts.max(initial=1)), np.int32)
  columns = np.full_like(rows, num_items)
  rows[places // size, column], columns[places // size, column] = places % size, items
  return Blocks(np.resize(order, blocks * size).reshape(blocks, size).astype(np.int32), rows, columns)


def nth_absent(seen: Seen, users: Array, n: Array) -> Array:
  """The n-th (from 0) item that is absent from the user's row. A uniform n gives a uniform unseen item.

  Exact, without rejection. In an ascending row e, e_j - j absent items precede e_j, so the answer is
  n + #{j: e_j - j <= n}, found by bisection. `users` and `n` have the same shape.
  """
  low, high = seen.starts[users], seen.starts[users + 1]
  first = low

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) // 2
    precedes = (low < high) & (seen.items[middle] - (middle - first) <= n)
    return jnp.where(precedes, middle + 1, low), jnp.where(precedes, high, jnp.maximum(low, middle))

  longest = seen.blocks.rows.shape[1]  # an upper bound for the length of a row
  low, _ = jax.lax.fori_loop(0, longest.bit_length(), halve, (low, high))
  return (n + low - first).astype(jnp.int32)


def num_absent(seen: Seen, users: Array, num_items: int) -> Array:
  """The number of items that are absent from the row of each of `users`."""
  return num_items - (seen.starts[users + 1] - seen.starts[users])


def draw_unseen(rng: Array, excluded: Seen, users: Array, n: int, num_items: int) -> Array:
  """`n` distinct items per user [b, n], each absent item with the same probability.

  A systematic sample: it takes every (absent / n)-th absent item, from a random start.
  """
  absent = num_absent(excluded, users, num_items)[:, None]
  stretch = jnp.arange(n) + jax.random.uniform(rng, (users.shape[0], 1))
  place = jnp.minimum((stretch * absent / n).astype(jnp.int32), absent - 1)
  return nth_absent(excluded, jnp.broadcast_to(users[:, None], place.shape), place)


def draw_seen(rng: Array, seen: Seen, users: Array, n: int) -> Array:
  """`n` distinct training items per user [b, n], each with the same probability; with fewer items: all, then -1."""
  start = seen.starts[users][:, None]
  present = seen.starts[users + 1][:, None] - start
  drawn = jnp.minimum(present, n)
  stretch = jnp.arange(n) + jax.random.uniform(rng, (users.shape[0], 1))
  place = jnp.minimum((stretch * present / jnp.maximum(drawn, 1)).astype(jnp.int32), present - 1)
  return jnp.where(jnp.arange(n) < drawn, seen.items[start + place], -1)
