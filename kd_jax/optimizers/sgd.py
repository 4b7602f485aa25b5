"""Stochastic gradient descent with coupled weight decay."""

from __future__ import annotations

import optax

from kd_jax.optimizers._coupled import coupled


def sgd(learning_rate, weight_decay, decayed, momentum: float = 0.0,
        nesterov: bool = False) -> optax.GradientTransformation:
  """Stochastic gradient descent; weight decay is an L2 term in the gradient."""
  return coupled(optax.sgd(learning_rate, momentum or None, nesterov), weight_decay, decayed)
