"""Reads your own interaction log."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator

from kd_jax.base import InputError
from kd_jax.data import order, parsing
from kd_jax.data.recipe import Log, Recipe, Source


def interactions(path: str, user="user", item="item", rating: str | None = None, timestamp: str | None = None,
                 min_rating: float | None = None, min_user=1, min_item=1, split="random",
                 split_column: str | None = None, ratios=(0.8, 0.1, 0.1), split_seed=0, delimiter: str | None = None,
                 max_bad_rows=0) -> Recipe:
  """Your own log: a CSV, TSV or text file with a header line, gzipped or not, or a Parquet file.

  Origin: `path`, in the working directory or the data folder (in `data_dir` first, if it is given); licence and
  counts depend on the file. Its sha256 is part of the prepared data set's name, so a changed file is prepared again.
  `user`, `item`, `rating`, `timestamp` (seconds) and `split_column` name columns. Ids stay strings: 001 is not 1.
  Text is UTF-8, and a quoted field must end on its line. `delimiter` defaults to a comma for .csv and a tab for .tsv
  and .txt. A row is bad if it has another number of columns, an empty id, a rating or time stamp that is not a finite
  number, a NUL or invalid UTF-8. More than `max_bad_rows` bad rows are an error, which names file, line and reason.
  Filter: ratings of at least `min_rating`, duplicates, k-core `min_user`, `min_item`. Split: any rule of splits.py;
  split='given' reads train, validation or test from `split_column`. The order of the rows matters for
  split='position' only; else they are sorted first, see `order.unordered`. Of a repeated (user, item) the earliest is
  kept, and of equal times, or without times, the one with the lowest rating.
  """
  if (split == "given") != (split_column is not None):
    raise InputError("`data`: split='given' and split_column='...' go together")
  names = {"users": user, "items": item, "ratings": rating, "timestamps": timestamp, "parts": split_column}
  names = {kind: name for kind, name in names.items() if name is not None}
  wrong = [v for v in (path, *names.values()) if not isinstance(v, str) or not v]
  if wrong or len(set(names.values())) < len(names):
    given = wrong or list(names.values())
    raise InputError(f"`data`: interactions needs distinct, non-empty names, not {given}")
  if delimiter is not None and (not isinstance(delimiter, str) or not delimiter or delimiter in '"\n\r'):
    raise InputError(f"`data`: delimiter={delimiter!r}: must be a text such as ','")
  if isinstance(max_bad_rows, bool) or not isinstance(max_bad_rows, int) or max_bad_rows < 0:
    raise InputError(f"`data`: max_bad_rows={max_bad_rows!r}: must be an integer of at least 0")
  ordered = split == "position"
  read = functools.partial(_read, names, delimiter, max_bad_rows, ordered)
  return Recipe(lambda paths: read(paths[0]), (Source(pathlib.Path(path).name, None, ((path, None),)),),
                min_rating, min_user, min_item, split, ratios, split_seed, revision=0 if ordered else 1)


def _read(names, delimiter, max_bad_rows, ordered, path: pathlib.Path) -> Log:
  log = parsing.collect(path, rows(path, names, delimiter), tuple(names), max_bad_rows)
  return log if ordered else order.unordered(log)


def rows(path: pathlib.Path, names: dict, delimiter: str | None = None) -> Iterator[tuple[int, list | None, str]]:
  """Yields (line or row number, values of the columns `names` {kind: name} as text, "") for every row of a table.

  For a bad row it yields (number, None, reason). Formats: CSV, TSV, or text with a header line, gzipped or not, or
  Parquet. Raises InputError: the file cannot be read, or a column is missing.
  """
  if path.suffix == parsing.PARQUET:
    yield from _parquet_rows(path, names)
    return
  delimiter = delimiter or parsing.DELIMITERS.get(parsing.kind(path))
  if delimiter is None:
    raise InputError(f"`data`: {path}: give delimiter='...'; it is only known for {', '.join(parsing.DELIMITERS)}")
  lines = parsing.lines(path)
  number, line = next(lines, (1, b""))
  header, reason = parsing.fields(line, delimiter, None)
  if header is None:
    raise InputError(f"`data`: {path}:{number}: the header line: {reason}")
  places = _places(path, names, header)
  for number, line in lines:
    row, reason = parsing.fields(line, delimiter, len(header))
    yield number, row and [row[place] for place in places], reason


def _places(path, names, header) -> list[int]:
  """The indices of the named columns in the header."""
  for name in names.values():
    if header.count(name) != 1:
      found = "no column" if name not in header else f"{header.count(name)} columns"
      has = ", ".join(repr(column[:40]) for column in header[:50])
      raise InputError(f"`data`: {path}: {found} {name!r}; it has {has}")
  return [header.index(name) for name in names.values()]


def _parquet_rows(path, names):
  number = 0
  with parsing.parquet(path, f"`data`: {path}") as file:
    _places(path, names, file.schema_arrow.names)
    for batch in file.iter_batches(columns=list(names.values())):
      columns = [_parquet_column(path, kind, name, batch.column(name)) for kind, name in names.items()]
      for row in zip(*columns, strict=True):
        number += 1
        yield number, row, ""


def _parquet_column(path, kind, name, column) -> list:
  import pyarrow

  if pyarrow.types.is_dictionary(column.type):
    column = column.dictionary_decode()
  whole = pyarrow.types.is_integer(column.type)
  text = pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)
  if kind in ("users", "items", "parts") and not (whole or text):  # a float cannot hold every id
    raise InputError(f"`data`: {path}: column {name!r} is {column.type}, ids are strings or integers")
  if pyarrow.types.is_timestamp(column.type):
    column = column.cast(pyarrow.timestamp("s", column.type.tz), safe=False).cast(pyarrow.int64())
  return [None if value is None else str(value) for value in column.to_pylist()]
