"""LightGCN."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Array, Dataset, Outputs
from kd_jax.models.scoring import inner_product

_BLOCK = 500_000  # numbers gathered at a time, measured: they fit in a core's cache


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
    edges = tuple(self.get_variable("constants", k) for k in ("users", "items", "weights"))
    user, item = self.user, self.item
    user_sum, item_sum = user, item
    for _ in range(self.layers):
      user, item = propagate(user, item, edges)
      user_sum, item_sum = user_sum + user, item_sum + item
    return user_sum / (self.layers + 1), item_sum / (self.layers + 1)

  def __call__(self, batch, tables=None) -> Outputs:
    user, item = self.tables() if tables is None else tables
    return inner_product(user[batch["users"]], item, batch.get("items"))


@jax.custom_vjp
def propagate(user: Array, item: Array, edges: tuple[Array, Array, Array]) -> tuple[Array, Array]:
  """(A item [U, D], A^T user [I, D]) for A [U, I] of `edges`: users, items, weights, all [N].

  In blocks of edges, so that no [N, D] is written to memory. Its own transpose: so is its gradient.
  """
  size = max(1, min(_BLOCK // user.shape[1], edges[0].shape[0]))
  blocks = [jnp.pad(x, (0, -x.shape[0] % size)).reshape(-1, size) for x in edges]  # padded with weight 0

  def block(sums, x):
    users, items, weights = x
    to_user = sums[0].at[users].add(weights[:, None] * item[items])
    return (to_user, sums[1].at[items].add(weights[:, None] * user[users])), None

  return jax.lax.scan(block, (jnp.zeros_like(user), jnp.zeros_like(item)), blocks)[0]


propagate.defvjp(lambda user, item, edges: (propagate(user, item, edges), edges),
                 lambda edges, cotangents: (*propagate(*cotangents, edges), None))


def lightgcn(
    num_users: int, num_items: int, dim: int = 64, layers: int = 3, init_std: float = 0.1) -> nn.Module:
  """LightGCN. He, Deng, Wang, Li, Zhang, Wang, SIGIR 2020, https://arxiv.org/abs/2002.02126, eqs. 3-6.

  Layers are averaged with equal weights 1 / (layers + 1).
  """
  return LightGCN(num_users, num_items, dim, layers, init_std)
