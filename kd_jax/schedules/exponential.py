"""Exponential decay."""

from __future__ import annotations

import optax


def exponential(learning_rate, steps_per_epoch, decay: float = 0.95) -> optax.Schedule:
  """Multiplies the learning rate by `decay` after every epoch."""
  return optax.exponential_decay(learning_rate, steps_per_epoch, decay, staircase=True)
