"""Binary cross-entropy."""

from __future__ import annotations

import jax.numpy as jnp
from optax import sigmoid_binary_cross_entropy

from kd_jax.base import Objective


def bce() -> Objective:
  """Binary cross-entropy of the positive, plus the sum over the negatives. He et al., WWW 2017, eq. 7.

  With n negatives, they count n times as much as the positive; in the paper, n = 3 to 6 was best. On labelled data:
  binary cross-entropy of the labels, mean over all candidates. One candidate: logistic regression.
  """

  def loss(outputs, batch, rng):
    if "labels" in batch:
      return jnp.mean(sigmoid_binary_cross_entropy(outputs.scores, batch["labels"]), axis=1)
    positive = sigmoid_binary_cross_entropy(outputs.scores[:, 0], 1.0)
    return positive + jnp.sum(sigmoid_binary_cross_entropy(outputs.scores[:, 1:], 0.0), axis=1)

  return Objective(loss, on=("interactions", "tags", "clicks"))
