"""Logistic regression."""

from __future__ import annotations

import flax.linen as nn

from kd_jax.base import FeatureSpec, Outputs
from kd_jax.models import _features


class LR(nn.Module):
  """For each candidate, one weight per value of every field and per number: rows [I] of `linear`."""

  inner_product, constants, tables = False, _features.constants, _features.tables
  num_users: int
  num_items: int
  inputs: _features.Inputs

  def setup(self):
    self.linear = self.param("linear", _features.SMALL, (self.inputs.rows + self.inputs.width, self.num_items))
    self.bias = self.param("bias", _features.SMALL, (self.num_items,))

  def __call__(self, batch, tables=None) -> Outputs:
    scores = _features.linear(self, *_features.read(self, batch["users"]))
    return Outputs(scores).of(batch.get("items"))


def lr(num_users: int, num_items: int, user_features: FeatureSpec | None = None, fields: tuple = ()) -> nn.Module:
  """Logistic regression on features of the context, one regression per candidate: Cox, JRSS B 1958.

  Args:
    fields: names of the fields and vectors that the model reads; empty: all.
  """
  return LR(num_users, num_items, _features.inputs_of("lr", user_features, fields))
