"""EASE: a linear autoencoder in closed form, often more accurate than trained models."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Dataset, InputError, Outputs

SEARCH = "l2=log(1, 10000)"

_MOST_ITEMS = 20_000  # The inverse needs three arrays of I^2 numbers of 8 bytes.


class EASE(nn.Module):
  """score = x_u W; x_u [I] is 1 for the user's training items, else 0, and W [I, I] has a zero diagonal."""

  inner_product = False
  num_users: int
  num_items: int
  l2: float

  def setup(self):
    self.weights = self.param("weights", nn.initializers.zeros, (self.num_items, self.num_items))

  def constants(self, dataset: Dataset) -> dict[str, np.ndarray]:
    """Training items of each user [U, H], padded with I."""
    order = np.argsort(dataset.train.users, kind="stable")
    users, items = dataset.train.users[order], dataset.train.items[order]
    degrees = np.bincount(users, minlength=self.num_users)
    column = np.arange(len(users)) - np.repeat(np.cumsum(degrees) - degrees, degrees)
    history = np.full((self.num_users, degrees.max()), self.num_items, np.int32)
    history[users, column] = items
    return {"history": history}

  def fit(self, dataset: Dataset) -> dict[str, np.ndarray]:
    if self.num_items > _MOST_ITEMS:
      raise InputError(f"`model=ease`: {self.num_items} items are too many: EASE inverts a matrix of items x items")
    seen = np.zeros((self.num_users, self.num_items), np.float32)
    seen[dataset.train.users, dataset.train.items] = 1
    gram = (seen.T @ seen).astype(np.float64)
    precision = np.linalg.inv(gram + self.l2 * np.eye(self.num_items))
    weights = -precision / np.diag(precision)
    np.fill_diagonal(weights, 0)
    return {"weights": weights.astype(np.float32)}

  def tables(self):
    return self.weights

  def __call__(self, batch, tables=None) -> Outputs:
    weights = self.tables() if tables is None else tables
    history = self.get_variable("constants", "history")[batch["users"]]  # [B, H]
    rows = jnp.arange(history.shape[0])[:, None]
    seen = jnp.zeros((history.shape[0], self.num_items)).at[rows, history].set(1.0, mode="drop")
    return Outputs(seen @ weights).of(batch.get("items"))


def ease(num_users: int, num_items: int, l2: float = 100.0) -> nn.Module:
  """EASE^R, in closed form: Steck, WWW 2019, https://arxiv.org/abs/1905.03375, eq. 8.

  Raises InputError for more than 20,000 items. No parameter is trained by gradients.
  """
  return EASE(num_users, num_items, l2)
