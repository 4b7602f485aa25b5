"""Strict parsing of interaction files. Ids stay strings; every malformed row is reported with a reason."""

from __future__ import annotations

import array
import contextlib
import csv
import gzip
import math
import pathlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from kd_jax.base import InputError
from kd_jax.data.recipe import TEST, TRAIN, VALIDATION, Log

DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}  # keys are results of `kind`
PARQUET = ".parquet"
ID_LENGTH = 200  # characters; all ids are stored with the width of the longest
LINE_LENGTH = 1 << 20  # bytes
_PARTS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
_TIMES = np.iinfo(np.int64)


def read_columns(path: pathlib.Path, delimiter: str, columns: tuple[str | None, ...], header: bool = False,
                 max_bad_rows: int = 0) -> Log:
  """Reads a delimited UTF-8 text file, gzipped if its name ends in .gz. `columns` is the kind of each field.

  A kind is "users", "items", "ratings", "timestamps", "parts", or None for a field that is not read.
  Raises InputError, naming file, line and reason, if more than `max_bad_rows` rows are bad.
  """
  numbered = lines(path)
  if header:
    next(numbered, None)
  rows = ((number, *fields(line, delimiter, len(columns))) for number, line in numbered)
  return collect(path, rows, columns, max_bad_rows)


def collect(path: pathlib.Path, rows: Iterable[tuple[int, Sequence | None, str]],
            columns: tuple[str | None, ...], max_bad_rows: int = 0) -> Log:
  """Makes a log of rows (number, fields, or None for a bad row, reason if None). Checks every field of every row."""
  readers = [(place, name, READERS[name]) for place, name in enumerate(columns) if name]
  store = {name: array.array("d" if name == "ratings" else "q") for _, name, _ in readers}
  index: dict[str, dict[str, int]] = {"users": {}, "items": {}}
  bad: list[str] = []
  for number, row, reason in rows:
    try:
      if row is None:
        raise ValueError(reason)
      values = [(name, reader(row[place])) for place, name, reader in readers]
    except ValueError as error:
      bad.append(f"{path}:{number}: {error}")
      if len(bad) > max_bad_rows:
        raise InputError(f"`data`: {bad[0]} ({len(bad)} bad, max_bad_rows={max_bad_rows})") from None
      continue
    for name, value in values:
      store[name].append(index[name].setdefault(value, len(index[name])) if name in index else value)
  if not index["users"]:
    raise InputError(f"`data`: {path}: holds no interactions" + (f"; {bad[0]}" if bad else ""))
  types = {"ratings": np.float32, "timestamps": np.int64, "parts": np.int8}
  rest = {name: np.array(store[name], dtype) for name, dtype in types.items() if name in store}
  return Log(np.array(store["users"]), np.array(store["items"]), list(index["users"]), list(index["items"]),
             bad_rows=tuple(bad), **rest)


def lines(path: pathlib.Path, argument: str = "data") -> Iterator[tuple[int, bytes]]:
  """(line number from 1, line without line end). Raises InputError, naming `argument`, if the file cannot be read."""
  opened = gzip.open if path.suffix == ".gz" else open
  try:
    with opened(path, "rb") as file:
      for number, line in enumerate(iter(lambda: file.readline(LINE_LENGTH), b""), 1):
        if len(line) == LINE_LENGTH:
          raise InputError(f"`{argument}`: {path}:{number}: the line is longer than {LINE_LENGTH:,} bytes")
        if number == 1:
          line = line.removeprefix(b"\xef\xbb\xbf")
        yield number, line.rstrip(b"\n").removesuffix(b"\r")
  except (OSError, EOFError, zlib.error) as error:
    raise InputError(f"`{argument}`: {path}: cannot be read: {error}") from None


def kind(path: pathlib.Path) -> str:
  """The file name's suffix, ignoring .gz: it determines the format."""
  return pathlib.Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


@contextlib.contextmanager
def parquet(path: pathlib.Path, where: str) -> Iterator[Any]:
  """The open pyarrow.parquet.ParquetFile. Raises InputError, which begins with `where`, if it cannot be read."""
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError:
    raise InputError(f"{where}: reading Parquet needs pyarrow: pip install pyarrow") from None
  try:
    with pyarrow.parquet.ParquetFile(path) as file:
      yield file
  except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
    raise InputError(f"{where}: cannot be read: {str(error)[:200]}") from None


def fields(line: bytes, delimiter: str, count: int | None) -> tuple[list[str] | None, str]:
  """(fields, "") of a line, or (None, reason) if it is bad. With `count` None, any number of fields is valid."""
  if b"\0" in line:
    return None, "a NUL byte"
  try:
    text = line.decode()
  except UnicodeDecodeError as error:
    return None, f"not UTF-8: {error.reason} at byte {error.start}"
  row = text.split(delimiter)
  if '"' in text and len(delimiter) == 1:
    try:
      row = next(csv.reader([text], delimiter=delimiter, strict=True))
    except (csv.Error, StopIteration) as error:
      return None, f"quotes: {error} (a quoted field ends on its line)"
  if count is not None and len(row) != count:
    return None, f"{len(row)} columns, expected {count}" if text else "an empty line"
  return row, ""


def _identifier(text):
  if not text or text.isspace():
    raise ValueError("an empty id")
  if len(text) > ID_LENGTH:
    raise ValueError(f"an id of {len(text)} characters, at most {ID_LENGTH}")
  if "\0" in text:
    raise ValueError("a NUL in an id")
  return text


def _rating(text, what="rating"):
  value = _number(text, what)
  if not abs(value) < float(np.finfo(np.float32).max):
    raise ValueError(f"{what} {str(text)[:40]!r} is not a finite number")
  return value


def _timestamp(text):
  text = str(text)
  digits = text.removeprefix("-")
  if digits.isascii() and digits.isdecimal():
    value = int(text[:40])  # exact above 2**53, unlike a float
  else:
    seconds = _number(text, "timestamp")
    value = math.floor(seconds) if math.isfinite(seconds) else _TIMES.max + 1
  if not _TIMES.min <= value <= _TIMES.max:
    raise ValueError(f"timestamp {text[:40]!r} is not a number of seconds")
  return value


def _number(text, what) -> float:
  text = str(text)
  try:
    if "_" in text or not text.isascii():  # float() also accepts 1_000 and digits of other scripts
      raise ValueError
    return float(text)
  except ValueError:
    raise ValueError(f"{what} {text[:40]!r} is not a number") from None


def _part(text):
  if text not in _PARTS:
    raise ValueError(f"part {str(text)[:40]!r} is none of {', '.join(_PARTS)}")
  return _PARTS[text]


# {kind of field: the function that reads it}; each raises ValueError with the reason.
READERS = {"users": _identifier, "items": _identifier, "ratings": _rating, "timestamps": _timestamp,
            "parts": _part}
