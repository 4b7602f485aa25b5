"""Bayesian personalised ranking."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kd_jax.base import Objective


def bpr() -> Objective:
  """-log sigmoid(positive - negative). Rendle et al., UAI 2009.

  The paper draws one negative. With n of them it is the mean over the n triples, so that an interaction has the same
  weight beside L2 and distillation; `bce` has the sum, as its paper has.
  """

  def loss(outputs, batch, rng):
    return jnp.mean(jax.nn.softplus(outputs.scores[:, 1:] - outputs.scores[:, :1]), axis=1)

  return Objective(loss)
