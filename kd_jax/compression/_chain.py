"""Applies compressors one after the other to the parameters of a model, and restores what the model computes with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kd_jax.base import Compressor, InputError

Packed = dict[str, np.ndarray]  # {"user/codes": array}


class Compressed(NamedTuple):
  """The packed parameters, and how to unpack them."""

  arrays: Packed
  steps: list[dict[str, Any]]  # of every compressor: {name: {"parts": [...], "shape": [...]}}, as JSON values

  @property
  def num_bytes(self) -> int:
    """Bytes in memory."""
    return sum(x.nbytes for x in self.arrays.values())


def pack(parameters: Mapping[str, np.ndarray], chain: Sequence[tuple[str, Compressor]],
         popularity: Mapping[str, np.ndarray]) -> Compressed:
  """Packs parameters {name: array} with every (text, compressor) of a chain. See `base.Compressor` for `popularity`.

  A compressor receives the float32 matrices that the one before it has made or left. Raises InputError if a compressor
  changes nothing, or a packed number is not finite.
  """
  arrays, steps = {name: np.asarray(x) for name, x in parameters.items()}, []
  for text, compressor in chain:
    matrices = {name: x for name, x in arrays.items() if x.ndim == 2 and x.dtype == np.float32}
    made = compressor.pack(matrices, {name: popularity[name] for name in matrices if name in popularity})
    if not made:
      raise InputError(f"`compress={text}`: would store none of the matrices in fewer bytes: {_shapes(matrices)}")
    steps.append({name: {"parts": sorted(parts), "shape": list(arrays[name].shape)} for name, parts in made.items()})
    arrays = {name: x for name, x in arrays.items() if name not in made} | {
        f"{name}/{part}": x for name, parts in made.items() for part, x in parts.items()}
    _check_finite(text, arrays)
  return Compressed(arrays, steps)


def unpack(found: Compressed, chain: Sequence[Compressor]) -> dict[str, np.ndarray]:
  """The parameters that the compressed model has, {name: array} with their first shapes and types."""
  arrays = dict(found.arrays)
  for step, compressor in zip(reversed(found.steps), reversed(chain), strict=True):
    for name, made in step.items():
      parts = {part: arrays.pop(f"{name}/{part}") for part in made["parts"]}
      arrays[name] = compressor.unpack(parts, tuple(made["shape"])).astype(np.float32)
  return arrays


def _check_finite(text, arrays):
  for name, x in arrays.items():
    if x.dtype.kind == "f" and not np.isfinite(x).all():
      raise InputError(f"`compress={text}`: {name} has a number that its type cannot hold")


def _shapes(matrices) -> str:
  return ", ".join(f"{name} {list(x.shape)}" for name, x in matrices.items()) or "there are none"
