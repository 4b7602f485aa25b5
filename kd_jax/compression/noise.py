"""A worse model of the same size, for tables on stability: what do students of a noisy teacher learn?"""

from __future__ import annotations

import numpy as np

from kd_jax.base import Compressor


def noise(scale: float = 0.5, seed: int = 0) -> Compressor:
  """Compresses nothing: adds normal noise to every matrix, with `scale` x the standard deviation of its numbers.

  With inner products, every score then has normal noise of mean 0, which is large where user or item vectors are long.
  """

  def pack(matrices, popularity):
    rng = np.random.default_rng(seed)
    return {name: {"noisy": (x + rng.normal(0, scale * x.std(), x.shape)).astype(np.float32)}
            for name, x in sorted(matrices.items())}

  return Compressor(pack, lambda parts, shape: parts["noisy"])
