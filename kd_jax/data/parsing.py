"""Strict parsing of interaction files. Ids stay strings; every malformed row is reported with a reason."""

from __future__ import annotations

import datetime
import functools
import math
import pathlib
from collections.abc import Iterator

import numpy as np

from kd_jax.data.formats import checked, delimited, parquet, parts, raw
from kd_jax.data.formats.checked import Kind, Table
from kd_jax.data.formats.delimited import Style
from kd_jax.data.recipe import TEST, TRAIN, VALIDATION, Log

DELIMITERS = {suffix: delimited.DELIMITERS[suffix] for suffix in (".csv", ".tsv", ".txt")}  # keys are results of `kind`
PARQUET = parquet.SUFFIX
ID_LENGTH = 200  # characters; all ids are stored with the width of the longest
_PARTS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
_TIMES = np.iinfo(np.int64)
UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6}  # {unit of time stamps: parts of a second}


def read_columns(path: pathlib.Path, delimiter: str, columns: tuple[str | None, ...], header: bool = False,
                 max_bad_rows: int = 0) -> Log:
  """Reads a delimited UTF-8 text file, gzipped if its name ends in .gz. `columns` is the kind of each field.

  A kind is "users", "items", "ratings", "timestamps", "parts", or None for a field that is not read.
  Raises InputError, naming file, lines and reasons, if more than `max_bad_rows` rows are bad.
  """
  places = {KINDS[name]: place for place, name in enumerate(columns) if name}
  blocks = delimited.blocks(path, Style(delimiter, header), list(places.values()), len(columns))
  log = log_of(checked.collect(path, blocks, list(places), max_bad_rows))
  return log._replace(users=log.users.astype(np.int64), items=log.items.astype(np.int64))


def log_of(table: Table) -> Log:
  """The log of a table of users, items and perhaps ratings, time stamps and parts."""
  (users, user_ids), (items, item_ids) = table.columns["users"], table.columns["items"]
  rest = {name: column for name, column in table.columns.items() if name not in ("users", "items")}
  return Log(users, items, user_ids, item_ids, bad_rows=table.bad_rows,
             missing=table.missing, **rest)


def lines(path: pathlib.Path, argument: str = "data") -> Iterator[tuple[int, bytes]]:
  """(line number from 1, line without line end). Raises InputError, naming `argument`, if the file cannot be read."""
  for number, piece in raw.pieces(path, argument):
    yield from enumerate(raw.lines(piece), number)


def kind(path: pathlib.Path) -> str:
  """The file name's suffix, ignoring .gz: it determines the format."""
  return pathlib.Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def fields(line: bytes, delimiter: str, count: int | None) -> tuple[list[str] | None, str]:
  """(fields, "") of a line, or (None, reason) if it is bad. With `count` None, any number of fields is valid."""
  return delimited.cut(line, Style(delimiter), count)


def _identifier(text):
  if not text or text.isspace():
    raise ValueError("an empty id")
  if len(text) > ID_LENGTH:
    raise ValueError(f"an id of {len(text)} characters, at most {ID_LENGTH}")
  if "\0" in text:
    raise ValueError("a NUL in an id")
  return text


def _rating(text):
  return number(text, "rating")


def number(text: str, what: str) -> float:
  """A finite number that fits into float32. Raises ValueError with the reason; `what` names the value."""
  value = _number(text, what)
  if not abs(value) < float(np.finfo(np.float32).max):
    raise ValueError(f"{what} {str(text)[:40]!r} is not a finite number")
  return value


def _timestamp(text):
  text = str(text)
  digits = text.removeprefix("-")
  if digits.isascii() and digits.isdecimal():
    value = int(digits.lstrip("0")[:40] or "0") * (-1 if text.startswith("-") else 1)  # exact above 2**53
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
  if (part := parts.of_word(str(text))) is None:
    raise ValueError(f"part {str(text)[:40]!r} is none of {', '.join(_PARTS)}")
  return _PARTS[part]


def times(unit: str | None) -> Kind:
  """The kind of time stamps of a unit. None: numbers of seconds, of which none is refused for its size."""
  if unit is None:
    return KINDS["timestamps"]
  if unit == "iso8601":
    return Kind("timestamps", _date, np.int64)
  return Kind("timestamps", functools.partial(_in_unit, unit), np.int64, functools.partial(_all_in_unit, unit))


def _date(text):
  """ISO 8601; a time without a zone is UTC."""
  try:
    found = datetime.datetime.fromisoformat(str(text).strip())
  except ValueError:
    raise ValueError(f"timestamp {str(text)[:40]!r} is not a time in ISO 8601") from None
  zoned = found if found.tzinfo else found.replace(tzinfo=datetime.UTC)
  return math.floor(zoned.timestamp())


def _in_unit(unit, text):
  value = _timestamp(text)
  if (found := _all_in_unit(unit, np.array([value]))) is None:
    raise ValueError(f"timestamp {str(text)[:40]!r} is not in {unit}, as the others are")
  return int(found[0])


def _all_in_unit(unit, values) -> np.ndarray | None:
  """Seconds; None if a value looks like one of another unit: seconds after 5138, milliseconds before 1973."""
  parts, size = UNITS[unit], np.abs(values)
  finer, coarser = size >= 10**11 * parts, (size >= 10**8) & (size < 10**8 * parts)
  return None if (finer | coarser).any() else values // parts


def all_finite(values: np.ndarray) -> np.ndarray | None:
  """The values as float32; None if one of them is too large for it."""
  return values.astype(np.float32) if (np.abs(values) < np.finfo(np.float32).max).all() else None


def _as_they_are(values) -> np.ndarray:
  return values


# {kind of field: its reader}; each raises ValueError with the reason.
KINDS = {"users": Kind("users", _identifier), "items": Kind("items", _identifier),
         "ratings": Kind("ratings", _rating, np.float32, all_finite),
         "timestamps": Kind("timestamps", _timestamp, np.int64, _as_they_are),
         "parts": Kind("parts", _part, np.int8)}
