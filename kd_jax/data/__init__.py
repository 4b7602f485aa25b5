"""Loads data sets by name. The first use finds or downloads, verifies, cleans, splits and stores; later uses read."""

from __future__ import annotations

import os
from typing import Any

from kd_jax import registry
from kd_jax.base import Dataset


def load(
    spec: str | registry.Call,
    data_dir: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
    splits: tuple[str, ...] = ("train", "validation"),
    memory: float = 0.0,
    expected: dict[str, str] | None = None,
) -> Dataset:
  """Returns the data set that the call `spec` names, and prepares it on first use.

  Only the `splits` are read, and verified against their stored sha256. If "test" is not among them,
  `test` is None and its file is not opened. `data_dir` holds local copies of source files (default:
  $KD_JAX_DATA); `cache_dir` holds downloads and prepared data (default: $KD_JAX_CACHE or ~/.cache/kd_jax).
  If training interactions need more than `memory` GB (0: no limit), they stay on disk, see streams.py.

  `expected` are the `hashes` of the data that a run has seen. Prepared data with these hashes is read wherever
  its source file is now, or was; data with other hashes is refused.

  Raises InputError: an unknown name or argument, a source that cannot be found or is not the expected
  one, a malformed row, an empty or overlapping split, damaged prepared data.
  """
  from kd_jax.data import store  # here, so that `import kd_jax.data` does not import tensorflow_datasets

  folder = store.find(str(spec), expected, cache_dir) if expected else None
  if folder is not None:
    return store.read(folder, str(spec), cache_dir, splits, memory)
  call = store.canonical(registry.parse("data", spec, "data") if isinstance(spec, str) else spec)
  return store.load(call, data_dir, cache_dir, splits, memory, expected)


def of_frame(frame: Any, name: str = "interactions", cache_dir: str | os.PathLike | None = None,
             **arguments: Any) -> str:
  """The call that reads a frame of pandas or polars, a Hugging Face data set, or {name of a column: array}.

  The frame is stored as Parquet in the cache, under its sha256, so that runs on it can be resumed. `name` is
  "interactions" or "labelled", and `arguments` are those of that factory: names of columns, split, ...

    dataset = kd_jax.load_data(kd_jax.of_frame(frame, user="customer", item="article", timestamp="time"))

  Raises InputError: the frame has columns of several types, or the cache cannot be written.
  """
  from kd_jax.data import frames

  path = frames.store(frame, cache_dir)
  call = str(registry.Call(name, tuple(({"path": str(path)} | arguments).items())))
  registry.parse("data", call, "data")
  return call


def hashes(
    spec: str | registry.Call,
    data_dir: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> dict[str, str]:
  """The `Dataset.hashes` of the data that the call means now. Prepares the data if necessary, but does not read it.

  Raises InputError as `load` does.
  """
  from kd_jax.data import store

  call = store.canonical(registry.parse("data", spec, "data") if isinstance(spec, str) else spec)
  return store.hashes(store.prepare(store.complete(call, data_dir), data_dir, cache_dir))
