"""The packed parameters of a compressed run: RUN/compressed, an artifact with one file of arrays.

Readers of runs take the unpacked parameters from the checkpoint; this file is what has to be shipped.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np

from kd_jax.base import InputError
from kd_jax.storage import sealed

KIND = "compressed parameters"
_FOLDER, _FILE = "compressed", "parameters.npz"


def write(run: str | os.PathLike, arrays: dict[str, np.ndarray], metadata: dict[str, Any]) -> dict[str, Any]:
  """Writes the arrays of a run. Returns {"bytes_on_disk": size of the file, "sha256": of the file}."""
  folder = pathlib.Path(run) / _FOLDER
  with sealed.writing(folder, KIND, metadata) as temporary:
    np.savez(temporary / _FILE, **arrays)
  return {"bytes_on_disk": (folder / _FILE).stat().st_size, "sha256": sealed.hash_file(folder / _FILE)}


def read(run: str | os.PathLike, sha256: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """(arrays, metadata) of a compressed run, whose file has this `sha256`. Raises InputError if it is damaged."""
  folder = pathlib.Path(run) / _FOLDER
  metadata = sealed.read(folder, KIND)
  if sealed.hash_file(folder / _FILE) != sha256:
    raise InputError(f"{folder / _FILE}: of another run: run.json has another sha256")
  try:
    with np.load(folder / _FILE, allow_pickle=False) as file:
      return {name: file[name] for name in file.files}, metadata
  except sealed.NOT_ARRAYS as error:
    raise InputError(f"{folder / _FILE}: {error}") from None
