"""Cosine decay."""

from __future__ import annotations

import optax


def cosine(learning_rate, steps_per_epoch, epochs, final: float = 0.0) -> optax.Schedule:
  """Decays from the learning rate to `final` times the learning rate over all epochs, along half a cosine.

  Loshchilov, Hutter, ICLR 2017, https://arxiv.org/abs/1608.03983, without restarts.
  """
  return optax.cosine_decay_schedule(learning_rate, steps_per_epoch * epochs, final)
