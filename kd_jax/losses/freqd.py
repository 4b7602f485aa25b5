"""Distillation of graph frequencies (FreqD)."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.base import KD, Array
from kd_jax.losses import _blocks
from kd_jax.losses._experts import by_row, by_side, entity, uniform, unit


class Filtered(NamedTuple):
  """Both networks' vectors [M + N, dt] after the filter."""

  student: Array
  teacher: Array


def _hidden(weight, x, w, b):
  """[P, R, width]: vectors x [P, R, ds] through the first layer, times their weights [P, R]."""
  return weight[..., None] * nn.relu(x @ w + b)


def _places(where, i):
  """A group is who has an n-th neighbour."""
  nth, number = _blocks.of_turn(i, where.blocks)
  row = _blocks.entities(where, nth, number)
  return row, (row, nth[:, None]), (row, nth[:, None]), (), ()


class Filter(nn.Module):
  """Rows of H P(S) and H T; P, one for users and one for items, is an MLP [ds, hidden * dt, dt] with ReLU."""

  alpha: float
  keep: float
  hidden: float

  @nn.compact
  def __call__(self, student, teacher, batch) -> Filtered:
    rng, edges = self.make_rng("noise"), batch["neighbour_weights"]
    kept = jax.vmap(lambda i: jax.random.bernoulli(jax.random.fold_in(rng, i), self.keep, edges.shape[1:]))(
        entity(batch))
    edges = self.alpha * edges * kept / self.keep
    filtered = lambda own, near, edges: (1 - self.alpha) * own + edges @ near
    sides = zip(*(by_side(batch, x) for x in (student.query, student.items, edges)), strict=True)
    projected = [self._project(side, teacher.query.shape[1], filtered, *rows)
                 for side, rows in zip(("users", "items"), sides, strict=True)]
    of_teacher = by_row(lambda row: filtered(*row), (teacher.query, teacher.items, edges))
    return Filtered(jnp.concatenate(projected), of_teacher)

  def _project(self, side, dt, filtered, own, near, edges):
    """H P(S) = (H relu(S W + b)) W' + (H 1) b': the filter comes before the dear second layer."""
    ds, width = own.shape[1], round(self.hidden * dt)
    layer = lambda name, m, n: (self.param(f"{side}_{name}", uniform(m), (m, n)),
                                self.param(f"{side}_{name}_bias", uniform(m), (n,)))
    (w1, b1), (w2, b2) = layer("hidden", ds, width), layer("out", width, dt)
    weights = jnp.concatenate([jnp.full((len(own), 1), 1 - self.alpha), edges], axis=1)  # [rows, 1 + n]
    vectors = jnp.concatenate([own[:, None], near], axis=1)
    where = _blocks.groups(weights != 0)  # edges that were dropped cost nothing
    mixed = _blocks.summed(_hidden, _places, len(own), where, _blocks.turns(where.blocks), weights, vectors, w1, b1)
    return mixed @ w2 + (1 - self.alpha + jnp.sum(edges, axis=1, keepdims=True)) * b2


def freqd(alpha: float = 0.5, neighbours: int = 5, keep: float = 0.5, hidden: float = 5.0, normalise: bool = True,
          item_weight: float = 0.5) -> KD:
  """FreqD: Zhu, Zhang, KDD 2025, https://arxiv.org/abs/2411.10676.

  1 - cos(H P(S), H T), or the squared distance, of every user's and item's vector after the low-pass filter
  H = alpha A + (1 - alpha) I. A is the normalised matrix of a graph in which everyone chooses the users, or
  items, that it most often occurs with; P is a learnt MLP from the student's width to the teacher's.

  Args:
    alpha: weight of the neighbours against one's own vector.
    neighbours: how many everyone chooses.
    keep: probability that an edge is kept, drawn afresh for every row and step; those kept are divided by it.
    hidden: width of the MLP's hidden layer, as a multiple of the teacher's.
    normalise: cosines; else squared distances.
    item_weight: factor of the items' terms. A user meets two items, so the authors halve them.

  Defaults are those of the authors' code for Gowalla. Departs from it: whoever is chosen by very many keeps
  the 4 * neighbours heaviest edges; items that never occur together are no neighbours, where the code fills
  up with arbitrary ones; one MLP, 5 times as wide, for the mean of 5; no dropout in it; the student's
  representations, not its tables; an item that is both a positive and a negative of a batch counts once with
  --kd_per=user. Of the paper's filters this is the one in the code.
  """
  def loss(student, teacher, batch):
    s, t = student
    if normalise:
      apart = 1 - jnp.sum(unit(s) * unit(t), axis=1)
    else:
      apart = jnp.sum((s - t) ** 2, axis=1)
    return jnp.where(batch["is_user"], 1.0, item_weight) * apart

  return KD(loss, adapter=Filter(alpha, keep, hidden), teacher_scores=False, rows="entities", neighbours=neighbours)
