"""Data sets by name: found or downloaded, verified, cleaned, split, stored; later only read."""

from __future__ import annotations

import os

from kd_jax import registry
from kd_jax.base import Dataset


def load(
    spec: str | registry.Call,
    data_dir: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
    splits: tuple[str, ...] = ("train", "validation"),
    memory: float = 0.0,
) -> Dataset:
  """The data set that the call `spec` names, prepared on first use.

  Only the `splits` are read, verified against their stored sha256; `test` is None unless it is among
  them, and its file is then not opened. `data_dir` holds local copies of source files (default:
  $KD_JAX_DATA), `cache_dir` downloads and prepared data (default: $KD_JAX_CACHE or ~/.cache/kd_jax).
  Training interactions that need more than `memory` GB (0: no limit) stay on disk, see streams.py.

  Raises InputError: an unknown name or argument, a source that cannot be found or is not the expected
  one, a malformed row, an empty or overlapping split, damaged prepared data.
  """
  from kd_jax.data import store  # imports tensorflow_datasets only when there is something to do

  call = registry.parse("data", spec, "data") if isinstance(spec, str) else spec
  return store.load(call, data_dir, cache_dir, splits, memory)
