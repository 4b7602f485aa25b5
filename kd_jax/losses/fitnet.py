"""Hint regression (FitNet)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from kd_jax.base import KD, Outputs
from kd_jax.losses._experts import by_side, uniform, unit

SEARCH = "weight=log(1e-4, 10); normalise=True|False"


class Projector(nn.Module):
  """Maps the student's vectors to the teacher's width, with one map for users and one for items."""

  hidden: int

  @nn.compact
  def __call__(self, student, teacher, batch) -> Outputs:
    def linear(x, width, name):
      return nn.Dense(width, kernel_init=uniform(x.shape[1]), bias_init=uniform(x.shape[1]), name=name)(x)

    def project(x, side):
      if self.hidden:
        x = nn.relu(linear(x, self.hidden, f"{side}_hidden"))
      return linear(x, teacher.query.shape[1], side)

    users, items = by_side(batch, student.query)
    return Outputs(None, jnp.concatenate([project(users, "users"), project(items, "items")]))


def fitnet(hidden: int = 0, normalise: bool = False) -> KD:
  """Hint regression (FitNet): Romero et al., ICLR 2015, https://arxiv.org/abs/1412.6550.

  |t - r(s)|^2 for the vectors s (student) and t (teacher) of every user and item. The map r is learned, one for users
  and one for items.

  Args:
    hidden: width of a hidden layer of r with ReLU; with 0, r is linear, as recommenders use it.
    normalise: compare vectors of length 1.

  Departs from the paper: there is no factor 1/2; vectors of users and items replace a hidden layer; the loss is
  trained together with the base loss, not before it. With `kd_per=user`, the loss is the sum over the distinct
  entities of a batch, as in Kang et al., KDD 2021, for this baseline.
  """
  def loss(student, teacher, batch):
    s, t = (unit(x.query) if normalise else x.query for x in (student, teacher))
    return jnp.sum((t - s) ** 2, axis=1)

  return KD(loss, adapter=Projector(hidden), teacher_scores=False, rows="entities")
