"""Collaborative denoising autoencoder (CDAE)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Dataset, InputError, Outputs
from kd_jax.models._inner_product import inner_product

SEARCH = "corruption=uniform(0.0, 0.6)"


class CDAE(nn.Module):
  """Encodes a user's training items and the user's own vector, and decodes the scores of all items."""

  inner_product = True
  num_users: int
  num_items: int
  dim: int
  corruption: float
  init_std: float

  def setup(self):
    init = nn.initializers.normal(self.init_std)
    self.encoder = self.param("encoder", init, (self.num_items, self.dim))
    self.user = self.param("user", init, (self.num_users, self.dim))
    self.hidden_bias = self.param("hidden_bias", init, (self.dim,))
    self.decoder = self.param("decoder", init, (self.num_items, self.dim))
    self.item_bias = self.param("item_bias", init, (self.num_items, 1))

  def constants(self, dataset: Dataset) -> dict[str, np.ndarray]:
    """Training interactions [N], sorted by user."""
    order = np.argsort(dataset.train.users, kind="stable")
    return {"users": dataset.train.users[order], "items": dataset.train.items[order]}

  def tables(self):
    """Vectors of users [U, D + 1] and items [I, D + 1]; with the last column, the product adds the item bias."""
    users, items = (self.get_variable("constants", k) for k in ("users", "items"))
    inputs = self.encoder[items]  # [N, D]
    if self.corruption and self.has_rng("dropout"):
      kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.corruption, items.shape)
      inputs = inputs * (kept / (1 - self.corruption))[:, None]
    summed = jax.ops.segment_sum(inputs, users, self.num_users, indices_are_sorted=True)
    hidden = jax.nn.sigmoid(summed + self.user + self.hidden_bias)  # [U, D]
    query = jnp.concatenate([hidden, jnp.ones((self.num_users, 1))], axis=1)
    return query, jnp.concatenate([self.decoder, self.item_bias], axis=1)

  def __call__(self, batch, tables=None) -> Outputs:
    query, table = self.tables() if tables is None else tables
    return inner_product(query[batch["users"]], table, batch.get("items"))


def cdae(
    num_users: int, num_items: int, dim: int = 50, corruption: float = 0.2,
    init_std: float = 0.1) -> nn.Module:
  """CDAE: Wu, DuBois, Zheng, Ester, WSDM 2016, https://doi.org/10.1145/2835776.2835837.

  score = <w'_i, z_u> + b'_i with z_u = sigmoid(sum of w_j over training items j of u + v_u + b).

  Args:
    dim: width of the hidden layer (paper: 50).
    corruption: in training, probability that an input is left out; the other inputs are divided by 1 - corruption.
      It is applied only if the network gets a random key "dropout".
    init_std: all parameters ~ N(0, init_std), as for mf and lightgcn.

  Departs from the paper: the output has no activation function, since base losses take logits; a user is corrupted once
  per batch; negatives are those of the training loop. All users are encoded at once, so a step costs N * dim for any
  batch size, which is less than for padded histories of a batch. The representation of a user is z_u with a last column
  of ones, for the item biases. Raises InputError unless 0 <= corruption < 1.
  """
  if not 0 <= corruption < 1:
    raise InputError(f"`model=cdae`: corruption={corruption}: must be at least 0 and less than 1")
  return CDAE(num_users, num_items, dim, corruption, init_std)
