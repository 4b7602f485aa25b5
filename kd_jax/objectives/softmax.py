"""Sampled softmax."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kd_jax.base import Objective


def softmax() -> Objective:
  """-log softmax of the positive over the positive and the negatives (sampled softmax).

  On tags: -log softmax over all candidates, mean over the true labels (Mahajan et al., ECCV 2018); 0 if none is true.
  """

  def loss(outputs, batch, rng):
    if "labels" not in batch:
      return -jax.nn.log_softmax(outputs.scores)[:, 0]
    true = batch["labels"]
    found = -jnp.sum(true * jax.nn.log_softmax(outputs.scores), axis=1)
    return found / jnp.maximum(jnp.sum(true, axis=1), 1)

  return Objective(loss, on=("interactions", "tags"))
