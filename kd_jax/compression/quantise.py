"""Quantisation after training: numbers in fewer bits."""

from __future__ import annotations

import numpy as np

from kd_jax.base import Compressor


def half() -> Compressor:
  """Half precision: every matrix in float16 (IEEE 754), half of the bytes."""
  def pack(matrices, popularity):
    with np.errstate(over="ignore"):  # infinite numbers are refused later, by name
      return {name: {"half": x.astype(np.float16)} for name, x in matrices.items()}

  return Compressor(pack, lambda parts, shape: parts["half"].astype(np.float32))


def int8() -> Compressor:
  """Integers from -127 to 127 with one scale per row, for tables and dense layers: q = round(x / s).

  s = max |x| of the row / 127, rounded up to bfloat16 (at most 0.8 % larger). Symmetric, without calibration data.
  Bytes: (width + 2) / (4 width) of float32. Jacob et al.: Quantization and training of neural networks for efficient
  integer-arithmetic-only inference, CVPR 2018.
  """
  return Compressor(lambda matrices, popularity: {name: _quantised(x, 127) for name, x in matrices.items()}, _scaled)


def int4() -> Compressor:
  """Integers from -7 to 7 with one scale per row, two in a byte; otherwise as int8.

  Bytes: (width / 2 + 2) / (4 width) of float32. Guan et al.: Post-training 4-bit quantization on embedding tables,
  NeurIPS workshop 2019.
  """

  def packed(x):
    parts = _quantised(x, 7)
    codes = np.pad((parts["codes"] + 8).astype(np.uint8), ((0, 0), (0, x.shape[1] % 2)))
    return parts | {"codes": codes[:, ::2] << 4 | codes[:, 1::2]}

  def unpack(parts, shape):
    codes = np.stack([parts["codes"] >> 4, parts["codes"] & 15], axis=2).reshape(shape[0], -1)[:, : shape[1]]
    return _scaled(parts | {"codes": codes.astype(np.int8) - np.int8(8)}, shape)

  return Compressor(lambda matrices, popularity: {name: packed(x) for name, x in matrices.items()}, unpack)


def _quantised(x, most) -> dict[str, np.ndarray]:
  steps = (np.abs(x).max(axis=1, initial=0.0) / most).astype(np.float32)
  scales = ((steps.view(np.uint32) + 0xFFFF) >> 16).astype(np.uint16)  # rounded up, so that no code is above `most`
  step = from_bfloat16(scales)[:, None]
  codes = np.divide(x, step, out=np.zeros_like(x), where=step > 0)
  return {"codes": np.rint(codes).astype(np.int8), "scales": scales}


def _scaled(parts, shape):
  return parts["codes"] * from_bfloat16(parts["scales"])[:, None]


def from_bfloat16(scales: np.ndarray) -> np.ndarray:
  """The scales [n], bfloat16 as uint16, in float32: the same bits, then zeros. NumPy has no such type."""
  return (scales.astype(np.uint32) << 16).view(np.float32)
