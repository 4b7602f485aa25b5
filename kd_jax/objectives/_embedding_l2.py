"""L2 regularisation of a batch's embeddings, an optional term of the base loss."""

from __future__ import annotations

import jax.numpy as jnp

from kd_jax.base import Array, Batch

TABLES = ("user", "item")  # the regularised parameters


def embeddings(module) -> tuple[Array, Array]:
  """The embedding tables [U, D] and [I, D], before any graph propagation."""
  return tuple(getattr(module, table) for table in TABLES)


def embedding_norms(users: Array, items: Array, batch: Batch) -> Array:
  """Half the squared norms [B] of the embeddings of an interaction's user, its item, and its negatives (their mean).

  He et al., SIGIR 2020, https://arxiv.org/abs/2002.02126, eq. 15, for the rows of a batch, as in the authors' code.
  """
  def norms(rows):
    return jnp.sum(rows**2, axis=-1) / 2

  of_items = norms(items[batch["items"]])
  negatives = jnp.sum(of_items[:, 1:], axis=1) / max(of_items.shape[1] - 1, 1)
  return norms(users[batch["users"]]) + of_items[:, 0] + negatives
