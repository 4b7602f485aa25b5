"""Pruning by magnitude. Train a pruned run on with `keep_zeros`, and prune it again by the same share."""

from __future__ import annotations

import numpy as np

from kd_jax.base import Compressor

_BLOCK = 64  # numbers in a row of what is kept: a later quantiser gives each row its scale


def prune(share: float = 0.8) -> Compressor:
  """Unstructured: the `share` of each matrix's numbers that are smallest in magnitude becomes 0.

  One bit per number says which are kept; kept ones are stored one after the other. Han, Pool, Tran, Dally: Learning
  both weights and connections for efficient neural networks, NeurIPS 2015.
  """

  def packed(x):
    flat = x.reshape(-1)
    kept = np.zeros(flat.size, bool)
    kept[np.argsort(-np.abs(flat), kind="stable")[: flat.size - round(share * flat.size)]] = True
    kept &= flat != 0
    values = flat[kept]
    return {"kept": np.packbits(kept), "values": np.pad(values, (0, -len(values) % _BLOCK)).reshape(-1, _BLOCK)}

  def unpack(parts, shape):
    kept = np.unpackbits(parts["kept"], count=shape[0] * shape[1]).astype(bool)
    flat = np.zeros(kept.size, np.float32)
    flat[kept] = parts["values"].reshape(-1)[: kept.sum()]
    return flat.reshape(shape)

  return Compressor(lambda matrices, popularity: {name: made for name, x in matrices.items()
                                                  if _bytes(made := packed(x)) < x.nbytes}, unpack)


def prune_columns(share: float = 0.5) -> Compressor:
  """Structured: the `share` of columns with the smallest norms becomes 0; the others are stored as a smaller matrix.

  Tables of users and items of one width lose the same columns, those with the smallest products of norms, since column
  d of one is multiplied by column d of the other. Other matrices lose columns (output units of a layer) on their own.
  Li, Kadav, Durdanovic, Samet, Graf: Pruning filters for efficient ConvNets, ICLR 2017.
  """

  def pack(matrices, popularity):
    found = {}
    for name, x in matrices.items():
      alike = [y for other, y in matrices.items() if other in popularity and y.shape[1] == x.shape[1]]
      norms = np.prod([np.linalg.norm(y, axis=0) for y in (alike if name in popularity else [x])], axis=0)
      kept = np.sort(np.argsort(-norms, kind="stable")[: x.shape[1] - round(share * x.shape[1])])
      if len(kept) < x.shape[1]:
        found[name] = {"columns": kept.astype(np.int32), "values": np.ascontiguousarray(x[:, kept])}
    return found

  def unpack(parts, shape):
    whole = np.zeros(shape, np.float32)
    whole[:, parts["columns"]] = parts["values"]
    return whole

  return Compressor(pack, unpack)


def _bytes(parts):
  return sum(x.nbytes for x in parts.values())
