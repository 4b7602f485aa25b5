"""Orthogonal projections for distillation (VkD)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from kd_jax.base import KD, InputError, Outputs
from kd_jax.losses._experts import by_side, unit

SEARCH = "weight=log(1e-4, 10); distance=smooth_l1|mse"

NORMALISATIONS = ("layer_norm", "standardise", "unit", "centre", "none")
DISTANCES = ("smooth_l1", "squared")


class Orthogonal(nn.Module):
  """Maps the student's vectors to the teacher's width, with an orthogonal map for users and one for items."""

  @nn.compact
  def __call__(self, student, teacher, batch) -> Outputs:
    users, items = by_side(batch, student.query)
    ds, dt = student.query.shape[1], teacher.query.shape[1]
    projected = [users @ self._map("users", ds, dt), items @ self._map("items", ds, dt)]
    return Outputs(None, jnp.concatenate(projected))

  def _map(self, side, ds, dt):
    """An orthogonal map [ds, dt]: its rows are orthonormal if ds <= dt, else its columns.

    It is the factor Q in the QR decomposition of a free matrix, with a positive diagonal of R.
    """
    # The initial map is uniform over orthogonal maps; Saxe et al., ICLR 2014.
    free = self.param(side, nn.initializers.orthogonal(), (max(ds, dt), min(ds, dt)))
    root = jnp.linalg.cholesky(free.T @ free)  # = R^T: many times faster than a QR decomposition and its gradient
    q = jax.scipy.linalg.solve_triangular(root, free.T, lower=True)
    return q if ds <= dt else q.T


def vkd(normalisation: str = "layer_norm", distance: str = "smooth_l1") -> KD:
  """Orthogonal projections (VkD): Miles, Elezi, Deng, CVPR 2024, https://arxiv.org/abs/2403.06213.

  The distance between N(t) and s P for the vectors s (student) and t (teacher) of every user and item. P is a learned
  map with P P^T = I (so P keeps the student's inner products), one for users and one for items. N normalises the
  teacher's vectors.

  Args:
    normalisation: N. "layer_norm": mean 0 and variance 1 in each vector, as in the authors' code. The next three are
      computed over the batch's users and over its items separately. "standardise": mean 0 and variance 1 in each
      dimension. "centre": mean 0. "unit": mean 0, then teacher's and student's vectors are scaled to length 1, as in
      public recommender code. "none": no normalisation.
    distance: "smooth_l1": the mean over dimensions of the Huber loss with threshold 1, as in the authors' code.
      "squared": the sum over dimensions of squares, as in public recommender code; it is about 2 x the teacher's width
      times as large.

  Departs from the paper: vectors of users and items replace a hidden layer; P is the factor Q of a QR decomposition,
  not a matrix exponential (both give the same set of P); whitening is left out. The authors' code takes the mean over
  the batch; use `reduction=mean` for that. Public recommender code draws new users and items for this loss; here,
  `kd_per=user` sums over the distinct users and items of the batch.
  """
  if normalisation not in NORMALISATIONS:
    raise InputError(f"normalisation={normalisation!r}: choose from {', '.join(NORMALISATIONS)}")
  if distance not in DISTANCES:
    raise InputError(f"distance={distance!r}: choose from {', '.join(DISTANCES)}")
  in_batch = normalisation in ("standardise", "unit", "centre")

  def loss(student, teacher, batch):
    s, t = student.query, teacher.query
    if normalisation == "layer_norm":
      t = (t - t.mean(axis=1, keepdims=True)) / jnp.sqrt(t.var(axis=1, keepdims=True) + 1e-5)
    if in_batch:
      centre, variance = _moments(t, batch)
      t = t - centre
      if normalisation == "standardise":
        t = t / jnp.sqrt(variance + 1e-8)
      elif normalisation == "unit":
        s, t = unit(s), unit(t)
    if distance == "smooth_l1":
      return jnp.mean(optax.huber_loss(s, t), axis=1)
    return jnp.sum((t - s) ** 2, axis=1)

  return KD(loss, adapter=Orthogonal(), teacher_scores=False, rows="entities", in_batch=in_batch)


def _moments(x, batch):
  """(mean, variance) [E, D] over the rows of positive weight on the same side (users or items) as each row."""
  sides = jnp.stack([batch["is_user"], ~batch["is_user"]]) * batch["weight"]  # [2, E]
  sides /= jnp.maximum(jnp.sum(sides, axis=1, keepdims=True), 1e-9)
  own = jnp.where(batch["is_user"], 0, 1)
  mean = (sides @ x)[own]
  return mean, (sides @ (x - mean) ** 2)[own]
