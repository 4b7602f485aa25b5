"""Cross-entropy over all items."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kd_jax.base import Objective, Outputs

_SCORES = 2**25  # scores computed together: 128 MB


def cross_entropy() -> Objective:
  """-log softmax of the positive among all items; no negatives are drawn."""

  def of_products(outputs, batch, rng):
    """Computes large scores [B, I] in parts, and again for the gradient, to save memory."""
    size, rows = outputs.query.shape[0], max(1, _SCORES // outputs.items.shape[0])
    parts = next(n for n in range(1, size + 1) if size % n == 0 and size // n <= rows)
    if parts == 1:
      return _loss(outputs, batch, rng)
    # Each part contains rows of the batch from every device.

    def cut(x):
      return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)

    def part(x):
      return _loss(Outputs(x[0] @ outputs.items.T), {"items": x[1]}, rng)

    return jax.lax.map(jax.checkpoint(part), (cut(outputs.query), cut(batch["items"]))).T.reshape(size)

  return Objective(_loss, all_items=True, of_products=of_products)


def _loss(outputs, batch, rng):
  positive = jnp.take_along_axis(outputs.scores, batch["items"][:, :1], axis=1)[:, 0]
  return jax.nn.logsumexp(outputs.scores, axis=1) - positive
