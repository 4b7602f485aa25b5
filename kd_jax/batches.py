"""The batches of an epoch: order and negatives are functions of (seed, epoch), so nothing is saved."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Array, Batch, Interactions
from kd_jax.ranking import Seen, nth_absent, num_absent

_MULTIPLE = 128  # distinct users of a batch are padded to this, so that epochs rarely differ in shape


def plan(seed: int, epoch: int, users: np.ndarray, batch_size: int, kd_per: str) -> Batch:
  """Which interactions make which batch. On the host: sorting on the device is slower.

  Returns `rows` [S, B] (interactions in random order), their `weight` [S, B] (0 for the padding of the
  last batch), and the distinct users of each batch, `kd_users` [S, M], with `kd_weight` [S, M]: a user is
  distilled once, for as many interactions as it has in the batch (kd_per="interaction") or as one.
  """
  order = np.random.default_rng([seed, epoch]).permutation(len(users)).astype(np.int32)
  steps = -(-len(order) // batch_size)
  rows = np.pad(order, (0, steps * batch_size - len(order))).reshape(steps, batch_size)
  weight = (np.arange(rows.size) < len(order)).astype(np.float32).reshape(rows.shape)
  distinct = [np.unique(users[r[w > 0]], return_counts=True) for r, w in zip(rows, weight, strict=True)]
  width = min(-(-max(len(u) for u, _ in distinct) // _MULTIPLE) * _MULTIPLE, batch_size)
  kd_users, kd_weight = np.zeros((steps, width), np.int32), np.zeros((steps, width), np.float32)
  for step, (who, count) in enumerate(distinct):
    kd_users[step, : len(who)] = who
    kd_weight[step, : len(who)] = count if kd_per == "interaction" else 1
  return {"rows": rows, "weight": weight, "kd_users": kd_users, "kd_weight": kd_weight}


@functools.partial(jax.jit, static_argnames=("negatives", "num_items"))
def draw(rng: Array, plan: Batch, users: Array, items: Array, seen: Seen, *, negatives: int, num_items: int) -> Batch:
  """Turns a `plan` into batches: `users` [S, B] and `items` [S, B, 1 + negatives], the positive first.

  Negatives are uniform over the items that the user has not seen in training.
  """
  rows = plan["rows"]
  users, positives = users[rows], items[rows]
  n = jax.random.randint(rng, (negatives, *rows.shape), 0, num_absent(seen, users, num_items))
  drawn = nth_absent(seen, jnp.broadcast_to(users, n.shape), n)  # [negatives, S, B]
  items = jnp.moveaxis(jnp.concatenate([positives[None], drawn]), 0, -1)
  return {k: v for k, v in plan.items() if k != "rows"} | {"users": users, "items": items}


def to_device(train: Interactions, num_users: int, num_items: int) -> tuple[Array, Array]:
  """(users [N], items [N]) on the device, checked: JAX would clamp an index out of range silently."""
  for name, column, size in (("user", train.users, num_users), ("item", train.items, num_items)):
    if column.min() < 0 or column.max() >= size:
      raise ValueError(f"{name} index {column.max()} is not in 0..{size - 1}")
  return jnp.asarray(train.users, jnp.int32), jnp.asarray(train.items, jnp.int32)
