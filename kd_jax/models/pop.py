"""Popularity: the baseline that every table of results should include."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Dataset, Outputs


class Pop(nn.Module):
  """Scores an item by its number of training interactions; scores are the same for all users."""

  inner_product = False
  num_users: int
  num_items: int

  def setup(self):
    self.count = self.param("count", nn.initializers.zeros, (self.num_items,))

  def fit(self, dataset: Dataset) -> dict[str, np.ndarray]:
    count = np.bincount(dataset.train.items, minlength=self.num_items)
    return {"count": count.astype(np.float32)}

  def tables(self):
    return self.count

  def __call__(self, batch, tables=None) -> Outputs:
    count = self.tables() if tables is None else tables
    if batch.get("items") is None:
      return Outputs(jnp.broadcast_to(count, (batch["users"].shape[0], self.num_items)))
    return Outputs(count[batch["items"]])


def pop(num_users: int, num_items: int) -> nn.Module:
  """Popularity: the score is an item's number of training interactions. No parameter is trained."""
  return Pop(num_users, num_items)
