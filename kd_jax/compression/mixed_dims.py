"""Mixed dimensions: rows of popular users and items keep more numbers than rows of rare ones."""

from __future__ import annotations

import numpy as np

from kd_jax.base import Compressor
from kd_jax.compression.low_rank import factors


def mixed_dims(parts: int = 4, alpha: float = 0.5) -> Compressor:
  """Sorts the rows of a table of users or items into `parts` parts of equal total popularity.

  Part b keeps max(1, round(width (f_b / f_0)^alpha)) dimensions, by its own truncated SVD; f_b is the mean number of
  training interactions + 1 of its rows, f_0 that of the most popular part. Ginart, Naumov, Mudigere, Yang, Zou: Mixed
  dimension embeddings with application to memory-efficient recommendation systems, ISIT 2021.
  """

  def packed(x, popularity):
    part = _parts(popularity, parts)
    means = [np.mean(popularity[part == b] + 1) if (part == b).any() else 0.0 for b in range(parts)]
    first, found = max(means), {"part": part.astype(np.uint8)}
    for b, mean in enumerate(means):
      rows = x[part == b]
      kept = max(1, round(x.shape[1] * (mean / first) ** alpha)) if len(rows) else 0
      if kept and kept * (len(rows) + x.shape[1]) < rows.size:
        found |= {f"{name}{b:02d}": value for name, value in factors(rows, kept).items()}
      elif kept:
        found[f"rows{b:02d}"] = rows
    return found

  def pack(matrices, popularity):
    made = {name: packed(matrices[name], counts) for name, counts in popularity.items()}
    return {name: found for name, found in made.items()
            if sum(x.nbytes for x in found.values()) < matrices[name].nbytes}

  def unpack(found, shape):
    whole = np.zeros(shape, np.float32)
    for b in range(parts):
      if (rows := found.get(f"rows{b:02d}")) is not None:
        basis = found.get(f"basis{b:02d}")
        whole[found["part"] == b] = rows if basis is None else rows @ basis
    return whole

  return Compressor(pack, unpack)


def _parts(popularity, parts) -> np.ndarray:
  """The part of each row, 0 for the most popular ones; each part has the same total popularity, as far as possible."""
  order = np.argsort(-popularity, kind="stable")
  counts = popularity[order].astype(np.float64)
  before = (np.cumsum(counts) - counts) / max(counts.sum(), 1)
  found = np.empty(len(order), np.int64)
  found[order] = np.minimum(before * parts, parts - 1).astype(np.int64)
  return found
