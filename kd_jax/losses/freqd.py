"""Distillation of graph frequencies (FreqD)."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.base import KD, Array
from kd_jax.losses import _blocks
from kd_jax.losses._experts import by_row, by_side, entity, uniform, unit

SEARCH = "weight=log(1e-4, 10); alpha=uniform(0.1, 0.9); keep=uniform(0.1, 0.9)"


class Filtered(NamedTuple):
  """The vectors [M + N, dt] of both networks after the filter."""

  student: Array
  teacher: Array


def _hidden(weight, x, w, b):
  """[P, R, width]: the first layer applied to vectors x [P, R, ds], times their weights [P, R]."""
  return weight[..., None] * nn.relu(x @ w + b)


def _places(where, i):
  """Group n holds the entities whose n-th vector (0: their own, then neighbours) has a weight that is not 0."""
  nth, number = _blocks.of_turn(i, where.blocks)
  row = _blocks.entities(where, nth, number)
  return row, (row, nth[:, None]), (row, nth[:, None]), (), ()


class Filter(nn.Module):
  """The filtered vectors H P(S) and H T.

  P is an MLP [ds, hidden * dt, dt] with ReLU, one for users and one for items.
  """

  alpha: float
  keep: float
  hidden: float

  @nn.compact
  def __call__(self, student, teacher, batch) -> Filtered:
    rng, edges = self.make_rng("noise"), batch["neighbour_weights"]
    kept = jax.vmap(lambda i: jax.random.bernoulli(jax.random.fold_in(rng, i), self.keep, edges.shape[1:]))(
        entity(batch))
    edges = self.alpha * edges * kept / self.keep

    def filtered(own, near, edges):
      return (1 - self.alpha) * own + edges @ near

    sides = zip(*(by_side(batch, x) for x in (student.query, student.items, edges)), strict=True)
    projected = [self._project(side, teacher.query.shape[1], filtered, *rows)
                 for side, rows in zip(("users", "items"), sides, strict=True)]
    of_teacher = by_row(lambda row: filtered(*row), (teacher.query, teacher.items, edges))
    return Filtered(jnp.concatenate(projected), of_teacher)

  def _project(self, side, dt, filtered, own, near, edges):
    """H P(S) = (H relu(S W + b)) W' + (H 1) b'.

    The filter is applied before the second layer, because that layer is expensive.
    """
    ds, width = own.shape[1], round(self.hidden * dt)

    def layer(name, m, n):
      return (self.param(f"{side}_{name}", uniform(m), (m, n)),
                                    self.param(f"{side}_{name}_bias", uniform(m), (n,)))

    (w1, b1), (w2, b2) = layer("hidden", ds, width), layer("out", width, dt)
    weights = jnp.concatenate([jnp.full((len(own), 1), 1 - self.alpha), edges], axis=1)  # [rows, 1 + n]
    vectors = jnp.concatenate([own[:, None], near], axis=1)
    where = _blocks.groups(weights != 0)  # dropped edges are not computed
    mixed = _blocks.summed(_hidden, _places, len(own), where, _blocks.turns(where.blocks), weights, vectors, w1, b1)
    return mixed @ w2 + (1 - self.alpha + jnp.sum(edges, axis=1, keepdims=True)) * b2


def freqd(alpha: float = 0.5, neighbours: int = 5, keep: float = 0.5, hidden: float = 5.0, normalise: bool = True,
          item_weight: float = 0.5) -> KD:
  """FreqD: Zhu, Zhang, KDD 2025, https://arxiv.org/abs/2411.10676.

  1 - cos(H P(S), H T), or the squared distance, for the vectors S (student) and T (teacher) of every user and item. H =
  alpha A + (1 - alpha) I is a low-pass filter. A is the normalised adjacency matrix of a graph: every user chooses the
  users with which it co-occurs most often, and every item chooses items in the same way. P is a learned MLP from the
  student's width to the teacher's.

  Args:
    alpha: weight of the neighbours; the entity's own vector has weight 1 - alpha.
    neighbours: number of neighbours that every user or item chooses.
    keep: probability of keeping an edge, drawn again for every row and step; kept edges are divided by it.
    hidden: width of the MLP's hidden layer, as a multiple of the teacher's width.
    normalise: use cosines; if False, squared distances.
    item_weight: factor of the items' terms. The authors use 1/2, since a user comes with two items (a positive
      and a negative).

  Defaults are from the authors' code for Gowalla. Departs from that code: an entity that very many others choose keeps
  only its 4 * neighbours heaviest edges; items that never co-occur are not neighbours, while the code fills up with
  arbitrary items; one MLP, 5 times as wide, replaces the mean of 5 MLPs; the MLP has no dropout; the student's
  representations are used, not its embedding tables; with `kd_per=user`, an item that is both a positive and a negative
  of a batch counts once. The paper has several filters; this is the one in the code.
  """
  def loss(student, teacher, batch):
    s, t = student
    if normalise:
      apart = 1 - jnp.sum(unit(s) * unit(t), axis=1)
    else:
      apart = jnp.sum((s - t) ** 2, axis=1)
    return jnp.where(batch["is_user"], 1.0, item_weight) * apart

  return KD(loss, adapter=Filter(alpha, keep, hidden), teacher_scores=False, rows="entities", neighbours=neighbours)
