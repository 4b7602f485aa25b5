"""Matrix factorisation."""

from __future__ import annotations

import flax.linen as nn

from kd_jax.base import Outputs
from kd_jax.models._inner_product import inner_product

SEARCH = "init_std=log(1e-3, 1)"


class MF(nn.Module):
  """The inner product of a user's and an item's vector. Tables `user` [U, D] and `item` [I, D]."""

  inner_product = True
  num_users: int
  num_items: int
  dim: int
  init_std: float

  def setup(self):
    init = nn.initializers.normal(self.init_std)
    self.user = self.param("user", init, (self.num_users, self.dim))
    self.item = self.param("item", init, (self.num_items, self.dim))

  def tables(self):
    return self.user, self.item

  def __call__(self, batch, tables=None) -> Outputs:
    user, item = self.tables() if tables is None else tables
    return inner_product(user[batch["users"]], item, batch.get("items"))


def mf(num_users: int, num_items: int, dim: int = 64, init_std: float = 0.01) -> nn.Module:
  """Matrix factorisation: score = <user, item>, no biases. Rendle et al., "BPR", UAI 2009.

  Initialised from N(0, init_std), as in the distillation literature.
  """
  return MF(num_users, num_items, dim, init_std)
