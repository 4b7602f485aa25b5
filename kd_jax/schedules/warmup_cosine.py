"""Linear warm-up, then cosine decay."""

from __future__ import annotations

import optax

from kd_jax.base import InputError


def warmup_cosine(learning_rate, steps_per_epoch, epochs, warmup: float = 1.0, final: float = 0.0) -> optax.Schedule:
  """Rises linearly from 0 to the learning rate in `warmup` epochs, then decays to `final` times it along half a cosine.

  Raises InputError if the warm-up is not shorter than all epochs.
  """
  if not warmup < epochs:
    raise InputError(f"warmup={warmup}: must be less than the {epochs} epochs")
  return optax.warmup_cosine_decay_schedule(0.0, learning_rate, round(warmup * steps_per_epoch),
                                            steps_per_epoch * epochs, final * learning_rate)
