"""Multilayer perceptron (MLP)."""

from __future__ import annotations

import flax.linen as nn

from kd_jax.base import FeatureSpec, Outputs
from kd_jax.models import _features

SEARCH = "dropout=0.0|0.1|0.3"


class MLP(nn.Module):
  """Dense layers over the embeddings of the fields and the numbers."""

  inner_product, constants, tables = False, _features.constants, _features.tables
  num_users: int
  num_items: int
  inputs: _features.Inputs
  hidden: tuple[int, ...]
  dim: int
  dropout: float

  def setup(self):
    table = self.inputs.rows, self.dim
    self.embedding = self.param("embedding", _features.SMALL, table) if self.inputs.rows else None
    self.tower = _features.Tower(self.hidden, self.dropout)
    last = self.hidden[-1] if self.hidden else len(self.inputs.fields) * self.dim + self.inputs.width
    self.head = self.param("head", nn.initializers.glorot_uniform(), (last, self.num_items))
    self.bias = self.param("bias", _features.SMALL, (self.num_items,))

  def __call__(self, batch, tables=None) -> Outputs:
    query = self.tower(_features.embedded(self, *_features.read(self, batch["users"])))
    return Outputs(query @ self.head + self.bias, query, self.head.T).of(batch.get("items"))


def mlp(num_users: int, num_items: int, user_features: FeatureSpec | None = None, hidden: tuple = (128,),
        dim: int = 16, dropout: float = 0.0, fields: tuple = ()) -> nn.Module:
  """Multilayer perceptron (MLP): Rumelhart, Hinton, Williams, Nature 1986; embeddings as Covington et al., RecSys 2016.

  scores = W relu(... relu(W_1 [v_1; ...; v_F; x] + b_1)) + b, where v are the embeddings of the fields of the context
  and x has its vectors side by side. Representations are the last hidden layer, and the rows of W.

  Args:
    hidden: widths of the hidden layers; empty: a linear model over the embeddings.
    dim: width of an embedding.
    dropout: dropout rate of every hidden layer, in training.
    fields: names of the fields and vectors that the model reads; empty: all.
  """
  _features.check_widths("mlp", hidden)
  return MLP(num_users, num_items, _features.inputs_of("mlp", user_features, fields), hidden, dim, dropout)
