"""Adam with decoupled weight decay."""

from __future__ import annotations

import optax


def adamw(learning_rate, weight_decay, decayed, b1: float = 0.9, b2: float = 0.999,
          eps: float = 1e-8) -> optax.GradientTransformation:
  """AdamW: Loshchilov, Hutter, ICLR 2019, https://arxiv.org/abs/1711.05101."""
  return optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=decayed)
