"""Frames and arrays in memory, stored as Parquet so that they are read like any other file."""

from __future__ import annotations

import os
import pathlib
import tempfile
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from kd_jax.base import InputError
from kd_jax.storage import sealed


def store(frame: Any, cache_dir: str | os.PathLike | None) -> pathlib.Path:
  """The path of the frame's content in the cache; written on first use. Raises InputError."""
  from kd_jax.data.store import cache_folder

  table, folder = table_of(frame), cache_folder(cache_dir) / "frames"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
      new = pathlib.Path(scratch) / "frame.parquet"
      pyarrow.parquet.write_table(table, new)
      path = folder / f"{sealed.hash_file(new)[:16]}.parquet"
      os.replace(new, path)
  except OSError as error:
    raise InputError(f"`cache_dir`: cannot write {folder}: {error.strerror or error}") from None
  except pa.ArrowException as error:
    raise InputError(f"`data`: the frame cannot be stored as Parquet: {error}") from None
  return path


def table_of(frame: Any) -> pa.Table:
  """The pyarrow table of a frame. Raises InputError."""
  if hasattr(frame, "with_format") and hasattr(frame, "column_names"):  # a Hugging Face data set: its selected rows
    frame = frame.with_format("arrow")[:]
  try:
    return pa.table(frame)
  except (pa.ArrowException, TypeError, ValueError) as error:
    raise InputError(f"`data`: a {type(frame).__name__} is no table: {' '.join(str(error).split())[:200]}") from None
