"""Bayesian personalised ranking."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kd_jax.base import Objective


def bpr() -> Objective:
  """-log sigmoid(positive - negative), mean over negatives. Rendle et al., UAI 2009."""

  def loss(outputs, batch, rng):
    return jnp.mean(jax.nn.softplus(outputs.scores[:, 1:] - outputs.scores[:, :1]), axis=1)

  return Objective(loss)
