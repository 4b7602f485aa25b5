"""Collaborative denoising autoencoder (CDAE)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Dataset, InputError, Outputs
from kd_jax.models._inner_product import inner_product


class CDAE(nn.Module):
  """Encodes a user's training items and the user itself, and decodes scores of all items."""

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
    """Training interactions [N], by user."""
    order = np.argsort(dataset.train.users, kind="stable")
    return {"users": dataset.train.users[order], "items": dataset.train.items[order]}

  def tables(self):
    """Users [U, D + 1] and items [I, D + 1]: the last column makes the items' biases part of the product."""
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
    dim: width of the hidden layer; the paper's is 50.
    corruption: in training, probability that an input is left out; the others are divided by
      1 - corruption. It happens only where the frame passes a random key "dropout" to the network.
    init_std: all parameters ~ N(0, init_std), as MF and LightGCN here.

  Departs: the output is not squashed, since base losses take logits; a batch corrupts a user once, and
  negatives are the frame's. All users are encoded at once, which costs N * dim a step whatever the batch:
  less than padded histories of a batch. As representation, z_u has a last column of ones, for the biases.
  Raises InputError for a corruption outside 0 <= corruption < 1.
  """
  if not 0 <= corruption < 1:
    raise InputError(f"--model=cdae: corruption={corruption}: at least 0 and less than 1")
  return CDAE(num_users, num_items, dim, corruption, init_std)
