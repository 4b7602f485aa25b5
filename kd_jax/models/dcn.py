"""Deep and cross network (DCN-V2)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from kd_jax.base import FeatureSpec, Outputs
from kd_jax.models import _features

SEARCH = "layers=1|2|3; dropout=0.0|0.1|0.3"


class DCN(nn.Module):
  """Cross layers and, in parallel, dense layers over the embeddings of the fields and the numbers."""

  inner_product, constants, tables = False, _features.constants, _features.tables
  num_users: int
  num_items: int
  inputs: _features.Inputs
  dim: int
  layers: int
  hidden: tuple[int, ...]
  dropout: float

  def setup(self):
    width = len(self.inputs.fields) * self.dim + self.inputs.width
    glorot = nn.initializers.glorot_uniform()
    table = self.inputs.rows, self.dim
    self.embedding = self.param("embedding", _features.SMALL, table) if self.inputs.rows else None
    self.crosses = [(self.param(f"cross{n}", glorot, (width, width)), self.param(f"cross_bias{n}", _features.SMALL,
                    (width,))) for n in range(self.layers)]
    self.tower = _features.Tower(self.hidden, self.dropout)
    deep = self.hidden[-1] if self.hidden else width
    self.head = self.param("head", glorot, (width + deep, self.num_items))
    self.bias = self.param("bias", _features.SMALL, (self.num_items,))

  def __call__(self, batch, tables=None) -> Outputs:
    first = crossed = _features.embedded(self, *_features.read(self, batch["users"]))
    for kernel, bias in self.crosses:
      crossed = first * (crossed @ kernel + bias) + crossed
    query = jnp.concatenate([crossed, self.tower(first)], axis=1)
    return Outputs(query @ self.head + self.bias, query, self.head.T).of(batch.get("items"))


def dcn(num_users: int, num_items: int, user_features: FeatureSpec | None = None, dim: int = 16, layers: int = 2,
        hidden: tuple = (128, 128), dropout: float = 0.0, fields: tuple = ()) -> nn.Module:
  """DCN-V2: Wang, Shivanna, Cheng, Jain, Lin, Hong, Chi, WWW 2021, https://arxiv.org/abs/2008.13535, eq. 1.

  x_{l+1} = x_0 * (W_l x_l + b_l) + x_l, where x_0 has the embeddings of the fields and the vectors of the context side
  by side. Dense layers over x_0 run in parallel (the paper's parallel structure). One linear layer reads both outputs.

  Args:
    dim: width of an embedding.
    layers: number of cross layers.
    hidden: widths of the dense layers.
    dropout: dropout rate of every dense layer, in training.
    fields: names of the fields and vectors that the model reads; empty: all.

  Departs from the paper: all embeddings have the same width. Representations are the inputs of the last layer.
  """
  _features.check_widths("dcn", hidden)
  return DCN(num_users, num_items, _features.inputs_of("dcn", user_features, fields), dim, layers, hidden, dropout)
