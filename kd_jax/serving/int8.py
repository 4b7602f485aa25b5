"""Tables of vectors in int8: each row has its own scale, row = scale * integers of -127..127."""

from __future__ import annotations

from typing import Any

import numpy as np

MOST = 127


def quantise(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(integers [n, D] int8, scales [n] float32) of a table [n, D]: symmetric, rounded to the nearest integer."""
  largest = np.abs(table).max(axis=1, initial=0)
  scale = np.where(largest > 0, largest / MOST, 1).astype(np.float32)
  return np.rint(table / scale[:, None]).astype(np.int8), scale


def restore(integers: Any, scale: Any) -> Any:
  """The table [n, D] float32; `integers` unchanged if its scale is None. NumPy or JAX."""
  return integers if scale is None else integers * scale[:, None]
