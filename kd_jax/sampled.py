"""Rows of methods on items: the positives of a batch, and what methods on users sampled for its users."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kd_jax.base import Array, Batch


def items(batch: Batch, samples: Sequence[Array], num_items: int, axis_name: str | None) -> tuple[Array, Array]:
  """(items [R], weights [R]): a batch's positives and the items of `samples` [U, C] of its users.

  An item weighs what the heaviest of its interactions, or of the users that it was sampled for, weighs. R is the
  number of all items, or of all that could be met if these are fewer; every device of the axis has a share.
  """
  met = [(batch["kd_items"], batch["kd_items_weight"])]
  for sample in samples:
    listed = sample[batch["kd_users"]]  # [M, C]
    met.append((listed, jnp.broadcast_to(batch["kd_users_weight"][:, None], listed.shape)))
  weight = jnp.zeros(num_items)
  for which, weights in met:
    weight = weight.at[which].max(weights)
  devices, device = 1, 0
  if axis_name is not None:
    weight = jax.lax.pmax(weight, axis_name)
    devices, device = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)
  share = -(-min(num_items, devices * sum(which.size for which, _ in met)) // devices)
  place = jnp.arange(share * devices)
  rows = place if len(place) >= num_items else jnp.nonzero(weight, size=len(place), fill_value=num_items)[0]
  rows = jax.lax.dynamic_slice_in_dim(rows, device * share, share)
  return jnp.minimum(rows, num_items - 1), weight.at[rows].get(mode="fill", fill_value=0)
