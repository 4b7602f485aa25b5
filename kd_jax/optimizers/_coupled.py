"""Weight decay as an L2 term in the gradient, as usual for Adam in the literature."""

from __future__ import annotations

from typing import Any

import optax


def coupled(optimizer: optax.GradientTransformation, weight_decay: float,
            decayed: Any) -> optax.GradientTransformation:
  """`optimizer` with `weight_decay` times the parameters added to the gradient at every step, for all rows."""
  return optax.chain(optax.add_decayed_weights(weight_decay, decayed), optimizer) if weight_decay else optimizer
