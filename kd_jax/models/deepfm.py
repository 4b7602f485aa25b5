"""Factorisation machine and deep network over the same embeddings (DeepFM)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from kd_jax.base import FeatureSpec, Outputs
from kd_jax.models import _features

SEARCH = "dropout=0.0|0.1|0.3"


class DeepFM(nn.Module):
  """The sum of linear terms, products of embeddings, and a deep network over the same embeddings."""

  inner_product, constants, tables = False, _features.constants, _features.tables
  num_users: int
  num_items: int
  inputs: _features.Inputs
  dim: int
  hidden: tuple[int, ...]
  dropout: float

  def setup(self):
    inputs, last = self.inputs.rows + self.inputs.width, self.hidden[-1]
    self.linear = self.param("linear", _features.SMALL, (inputs, self.num_items))
    self.bias = self.param("bias", _features.SMALL, (self.num_items,))
    self.embedding = self.param("embedding", _features.SMALL, (inputs, self.dim))
    self.tower = _features.Tower(self.hidden, self.dropout)
    learned = last if self.num_items == 1 else last + self.dim
    self.head = self.param("head", nn.initializers.glorot_uniform(), (learned, self.num_items))

  def __call__(self, batch, tables=None) -> Outputs:
    rows, numbers = _features.read(self, batch["users"])
    pairs = _features.interactions(self.embedding, rows, numbers)
    deep = self.tower(_features.embedded(self, rows, numbers))
    query = jnp.concatenate([deep, pairs], axis=1)
    head = self.head if self.num_items > 1 else jnp.concatenate([self.head, jnp.ones((self.dim, 1))])
    scores = _features.linear(self, rows, numbers) + query @ head
    return Outputs(scores, query, head.T).of(batch.get("items"))


def deepfm(num_users: int, num_items: int, user_features: FeatureSpec | None = None, dim: int = 16,
           hidden: tuple = (128, 128), dropout: float = 0.0, fields: tuple = ()) -> nn.Module:
  """DeepFM: Guo, Tang, Ye, Li, He, IJCAI 2017, https://arxiv.org/abs/1703.04247, sec. 2.1.

  score = FM + <w, deep>: a factorisation machine and dense layers over the same embeddings.

  Args:
    dim: width of an embedding (paper: 10).
    hidden: widths of the hidden layers, at least one (paper: 400, 400, 400).
    dropout: dropout rate of every hidden layer, in training (paper: 0.5).
    fields: names of the fields and vectors that the model reads; empty: all.

  Departs from the paper: numbers enter the dense layers without embeddings; several candidates are scored as in fm().
  Representations are the last hidden layer and the products, side by side.
  """
  _features.check_widths("deepfm", hidden, 1)
  return DeepFM(num_users, num_items, _features.inputs_of("deepfm", user_features, fields), dim, hidden, dropout)
