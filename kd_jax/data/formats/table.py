"""Rows of any format by the names, or the numbers, of their columns."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from kd_jax.base import InputError
from kd_jax.data.formats import delimited, json_lines, parquet, raw
from kd_jax.data.formats.checked import Block, Kind
from kd_jax.data.formats.delimited import DELIMITERS, Style

Column = int | str  # a column by its number, from 0, or by its name
_OTHERS = (",", "\t", ";", "|", "::", " ")


class Shape(NamedTuple):
  """How a table of text is written; None: a header, and the delimiter that is usual for the suffix."""

  delimiter: str | None = None
  header: bool | None = None
  skip: int = 0
  quoting: bool = True


def blocks(path: pathlib.Path, columns: Mapping[Kind, Column], shape: Shape) -> Iterator[Block]:
  """The columns of all rows, in the order of `columns`. Raises InputError: the file cannot be read, or lacks one."""
  suffix, wanted = raw.unpacked(path).suffix.lower(), list(columns.values())
  if suffix == parquet.SUFFIX or path.is_dir():
    names = parquet.names(path)
    found = [names[place] for place in _places(path, wanted, names)]
    return parquet.blocks(path, found, list(columns))
  if suffix in json_lines.SUFFIXES:
    if any(isinstance(x, int) for x in wanted):
      raise InputError(f"`data`: {path}: objects of JSON have names, so columns are not numbers")
    _places(path, wanted, json_lines.names(path, shape.skip))
    return json_lines.blocks(path, wanted, shape.skip)
  return _text(path, wanted, shape, suffix)


def _text(path, wanted, shape, suffix) -> Iterator[Block]:
  delimiter = shape.delimiter or DELIMITERS.get(suffix)
  if delimiter is None:
    raise InputError(f"`data`: {path}: give delimiter='...'; it is only known for {', '.join(DELIMITERS)}, "
                     f"{', '.join(json_lines.SUFFIXES)} and {parquet.SUFFIX} are read without, and each of them with "
                     f"{', '.join(raw.PACKED)}")
  style = Style(delimiter, shape.header is not False, shape.skip, shape.quoting)
  if style.header:
    names = delimited.names(path, style)
    places, count = _places(path, wanted, names, delimiter), len(names)
  else:
    if named := [x for x in wanted if not isinstance(x, int)]:
      raise InputError(f"`data`: {path}: without a header, columns are numbers from 0, and {named[0]!r} is none")
    places, count = wanted, delimited.width(path, style)
    _check_numbers(path, wanted, count)
  return delimited.blocks(path, style, places, count)


def _check_numbers(path, wanted, count) -> None:
  if beyond := [x for x in wanted if isinstance(x, int) and not 0 <= x < count]:
    raise InputError(f"`data`: {path}: no column {beyond[0]}; it has {count}, numbered from 0")


def _places(path, wanted: Sequence[Column], names: Sequence[str], delimiter: str = "") -> list[int]:
  """The indices of columns in a header. Raises InputError for one that is not there, or there twice."""
  _check_numbers(path, wanted, len(names))
  plain = delimited.plain_names(names)
  for name in (x for x in wanted if not isinstance(x, int)):
    header = names if name in names else plain
    if header.count(name) != 1:
      found = "no column" if name not in header else f"{header.count(name)} columns"
      has = ", ".join(repr(column[:40]) for column in names[:50])
      raise InputError(f"`data`: {path}: {found} {name!r}; it has {has}{_other_delimiter(names, delimiter)}")
  return [x if isinstance(x, int) else (names if x in names else plain).index(x) for x in wanted]


def _other_delimiter(names, delimiter) -> str:
  """The delimiter that the header has instead, if it has one field."""
  if len(names) > 1 or not names or not delimiter:
    return ""
  likely = next((mark for mark in _OTHERS if mark != delimiter and mark in names[0]), None)
  return f", one field: perhaps delimiter={likely!r}" if likely else ""
