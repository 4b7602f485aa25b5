"""Adam with coupled weight decay."""

from __future__ import annotations

import optax

from kd_jax.optimizers._coupled import coupled


def adam(learning_rate, weight_decay, decayed, b1: float = 0.9, b2: float = 0.999,
         eps: float = 1e-8) -> optax.GradientTransformation:
  """Adam: Kingma, Ba, ICLR 2015, https://arxiv.org/abs/1412.6980; weight decay is an L2 term in the gradient."""
  return coupled(optax.adam(learning_rate, b1, b2, eps), weight_decay, decayed)
