"""One interaction per line: fields with a separator between them, with or without a header line."""

from __future__ import annotations

import collections
import csv
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv

from kd_jax.base import InputError
from kd_jax.data.formats import raw
from kd_jax.data.formats.checked import Block

DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t", ".inter": "\t", ".user": "\t", ".item": "\t"}
_UNIT = b"\x1f"  # the unit separator of ASCII: stands for a separator of several characters
_BLOCK = 2 << 20  # bytes that a thread converts at a time
_KINDS = ("token", "float", "token_seq", "float_seq")  # of RecBole's headers, NAME:KIND


class Style(NamedTuple):
  """How lines are cut."""

  delimiter: str
  header: bool = True
  skip: int = 0  # lines before the header, or before the first row
  quoting: bool = True


def names(path: pathlib.Path, style: Style) -> list[str]:
  """The names in the header line. Raises InputError if it cannot be cut."""
  lines = raw.head(path)[style.skip :]
  found, reason = cut(lines[0] if lines else b"", style, None)
  if found is None:
    raise InputError(f"`data`: {path}:{style.skip + 1}: the header line: {reason}")
  return found


def plain_names(names: Sequence[str]) -> list[str]:
  """Names without their types, if all have one, as in RecBole's files: user_id:token."""
  typed = all(name.rpartition(":")[2] in _KINDS for name in names)
  return [name.rpartition(":")[0] for name in names] if typed and names else list(names)


def width(path: pathlib.Path, style: Style) -> int:
  """The number of fields of a row: that of the header, or of most of the first rows."""
  if style.header:
    return len(names(path, style))
  cut_lines = (cut(line, style, None)[0] for line in raw.head(path)[style.skip :][:1000])
  counts = collections.Counter(len(row) for row in cut_lines if row is not None)
  return counts.most_common(1)[0][0] if counts else 1


def blocks(path: pathlib.Path, style: Style, places: Sequence[int], count: int | None = None,
           argument: str = "data") -> Iterator[Block]:
  """The columns `places` of all rows. A row is broken if it has another number of fields than `count`."""
  count = width(path, style) if count is None else count
  for number, piece in raw.without_lines(raw.pieces(path, argument), style.skip + style.header):
    columns = _fast(piece, style, places, count)
    yield _slow(number, piece, style, places, count) if columns is None else Block(
        np.arange(number, number + len(columns[0])), columns)


def cut(line: bytes, style: Style, count: int | None) -> tuple[list[str] | None, str]:
  """(fields, "") of a line, or (None, reason) if it is bad. With `count` None, any number of fields is valid."""
  if b"\0" in line:
    return None, "a NUL byte"
  try:
    text = line.decode()
  except UnicodeDecodeError as error:
    return None, f"not UTF-8: {error.reason} at byte {error.start}"
  row = text.split(style.delimiter)
  if style.quoting and '"' in text and len(style.delimiter) == 1:
    try:
      row = next(csv.reader([text], delimiter=style.delimiter, strict=True))
    except (csv.Error, StopIteration) as error:
      return None, f"quotes: {error} (a quoted field ends on its line; quoting=False reads quotes as letters)"
  if count is not None and len(row) != count:
    return None, f"{len(row)} columns, expected {count}" if text else "an empty line"
  return row, ""


def _slow(number, piece, style, places, count) -> Block:
  """Cuts line by line, as `cut` says."""
  rows, numbers, broken = [], [], []
  for line_number, line in enumerate(raw.lines(piece), number):
    row, reason = cut(line, style, count)
    if row is None:
      broken.append((line_number, reason))
    else:
      rows.append([row[place] for place in places])
      numbers.append(line_number)
  columns = list(zip(*rows, strict=True)) if rows else [()] * len(places)
  return Block(np.array(numbers, np.int64), [pa.array(column, pa.string()) for column in columns], broken)


def _fast(piece, style, places, count) -> list[pa.ChunkedArray] | None:
  """The same by Arrow, for pieces in which it cuts as `cut` does; else None."""
  if b"\r" in piece:
    if piece.count(b"\r") != piece.count(b"\r\n"):
      return None
    piece = piece.replace(b"\r\n", b"\n")
  delimiter = style.delimiter.encode()
  quotes = b'"' in piece and style.quoting and len(style.delimiter) == 1
  empty = piece.startswith(b"\n") or b"\n\n" in piece
  if quotes or empty or b"\0" in piece or piece.startswith(raw.BOM) or (len(delimiter) > 1 and _UNIT in piece):
    return None
  if len(delimiter) > 1:
    piece, delimiter = piece.replace(delimiter, _UNIT), _UNIT
  fields = [str(n) for n in range(count)]
  kinds = dict.fromkeys((fields[x] for x in places), pa.string())
  try:
    table = pyarrow.csv.read_csv(
        pa.BufferReader(piece), pyarrow.csv.ReadOptions(block_size=_BLOCK, column_names=fields),
        pyarrow.csv.ParseOptions(delimiter=delimiter.decode(), quote_char=False, ignore_empty_lines=False),
        pyarrow.csv.ConvertOptions(include_columns=list(kinds), column_types=kinds, strings_can_be_null=False))
  except (pa.ArrowInvalid, pa.ArrowKeyError):
    return None
  if table.num_rows != raw.count_ends(piece) + (not piece.endswith(b"\n")):
    return None
  return [table.column(fields[place]) for place in places]
