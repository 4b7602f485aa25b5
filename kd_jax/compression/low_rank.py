"""Low-rank factorisation of matrices."""

from __future__ import annotations

import numpy as np

from kd_jax.base import Compressor


def low_rank(rank: int = 8) -> Compressor:
  """The best approximation of each matrix by a product of [rows, rank] and [rank, width]: truncated SVD.

  For matrices that have fewer numbers so. Sainath et al.: Low-rank matrix factorization for deep neural network
  training, ICASSP 2013.
  """
  return Compressor(lambda matrices, popularity: {name: factors(x, rank) for name, x in matrices.items()
                                                  if rank * sum(x.shape) < x.size}, lambda parts, shape: product(parts))


def factors(x: np.ndarray, rank: int) -> dict[str, np.ndarray]:
  """{"rows": [rows, rank], "basis": [rank, width]} of the truncated SVD; singular values are in `rows`."""
  left, values, right = np.linalg.svd(x.astype(np.float64), full_matrices=False)
  return {"rows": (left[:, :rank] * values[:rank]).astype(np.float32), "basis": right[:rank].astype(np.float32)}


def product(parts: dict[str, np.ndarray]) -> np.ndarray:
  """The matrix of `factors`."""
  return parts["rows"] @ parts["basis"]
