"""Factorisation machine (FM)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from kd_jax.base import FeatureSpec, Outputs
from kd_jax.models import _features


class FM(nn.Module):
  """Linear terms, and products of the embeddings of all pairs of inputs."""

  inner_product, constants, tables = False, _features.constants, _features.tables
  num_users: int
  num_items: int
  inputs: _features.Inputs
  dim: int

  def setup(self):
    inputs = self.inputs.rows + self.inputs.width
    self.linear = self.param("linear", _features.SMALL, (inputs, self.num_items))
    self.bias = self.param("bias", _features.SMALL, (self.num_items,))
    self.embedding = self.param("embedding", _features.SMALL, (inputs, self.dim))
    if self.num_items > 1:
      self.head = self.param("head", nn.initializers.lecun_uniform(), (self.dim, self.num_items))

  def __call__(self, batch, tables=None) -> Outputs:
    rows, numbers = _features.read(self, batch["users"])
    pairs = _features.interactions(self.embedding, rows, numbers)
    head = self.head if self.num_items > 1 else jnp.ones((self.dim, 1))
    scores = _features.linear(self, rows, numbers) + pairs @ head
    return Outputs(scores, pairs, head.T).of(batch.get("items"))


def fm(num_users: int, num_items: int, user_features: FeatureSpec | None = None, dim: int = 16,
       fields: tuple = ()) -> nn.Module:
  """Factorisation machine (FM): Rendle, ICDM 2010, https://doi.org/10.1109/ICDM.2010.127, eq. 1.

  score = b + sum_i w_i x_i + sum over i < j of <v_i, v_j> x_i x_j, over fields and numbers of the context.

  Args:
    dim: width of v.
    fields: names of the fields and vectors that the model reads; empty: all.

  Departs from the paper: with several candidates (tags), each candidate has its own b and w, and its own weights for
  the `dim` products instead of ones, as in the last layer of He, Chua, SIGIR 2017. Representations are the products.
  """
  return FM(num_users, num_items, _features.inputs_of("fm", user_features, fields), dim)
