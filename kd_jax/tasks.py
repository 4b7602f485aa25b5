"""Base losses: what a network learns from interactions alone. The first candidate is the positive.

Each takes the network's outputs and the batch and returns one value per example, [B].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from kd_jax.base import Array, Batch, Outputs


def bpr(outputs: Outputs, batch: Batch) -> Array:
  """-log sigmoid(positive - negative), mean over negatives. Rendle et al., UAI 2009."""
  del batch
  return jnp.mean(jax.nn.softplus(outputs.scores[:, 1:] - outputs.scores[:, :1]), axis=1)


def bce(outputs: Outputs, batch: Batch) -> Array:
  """Binary cross-entropy of the positive, plus the mean of the negatives'. He et al., WWW 2017."""
  del batch
  positive = optax.sigmoid_binary_cross_entropy(outputs.scores[:, 0], 1.0)
  return positive + jnp.mean(optax.sigmoid_binary_cross_entropy(outputs.scores[:, 1:], 0.0), axis=1)


def softmax(outputs: Outputs, batch: Batch) -> Array:
  """-log softmax of the positive among it and the negatives (sampled softmax)."""
  del batch
  return -jax.nn.log_softmax(outputs.scores)[:, 0]


def cross_entropy(outputs: Outputs, batch: Batch) -> Array:
  """-log softmax of the positive among all items: `outputs` are of all, none is drawn as negative."""
  positive = jnp.take_along_axis(outputs.scores, batch["items"][:, :1], axis=1)[:, 0]
  return jax.nn.logsumexp(outputs.scores, axis=1) - positive


LOSSES = {"bpr": bpr, "bce": bce, "softmax": softmax, "cross_entropy": cross_entropy}
ALL_ITEMS = (cross_entropy,)  # losses of the scores of all items
