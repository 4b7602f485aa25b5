"""Parquet: a file, or a folder of parts, read in the order of their names."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from kd_jax.base import InputError
from kd_jax.data.formats.checked import Block, Kind

SUFFIX = ".parquet"
IDS = ("users", "items", "parts")  # kinds of columns that are texts
_T = pa.types


@contextlib.contextmanager
def opened(path: pathlib.Path, where: str) -> Iterator[Any]:
  """The open pyarrow.parquet.ParquetFile. Raises InputError, which begins with `where`, if it cannot be read."""
  try:
    with pyarrow.parquet.ParquetFile(path) as file:
      yield file
  except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
    raise InputError(f"{where}: cannot be read: {str(error)[:200]}") from None


def parts(path: pathlib.Path) -> list[pathlib.Path]:
  """The files of a folder of parts, or the file itself. Raises InputError for a folder without parts."""
  found = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
  if not found:
    raise InputError(f"`data`: {path}: is a directory without {SUFFIX} files; name a file of it")
  return found


def names(path: pathlib.Path) -> list[str]:
  """The names of the columns; of a folder, of its first part."""
  first = parts(path)[0]
  with opened(first, f"`data`: {first}") as file:
    return file.schema_arrow.names


def sample(path: pathlib.Path, column: str) -> list[str]:
  """The first values of a column of numbers or texts, as texts; none of a column of times, whose unit is known."""
  first = parts(path)[0]
  with opened(first, f"`data`: {first}") as file:
    if column not in file.schema_arrow.names or _T.is_temporal(file.schema_arrow.field(column).type):
      return []
    values = next((batch.column(0).to_pylist() for batch in file.iter_batches(1000, columns=[column])), [])
  return [str(value) for value in values if value is not None]


def blocks(path: pathlib.Path, columns: Sequence[str], kinds: Sequence[Kind]) -> Iterator[Block]:
  """The named columns as text. The number of a row counts over all parts.

  Raises InputError for a column of another type than its kind can have.
  """
  row = 1
  for part in parts(path):
    with opened(part, f"`data`: {part}") as file:
      if lacking := [name for name in columns if name not in file.schema_arrow.names]:
        raise InputError(f"`data`: {part}: no column {lacking[0]!r}")
      for batch in file.iter_batches(columns=list(columns)):
        found = [_text(path, name, kind, batch.column(name)) for name, kind in zip(columns, kinds, strict=True)]
        yield Block(np.arange(row, row + batch.num_rows), found)
        row += batch.num_rows


def _text(path, name, kind, column):
  """A column as text. Times become whole seconds."""
  if _T.is_dictionary(column.type):
    column = column.dictionary_decode()
  is_text = _T.is_string(column.type) or _T.is_large_string(column.type) or _T.is_string_view(column.type)
  if kind.name in IDS and not (is_text or _T.is_integer(column.type)):  # a float cannot hold every id
    raise InputError(f"`data`: {path}: column {name!r} is {column.type}, ids are strings or integers")
  if _T.is_date(column.type):
    column = column.cast(pa.timestamp("ms")).cast(pa.timestamp("s"), safe=False).cast(pa.int64())
  elif _T.is_timestamp(column.type):
    column = column.cast(pa.timestamp("s", column.type.tz), safe=False).cast(pa.int64())
  elif _T.is_boolean(column.type):
    column = column.cast(pa.int8())
  elif _T.is_float16(column.type):
    column = column.cast(pa.float32())
  elif not (is_text or _T.is_integer(column.type) or _T.is_floating(column.type) or _T.is_decimal(column.type)):
    raise InputError(f"`data`: {path}: column {name!r} is {column.type}; texts, numbers and times are read")
  return column.cast(pa.string())
