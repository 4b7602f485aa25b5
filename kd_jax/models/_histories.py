"""Shared by sequence models: how they read histories, one padded history per row or several side by side."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Array, Batch, Dataset, InputError


class Read(NamedTuple):
  """R rows of L places. A place may read itself and earlier places of its row that have the same owner."""

  items: Array  # [R, L] int32
  owners: Array  # [R, L] int32, user + 1; 0 for padding
  places: Array  # [R, L] or [1, L] int32, 0..L-1; a history ends at L-1


def constants(module: nn.Module, dataset: Dataset) -> dict[str, np.ndarray]:
  """All histories, one after another: items[starts[u]:starts[u + 1]] is the history of user u, oldest item first.

  `items` has shape [N]. Items with the same timestamp keep the order of the data. Raises InputError if the data has no
  time stamps, and its rows have no order.
  """
  del module
  users, times = dataset.train.users, dataset.train.timestamps
  if times is None and dataset.report.get("unordered"):
    raise InputError("`model`: it reads sequences, and the data has no time stamps; name their column, "
                     "timestamp='...', or, if the rows of every user are in order, split='position'")
  order = np.argsort(users, kind="stable") if times is None else np.lexsort((times, users))
  starts = np.searchsorted(users[order], np.arange(dataset.num_users + 1)).astype(np.int32)
  return {"starts": starts, "items": dataset.train.items[order]}


def tables(module: nn.Module) -> Array:
  """The item vectors [I, D]; they are used as inputs and for scoring."""
  return module.item


def read(module: nn.Module, batch: Batch) -> Read:
  """For sequence batches, the items before each example; else the last `module.length` items of each user.

  A batch with `place` [R * L] is a sequence batch, see `kd_jax.training.sequence_batches`. The `users` and `position`
  of its examples form rows of L places; the item that is read at each place is the one before the example.
  """
  starts, items = (module.get_variable("constants", k) for k in ("starts", "items"))
  users, length = batch["users"], module.length
  if "place" in batch:
    users, position, places = (batch[k].reshape(-1, length) for k in ("users", "position", "place"))
    return Read(items[jnp.maximum(starts[users] + position - 1, 0)], users + 1, places)
  index = starts[users + 1][:, None] + jnp.arange(-length, 0)
  owners = jnp.where(index >= starts[users][:, None], users[:, None] + 1, 0)
  return Read(items[jnp.maximum(index, 0)], owners, jnp.arange(length)[None])


def sees(owners: Array, keep: int) -> Array:
  """[R, keep, L]: which places each of the last `keep` places may read; a place may read itself."""
  past = jnp.tril(jnp.ones((owners.shape[1],) * 2, bool))[-keep:]
  return past & (owners[:, -keep:, None] == owners[:, None]) & (owners[:, None] > 0)


def normalise(x: Array) -> Array:
  """Zero mean and unit variance along the last axis; zeros stay zeros."""
  x = x - x.mean(-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-8)
