"""Reads pickles of plain containers and numbers. Pickles that refer to a class or a function are refused."""

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
  """The dict in a pickle file. The caller has checked its sha256. Raises InputError."""
  try:
    value = _Plain(io.BytesIO(path.read_bytes())).load()
  except Exception as error:  # damaged pickles raise exceptions of many types
    raise InputError(f"`data`: {path}: not a pickle of plain data: {error}") from None
  if not isinstance(value, dict):
    raise InputError(f"`data`: {path}: holds a {type(value).__name__}, not a dict")
  return value
