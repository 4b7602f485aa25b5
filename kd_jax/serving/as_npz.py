"""Networks whose scores are inner products, in NumPy alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kd_jax.serving import layout
from kd_jax.serving.layout import Contents


def read(contents: Contents) -> Callable[..., np.ndarray]:
  """score(query [b, D]) -> [b, I]."""
  table = np.asarray(layout.table(contents.weights, "item"))
  return lambda query: query @ table.T
