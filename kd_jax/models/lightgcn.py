"""LightGCN."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Array, Dataset, Outputs
from kd_jax.models._inner_product import inner_product

SEARCH = "layers=1|2|3|4; init_std=log(1e-3, 1)"

_TERMS = 16  # of an unrolled sum; chosen by measurements


class LightGCN(nn.Module):
  """MF on embeddings that are averaged over `layers` propagations on the training graph."""

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

  def constants(self, dataset: Dataset) -> dict[str, Any]:
    """The training graph with weights 1 / sqrt(degree user * degree item), in the form of `plan_sums`."""
    users, items = dataset.train.users, dataset.train.items + self.num_users
    rows, columns = np.concatenate([users, items]), np.concatenate([items, users])
    degrees = np.bincount(rows, minlength=self.num_users + self.num_items)
    graph = plan_sums(rows, columns, 1.0 / np.sqrt(degrees[rows] * degrees[columns]), len(degrees))
    return dict(zip(("order", "place", "levels"), graph, strict=True))

  def tables(self):
    graph = tuple(self.get_variable("constants", k) for k in ("order", "place", "levels"))
    nodes = average(jnp.concatenate([self.user, self.item]), graph, self.layers)
    return nodes[: self.num_users], nodes[self.num_users :]

  def __call__(self, batch, tables=None) -> Outputs:
    user, item = self.tables() if tables is None else tables
    return inner_product(user[batch["users"]], item, batch.get("items"))


def plan_sums(rows: np.ndarray, columns: np.ndarray, weights: np.ndarray, size: int):
  """Plans the product of a sparse matrix [size, size] and a dense one as sums of few rows: gathers, no scatters.

  A level has two groups of sums; each group is (rows to gather [n, terms], their weights). Sums of the first group are
  rows of the result. Sums of the second group are parts of longer sums; the next level gathers them. Returns `order`
  [size], the row of the matrix that each row of the result is; the inverse of `order`; and the levels, which gather
  from rows in that order.
  """
  by_row = np.argsort(rows, kind="stable")
  columns, weights, terms = columns[by_row], weights[by_row], np.bincount(rows, minlength=size)
  left, levels, order = np.arange(size, dtype=np.int32), [], []
  while len(left):
    starts, longer = np.cumsum(terms) - terms, terms > _TERMS
    parts = -(-terms[longer] // _TERMS)
    nth = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    of_parts = np.repeat(starts[longer], parts) + nth * _TERMS
    terms_of_parts = np.minimum(np.repeat(terms[longer], parts) - nth * _TERMS, _TERMS)
    levels.append((_terms(starts[~longer], terms[~longer], columns, weights),
                   _terms(of_parts, terms_of_parts, columns, weights)))
    order.append(left[~longer])
    left, terms, columns, weights = left[longer], parts, np.arange(len(nth)), np.ones(len(nth))
  order = np.concatenate(order)
  place = np.argsort(order).astype(np.int32)
  levels[0] = tuple((place[gathered], weights) for gathered, weights in levels[0])
  return order, place, tuple(levels)


def _terms(starts, terms, columns, weights):
  """The next columns and weights from each of `starts` [n], both [n, _TERMS].

  Entries after the first `terms` [n] are padding of weight 0.
  """
  inside = np.arange(_TERMS) < terms[:, None]
  place = np.where(inside, starts[:, None] + np.arange(_TERMS), 0)
  return np.where(inside, columns[place], 0).astype(np.int32), np.where(inside, weights[place], 0).astype(np.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def average(nodes: Array, graph: tuple[Array, Array, Any], layers: int) -> Array:
  """The mean of A^0 x .. A^layers x for x = `nodes` [size, D] and a symmetric matrix A, given as `graph`.

  The gradient is the same mean of the cotangent. `graph` is the result of `plan_sums`: the order of the rows, the place
  of each row in that order, and the levels.
  """
  order, place, levels = graph
  x = total = _rows(nodes, order)
  for _ in range(layers):
    results = []
    for done, parts in levels:
      results.append(_sums(x, *done))
      x = _sums(x, *parts)
    x = jnp.concatenate(results)
    total = total + x
  return _rows(total, place) / (layers + 1)


average.defvjp(lambda nodes, graph, layers: (average(nodes, graph, layers), graph),
               lambda layers, graph, cotangent: (average(cotangent, graph, layers), None))


def _rows(x, places):
  return x.at[places].get(mode="promise_in_bounds")


def _sums(x, gathered, weights):
  """Weighted sums of gathered rows; the loop is unrolled, so that XLA adds in registers, on all cores."""
  return sum(weights[:, j, None] * _rows(x, gathered[:, j]) for j in range(gathered.shape[1]))


def lightgcn(
    num_users: int, num_items: int, dim: int = 64, layers: int = 3, init_std: float = 0.1) -> nn.Module:
  """LightGCN: He, Deng, Wang, Li, Zhang, Wang, SIGIR 2020, https://arxiv.org/abs/2002.02126, eqs. 3-6.

  Layers are averaged with equal weights 1 / (layers + 1). The L2 penalty of the authors' code is `embedding_l2`.
  """
  return LightGCN(num_users, num_items, dim, layers, init_std)
