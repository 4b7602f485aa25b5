"""An index of the items that each user has seen, to exclude them from rankings and to draw unseen items."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Array, Dataset, InputError, Interactions
from kd_jax.data.order import priority

BLOCK = 64  # users scored at a time: 64 rows of 25,000 scores fit into a shared cache
# Up to so many candidates, and draws, float32 draws distinct items with probabilities that are equal within 2 %. The
# recorded results have such draws. Integers draw exactly, but change one item in 2,500, so they draw only above that.
_MOST_FLOAT, _MOST_FLOAT_DRAWS = 2**17, 2**10
_MOST = np.iinfo(np.int32).max  # interactions in memory: places among them are int32


class Blocks(NamedTuple):
  """Users in blocks of b, with the items that are excluded from the rankings of each block."""

  users: Array  # [blocks, b] int32
  rows: Array  # [blocks, P] int32: user within the block
  items: Array  # [blocks, P] int32, padded with I, which a scatter ignores


class Seen(NamedTuple):
  """Each user's items in compressed sparse rows (CSR), sorted, and again in blocks of users.

  `priority` orders items of equal score, see `order.priority`; None if nothing is ranked, only drawn.
  """

  starts: Array  # [U + 1] int32: user u has items[starts[u]:starts[u + 1]]
  items: Array  # [N] int32, ascending within a user
  blocks: Blocks  # users in order, BLOCK at a time
  priority: Array | None = None  # [I] int32


def seen_in(dataset: Dataset) -> Interactions:
  """The training interactions, which rankings exclude; empty for labelled data, where labels are not a history."""
  return dataset.train if dataset.contexts is None else Interactions(dataset.train.users[:0], dataset.train.items[:0])


def side(dataset: Dataset, rows: str) -> tuple[np.ndarray, np.ndarray, int, int]:
  """(rows [N], candidates [N], number of rows, number of candidates) of the seen interactions; `rows` is "users" (the
  candidates are items) or "items" (the candidates are users)."""
  log = seen_in(dataset)
  if rows == "users":
    return log.users, log.items, dataset.num_users, dataset.num_items
  return log.items, log.users, dataset.num_items, dataset.num_users


def priority_of(dataset: Dataset, rows: str) -> np.ndarray:
  """The `order.priority` of the candidates of a `side`."""
  return priority(dataset.item_ids if rows == "users" else dataset.user_ids)


def check_count(interactions: int) -> None:
  """Raises InputError if a data set in memory has too many interactions to count them in int32."""
  if interactions > _MOST:
    raise InputError(f"`data`: {interactions:,} interactions; at most {_MOST:,} can be in memory. With `data_memory` "
                     "they are read in parts")


def seen_of(users: np.ndarray, items: np.ndarray, num_users: int, num_items: int,
            priority: np.ndarray | None = None) -> Seen:
  """Indexes interactions [N]; repeated ones count once. Runs on the host. Raises InputError if N is 2^31 or more."""
  check_count(len(users))
  keys = np.sort(users.astype(np.int64) * num_items + items)  # np.unique would take 30 times as long
  keys = keys[np.diff(keys, prepend=-1) > 0]
  users, items = (keys // num_items).astype(np.int32), (keys % num_items).astype(np.int32)
  starts = np.searchsorted(users, np.arange(num_users + 1)).astype(np.int32)
  blocks = blocks_of(users, items, np.arange(num_users), num_items, BLOCK)
  items = items if len(items) else np.zeros(1, np.int32)  # JAX cannot gather from an empty array
  return Seen(starts, items, blocks, priority)


def seen_by_users(dataset: Dataset) -> Seen:
  """The index of the training interactions. Runs on the host."""
  history = seen_in(dataset)
  return seen_of(history.users, history.items, dataset.num_users, dataset.num_items, priority(dataset.item_ids))


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
    middle = low + (high - low) // 2  # low + high may exceed int32
    precedes = (low < high) & (seen.items[middle] - (middle - first) <= n)
    return jnp.where(precedes, middle + 1, low), jnp.where(precedes, high, jnp.maximum(low, middle))

  longest = seen.blocks.rows.shape[1]  # an upper bound for the length of a row
  low, _ = jax.lax.fori_loop(0, longest.bit_length(), halve, (low, high))
  return (n + low - first).astype(jnp.int32)


def num_absent(seen: Seen, users: Array, num_items: int) -> Array:
  """The number of items that are absent from the row of each of `users`."""
  return num_items - (seen.starts[users + 1] - seen.starts[users])


def draw_below(rng: Array, shape: tuple[int, ...], bound: Array, most: int) -> Array:
  """Integers with equal probabilities from 0 to `bound` - 1, which is at most `most`; 0 if `bound` is 0."""
  bound = jnp.maximum(bound, 1)
  if most <= _MOST_FLOAT:
    return jax.random.randint(rng, shape, 0, bound)
  # Above 2^16, randint is 32 bits modulo the bound: just above 2^30, some integers come 4/3 times as often as others.
  high, low = jax.random.bits(rng, (2, *shape), jnp.uint32)
  bound = jnp.broadcast_to(bound, shape).astype(jnp.uint32)

  def append_bit(i, rest):
    rest = 2 * rest + (low >> (31 - i).astype(jnp.uint32)) % 2
    return jnp.where(rest >= bound, rest - bound, rest)

  return jax.lax.fori_loop(0, 32, append_bit, high % bound).astype(jnp.int32)  # 64 bits modulo the bound


def draw_unseen(rng: Array, excluded: Seen, users: Array, n: int, num_items: int) -> Array:
  """`n` distinct items per user [b, n], each absent item with the same probability; with fewer: all, then -1.

  A systematic sample: it takes every (absent / n)-th absent item, from a random start.
  """
  absent = num_absent(excluded, users, num_items)[:, None]
  place = _systematic(rng, absent, n, num_items)
  items = nth_absent(excluded, jnp.broadcast_to(users[:, None], place.shape), jnp.maximum(place, 0))
  return jnp.where(place < 0, -1, items)


def _systematic(rng, sizes, n, most):
  """`n` distinct places from 0 to `sizes` [b, 1] - 1, ascending [b, n]; with fewer: all, then -1. `sizes` <= `most`."""
  nth = jnp.arange(n)
  if most <= _MOST_FLOAT and n <= _MOST_FLOAT_DRAWS:
    stretch = nth + jax.random.uniform(rng, sizes.shape)
    place = jnp.minimum((stretch * sizes / n).astype(jnp.int32), sizes - 1)
  else:  # n places at distances of floor(size / n) or one more, on a circle of this size, turned by a random angle
    start = nth * (sizes // n) + jnp.minimum(nth, sizes % n)
    turn = draw_below(rng, sizes.shape, sizes, most)
    place = jnp.sort(jnp.where(start < sizes - turn, start + turn, start - (sizes - turn)), axis=1)
  return jnp.where(nth < sizes, jnp.where(sizes > n, place, nth), -1)


def first_seen(users: np.ndarray, items: np.ndarray, num_users: int, n: int) -> np.ndarray:
  """The first `n` distinct items [U, n] of every user in the order of interactions [N]; with fewer: all, then -1.

  Runs on the host.
  """
  pairs = users.astype(np.int64) * (items.max(initial=0) + 1) + items
  rows = np.sort(np.unique(pairs, return_index=True)[1])
  rows = rows[np.argsort(users[rows], kind="stable")]
  users, items = users[rows], items[rows]
  place = np.arange(len(users)) - np.searchsorted(users, users)
  found = np.full((num_users, n), -1, np.int32)
  found[users[place < n], place[place < n]] = items[place < n]
  return found


def draw_seen(rng: Array, seen: Seen, users: Array, n: int) -> Array:
  """`n` distinct training items per user [b, n], each with the same probability; with fewer items: all, then -1."""
  start = seen.starts[users][:, None]
  present = seen.starts[users + 1][:, None] - start
  place = _systematic(rng, present, n, seen.blocks.rows.shape[1])
  return jnp.where(place < 0, -1, seen.items[jnp.where(place < 0, 0, start + place)])
