"""JSON lines: an object per line, whose keys are the columns."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from kd_jax.base import InputError
from kd_jax.data.formats import raw
from kd_jax.data.formats.checked import Block

SUFFIXES = (".jsonl", ".ndjson", ".json")


def names(path: pathlib.Path, skip: int = 0) -> list[str]:
  """The keys of the first hundred objects. Raises InputError if there is none."""
  keys: dict[str, None] = {}
  for line in raw.head(path)[skip:][:100]:
    row, _ = _object(line)
    keys |= dict.fromkeys(row or ())
  if not keys:
    raise InputError(f"`data`: {path}: its first lines are no JSON objects; an object per line is read")
  return list(keys)


def sample(path: pathlib.Path, column: str) -> list[str]:
  """The first values of a column, as texts."""
  rows = (row for line in raw.head(path)[:1000] if (row := _object(line)[0]) is not None)
  return [text for row in rows if isinstance(text := _text(row.get(column)), str)]


def blocks(path: pathlib.Path, columns: Sequence[str], skip: int = 0) -> Iterator[Block]:
  """The named columns of all rows, as text. A key that an object lacks, and null, are missing values."""
  for number, piece in raw.without_lines(raw.pieces(path), skip):
    rows, numbers, broken = [], [], []
    for line_number, line in enumerate(raw.lines(piece), number):
      row, reason = _object(line)
      values = [_text(row.get(name)) for name in columns] if row is not None else []
      if row is None or False in values:
        nested = columns[values.index(False)] if False in values else ""
        broken.append((line_number, reason or f"{nested!r} is a list, an object or a truth value, or no UTF-8"))
      else:
        rows.append(values)
        numbers.append(line_number)
    arrays = list(zip(*rows, strict=True)) if rows else [()] * len(columns)
    yield Block(np.array(numbers, np.int64), [pa.array(column, pa.string()) for column in arrays], broken)


def _object(line: bytes) -> tuple[dict | None, str]:
  """(the object of a line, "") or (None, reason)."""
  try:
    row = json.loads(line)
  except (ValueError, RecursionError) as error:
    return None, f"not JSON: {' '.join(str(error).split())[:80]}" if line.strip() else "an empty line"
  return (row, "") if isinstance(row, dict) else (None, "not a JSON object")


def _text(value) -> str | bool | None:
  """A value as text; None if it is missing, False if it is no text and no number."""
  if isinstance(value, bool) or not isinstance(value, str | int | float | None):
    return False
  if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):  # half of a pair of UTF-16
    return False
  try:
    return None if value is None else str(value)
  except ValueError:  # an integer of more than 4,300 digits
    return False
