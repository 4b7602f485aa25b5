"""LightGCN."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np

from kd_jax.base import Dataset, Outputs
from kd_jax.models.scoring import inner_product


class LightGCN(nn.Module):
  """MF on embeddings averaged over `layers` propagations along the training graph."""

  inner_product = True
  num_users: int
  num_items: int
  dim: int
  layers: int
  init_std: float

  def setup(self):
    init = nn.initializers.normal(self.init_std)
    self.user = self.param("user", init, (self.num_users, self.dim))
    self.item = self.param("item", init, (self.num_items, self.dim))

  def constants(self, dataset: Dataset) -> dict[str, np.ndarray]:
    """Edges of the training graph [N] with their weights 1 / sqrt(degree user * degree item)."""
    users, items = dataset.train.users, dataset.train.items
    degrees = np.bincount(users, minlength=self.num_users), np.bincount(items, minlength=self.num_items)
    weights = 1.0 / np.sqrt(degrees[0][users] * degrees[1][items])
    return {"users": users, "items": items, "weights": weights.astype(np.float32)}

  def tables(self):
    edges = {k: self.get_variable("constants", k) for k in ("users", "items", "weights")}
    user, item = self.user, self.item
    user_sum, item_sum = user, item
    for _ in range(self.layers):
      to_user = edges["weights"][:, None] * item[edges["items"]]  # [N, D]
      to_item = edges["weights"][:, None] * user[edges["users"]]
      user = jax.ops.segment_sum(to_user, edges["users"], self.num_users)
      item = jax.ops.segment_sum(to_item, edges["items"], self.num_items)
      user_sum, item_sum = user_sum + user, item_sum + item
    return user_sum / (self.layers + 1), item_sum / (self.layers + 1)

  def __call__(self, batch, tables=None) -> Outputs:
    user, item = self.tables() if tables is None else tables
    return inner_product(user[batch["users"]], item, batch.get("items"))


def lightgcn(
    num_users: int, num_items: int, dim: int = 64, layers: int = 3, init_std: float = 0.1) -> nn.Module:
  """LightGCN. He, Deng, Wang, Li, Zhang, Wang, SIGIR 2020, https://arxiv.org/abs/2002.02126, eqs. 3-6.

  Layers are averaged with equal weights 1 / (layers + 1).
  """
  return LightGCN(num_users, num_items, dim, layers, init_std)
