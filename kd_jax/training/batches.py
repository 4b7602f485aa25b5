"""The batches of an epoch. Order and negatives are functions of (seed, epoch), so no state is saved."""

from __future__ import annotations

import functools
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Array, Batch, Interactions
from kd_jax.data.index import Seen, check_count, draw_below, nth_absent, num_absent

_MULTIPLE = 128  # distinct users are padded to a multiple of this, so that shapes rarely change between epochs


def plan(seed: int, epoch: int, train: Interactions, batch_size: int, kd_per: str,
         distilled: Collection[str] = ("users", "items"), steps: int | None = None,
         chosen: np.ndarray | None = None) -> Batch:
  """Assigns interactions to batches. Runs on the host, where sorting is faster than on the device.

  Returns `rows` [S, B] (indices of interactions in random order) and their `weight` [S, B] (0 for padding). If users
  are `distilled`, it also returns the distinct users of each batch, `kd_users` [S, M], with `kd_users_weight` [S, M]:
  a user is distilled once per batch, with the number of its interactions in the batch as weight
  (kd_per="interaction"), or with weight 1. The same holds for positive items, `kd_items`. With more `steps` than
  needed, the interactions are distributed evenly, so that no batch is empty: Adam also updates if the gradient is 0.
  `chosen` [n] are the indices of the interactions that are assigned; None: all.
  """
  rows, weight = _order(seed, epoch, len(train.users if chosen is None else chosen), batch_size, steps)
  rows = rows if chosen is None else chosen[rows]
  return {"rows": rows, "weight": weight} | distinct(train, rows, weight, kd_per, distilled)


def distinct(train: Interactions, rows: np.ndarray, weight: np.ndarray, kd_per: str,
             distilled: Collection[str]) -> Batch:
  """The distinct users and items of batches of interactions, with their weights; see `plan`."""
  batch = {}
  for side in distilled:
    batch[f"kd_{side}"], batch[f"kd_{side}_weight"] = _distinct(getattr(train, side)[rows], weight, kd_per)
  return batch


def choose(seed: int, count: int, share: float) -> np.ndarray:
  """A random `share` of 0 .. count - 1, ascending, at least one; the same for every epoch of a seed."""
  drawn = np.random.default_rng([seed, 0]).permutation(np.arange(count, dtype=np.int32))  # epochs count from 1
  return np.sort(drawn[: max(1, round(share * count))])


def plan_contexts(seed: int, epoch: int, contexts: np.ndarray, batch_size: int) -> Batch:
  """The batches of labelled data: `users` [S, B], each of `contexts` [n] once, and their `weight` [S, B]."""
  rows, weight = _order(seed, epoch, len(contexts), batch_size)
  return {"users": contexts[rows], "weight": weight}


def _order(seed, epoch, count, batch_size, steps=None):
  """0..count - 1 in random order, padded with 0, and weights (0 for padding), both [S, B]."""
  check_count(count)
  order = np.random.default_rng([seed, epoch]).permutation(np.arange(count, dtype=np.int32))
  if steps is not None:
    weight = np.arange(batch_size) < count // steps + (np.arange(steps) < count % steps)[:, None]
    rows = np.zeros(weight.shape, np.int32)
    rows[weight] = order
    return rows, weight.astype(np.float32)
  steps = -(-count // batch_size)
  rows = np.pad(order, (0, steps * batch_size - count)).reshape(steps, batch_size)
  return rows, (np.arange(rows.size) < count).astype(np.float32).reshape(rows.shape)


def _distinct(entries, weight, kd_per):
  """The distinct entries of each row of [S, B], and their weights, both [S, M]."""
  none = np.iinfo(np.int32).max  # the value of padding, which sorts last
  entries = np.sort(np.where(weight > 0, entries, none), axis=1)
  kept, nth = entries < none, np.cumsum(np.diff(entries, axis=1, prepend=-1) > 0, axis=1) - 1
  width = min(-(-(nth[kept].max() + 1) // _MULTIPLE) * _MULTIPLE, entries.shape[1])
  where = (np.arange(len(nth))[:, None] * width + nth)[kept]
  found = np.zeros((len(nth), width), np.int32)
  found.flat[where] = entries[kept]
  counts = np.bincount(where, minlength=found.size).reshape(found.shape)
  return found, (counts if kd_per == "interaction" else counts > 0).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("negatives", "num_items", "kd_per"))
def draw(rng: Array, plan: Batch, users: Array, items: Array, seen: Seen, pool: Array | None = None, *,
         negatives: int, num_items: int, kd_per: str = "interaction") -> Batch:
  """Turns a `plan` into batches: `users` [S, B] and `items` [S, B, 1 + negatives], the positive first.

  Negatives are uniform over the items that the user has not seen in training. With `pool` [n], which is ascending and
  contains every training item, they are uniform over the unseen items in the pool. `items_weight` is the
  weight of the items as entities: with kd_per="user", it is 1 for an item's first occurrence in the batch, else 0.
  If the user has no unseen item, there are no negatives: `weight` is 0, and so are the weights of the places of the
  negatives, which hold some item. `real` [S, B] is the weight of the plan, 0 for padding only. Other fields of the
  plan are kept. A plan of contexts is returned unchanged.
  """
  if "rows" not in plan:
    return plan
  rows = plan["rows"]
  users, positives = users[rows], items[rows]
  if pool is not None:  # indices into the pool are drawn
    seen = seen._replace(items=jnp.searchsorted(pool, seen.items))
  candidates = num_items if pool is None else pool.shape[0]
  absent = num_absent(seen, users, candidates)
  n = draw_below(rng, (negatives, *rows.shape), absent, candidates)
  drawn = jnp.where(absent > 0, nth_absent(seen, jnp.broadcast_to(users, n.shape), n), 0)  # [negatives, S, B]
  drawn = drawn if pool is None else pool[drawn]
  items = jnp.moveaxis(jnp.concatenate([positives[None], drawn]), 0, -1)
  real = plan["weight"]
  of_negatives = real * (absent > 0)
  weight = jnp.where(jnp.arange(1 + negatives) > 0, of_negatives[..., None], real[..., None])
  if kd_per == "user":
    weight = weight * jax.vmap(lambda i, w: _first(i, w, num_items))(items, weight)
  batch = {k: v for k, v in plan.items() if k != "rows"}
  return batch | {"users": users, "items": items, "items_weight": weight, "real": real,
                  "weight": of_negatives if negatives else real}


def _first(items, weight, num_items):
  """1.0 for an item's first occurrence in [B, n] among entries of positive weight, else 0.0."""
  place = jnp.where(weight > 0, jnp.arange(items.size).reshape(items.shape), items.size)
  first = jnp.full((num_items,), items.size).at[items].min(place)
  return (first[items] == place).astype(jnp.float32)


def by_time(train: Interactions) -> tuple[np.ndarray, np.ndarray]:
  """Interactions sorted by user, then time (or source order) [N], and each one's position in its history [N]."""
  order = np.argsort(train.users, kind="stable") if train.timestamps is None else np.lexsort(
      (train.timestamps, train.users))
  users = train.users[order]
  place = np.empty(len(users), np.int32)
  place[order] = np.arange(len(users)) - np.searchsorted(users, users)
  return order, place


def to_device(train: Interactions, num_users: int, num_items: int) -> tuple[Array, Array]:
  """(users [N], items [N]) on the device. Checks the range of the indices, since JAX silently clamps them."""
  for name, column, size in (("user", train.users, num_users), ("item", train.items, num_items)):
    if column.min() < 0 or column.max() >= size:
      raise ValueError(f"{name} index {column.max()} is not in 0..{size - 1}")
  return jnp.asarray(train.users, jnp.int32), jnp.asarray(train.items, jnp.int32)
