"""Product quantisation."""

from __future__ import annotations

import warnings

import numpy as np

from kd_jax.base import Compressor


def product_quantise(parts: int = 8, codes: int = 256, seed: int = 0) -> Compressor:
  """Cuts rows into `parts` pieces; each is replaced by the nearest of `codes` centres of k-means of its place.

  A row then takes `parts` bytes, beside `codes` x width centres per matrix. For matrices where that is smaller. K-means
  is SciPy's (k-means++, 25 iterations). Jegou, Douze, Schmid: Product quantization for nearest neighbor search,
  TPAMI 2011.
  """

  def pack(matrices, popularity):
    return {name: _packed(x, parts, codes, seed) for name, x in matrices.items()
            if parts <= x.shape[1] and x.shape[0] * parts + 4 * codes * x.shape[1] < x.nbytes}

  def unpack(found, shape):
    return np.concatenate([found[f"centres{place:03d}"][column] for place, column in enumerate(found["codes"].T)],
                          axis=1)

  return Compressor(pack, unpack)


def _packed(x, parts, codes, seed) -> dict[str, np.ndarray]:
  from scipy.cluster import vq  # the import takes time, and few runs need it

  rng, found, chosen = np.random.default_rng(seed), {}, []
  for place, piece in enumerate(np.array_split(x.astype(np.float64), parts, axis=1)):
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # a centre without rows, where many rows are equal
      centres, _ = vq.kmeans2(piece, codes, iter=25, minit="++", rng=rng)
    found[f"centres{place:03d}"] = centres.astype(np.float32)
    chosen.append(vq.vq(piece, centres)[0])
  return found | {"codes": np.stack(chosen, axis=1).astype(np.uint8)}
