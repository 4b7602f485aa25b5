"""Pickles of plain containers and numbers. Anything that names a class or a function is refused."""

from __future__ import annotations

import io
import pathlib
import pickle

from kd_jax.base import InputError


class _Plain(pickle.Unpickler):
  def find_class(self, module, name):
    raise pickle.UnpicklingError(f"names {module}.{name}")

  def persistent_load(self, pid):
    raise pickle.UnpicklingError("refers to an object outside")


def read_pickle(path: pathlib.Path) -> dict:
  """The dict in a pickle file, whose sha256 was checked before. Raises InputError."""
  try:
    value = _Plain(io.BytesIO(path.read_bytes())).load()
  except Exception as error:  # damaged pickles raise nearly any type
    raise InputError(f"--data: {path}: not a pickle of plain data: {error}") from None
  if not isinstance(value, dict):
    raise InputError(f"--data: {path}: holds a {type(value).__name__}, not a dict")
  return value
