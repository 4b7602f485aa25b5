"""Checks columns of text, block by block: every row is kept, refused with a reason, or missing a value.

A reader of `parsing.READERS` judges each distinct text of a column once. Whole columns of plain digits are converted by
Arrow, which gives the same numbers.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from kd_jax.base import InputError
from kd_jax.data.recipe import TEST, TRAIN, VALIDATION

_SHOWN = 3  # bad rows in an error
_KEPT = 1000  # bad rows whose reasons are remembered; the others are only counted
_SAFE = np.isin(np.arange(256), [b for b in range(128) if chr(b).isalnum()])  # first bytes of an id that is not blank

PARTS = {"path": TRAIN, "validation": VALIDATION, "test": TEST}  # {argument: the part that is in its file}
Limit = int | float | str  # number of bad rows that are allowed, or their share, as "0.1%"


class Block(NamedTuple):
  """Some rows as columns of text, in the order of the file."""

  numbers: np.ndarray  # [n] lines, or rows, in the file, of the rows in `columns`
  columns: Sequence[Any]  # pyarrow arrays or chunked arrays [n] of text, plain or as a dictionary; null: missing
  broken: Sequence[tuple[int, str]] = ()  # (line, reason) of rows that could not be cut into columns


class Kind(NamedTuple):
  """What a column must hold. `read` turns a text into a value, or raises ValueError with the reason."""

  name: str
  read: Callable[[Any], Any]
  dtype: Any = None  # of the values; None: they are texts, stored as codes
  # Of a column of plain numbers, float64 or int64: the values that `read` gives; None if it refuses one of them.
  plain: Callable[[np.ndarray], np.ndarray | None] | None = None


class Table(NamedTuple):
  """The kept rows: by kind, values [N], or (codes [N] int32, distinct texts in the order of their first rows)."""

  columns: dict[str, Any]
  bad_rows: tuple[str, ...]  # "file:line: reason", in order; after the first _KEPT, empty texts
  missing: int  # rows that miss a value


def collect(path: pathlib.Path, blocks: Iterable[Block], kinds: Sequence[Kind], max_bad_rows: Limit = 0,
            missing: Sequence[str] = ()) -> Table:
  """Reads all blocks. Texts in `missing` are no values: their rows are left out and counted.

  Raises InputError: no row is left, or more rows are bad than `max_bad_rows` allows. It counts all of them first.
  """
  found: dict[str, Any] = {kind.name: [] if kind.dtype is None else np.zeros(0, kind.dtype) for kind in kinds}
  bad, count, rows, absent = [], 0, 0, 0
  for block in blocks:
    values, wrong, empty = _judge(block, kinds, set(missing))
    rows += len(block.numbers) + len(block.broken)
    absent += int(empty.sum())
    here = sorted([*block.broken, *((int(block.numbers[row]), reason) for row, reason in wrong.items())])
    count += len(here)
    bad += here[: _KEPT - len(bad)]
    kept = ~empty
    kept[list(wrong)] = False
    for name, column in values.items():
      column = column if kept.all() else _taken(column, kept)
      if isinstance(column, np.ndarray):
        _append(found[name], column)
      else:
        found[name].append(column)
  told = tuple(f"{path}:{number}: {reason}" for number, reason in bad)
  if count > _allowed(max_bad_rows, rows):
    raise InputError(f"`data`: {'; '.join(told[:_SHOWN])}: {count:,} bad of {rows:,} rows "
                     f"(max_bad_rows={max_bad_rows!r}; max_bad_rows={count} admits them)")
  told += ("",) * (count - len(told))
  for kind in kinds:
    if kind.dtype is None:
      found[kind.name] = _joined(found.pop(kind.name))
  table = Table(found, told, absent)
  if rows == count + absent:
    raise InputError(f"`data`: {path}: holds no interactions" + (f"; {told[0]}" if told else "")
                     + (f"; all {absent:,} rows miss a value" if absent else ""))
  return table


def _append(column: np.ndarray, values: np.ndarray) -> None:
  """Grows a column in place. Large columns grow by moving pages, so that there are never two copies of one."""
  count = len(column)
  column.resize(count + len(values), refcheck=False)
  column[count:] = values


def joined(tables: Mapping[str, Table]) -> tuple[Table, np.ndarray]:
  """(one table of the files of a published split, by the argument that names each; parts [N] int8 of its rows)."""
  pa.default_memory_pool().release_unused()  # the memory of the blocks, which were freed
  found = list(tables.values())
  first = next(iter(found[0].columns))
  counts = [len(x if isinstance(x, np.ndarray) else x[0]) for x in (table.columns[first] for table in found)]
  parts = np.repeat(np.array([PARTS[name] for name in tables], np.int8), counts)
  if len(found) == 1:
    return found[0], parts
  columns = {name: _concatenated([table.columns[name] for table in found]) for name in found[0].columns}
  bad = tuple(row for table in found for row in table.bad_rows)
  return Table(columns, bad, sum(table.missing for table in found)), parts


def _concatenated(columns):
  if isinstance(columns[0], np.ndarray):
    return np.concatenate(columns)
  known: dict[str, int] = {}
  codes = [np.array([known.setdefault(text, len(known)) for text in texts], np.int32)[own] for own, texts in columns]
  return np.concatenate(codes), list(known)


def check_limit(limit: Any) -> None:
  """Raises InputError unless `limit` is a number of rows or a share such as '0.1%'."""
  share = str(limit).removesuffix("%") if isinstance(limit, str) else ""
  good = isinstance(limit, int) and not isinstance(limit, bool) and 0 <= limit <= 10**9
  if isinstance(limit, str) and limit.endswith("%") and share.replace(".", "", 1).isdecimal() and share.isascii():
    good = float(share) <= 100
  if not good:
    raise InputError(f"`data`: max_bad_rows={limit!r}: must be an integer of at least 0, or a share such as '0.1%'")


def _allowed(limit, rows) -> int:
  return math.floor(float(limit[:-1]) / 100 * rows + 1e-9) if isinstance(limit, str) else limit


def _judge(block, kinds, missing) -> tuple[dict[str, Any], dict[int, str], np.ndarray]:
  """({kind: values}, {row: reason} of bad rows, mask of rows that miss a value)."""
  values: dict[str, Any] = {}
  wrong: dict[int, str] = {}
  empty = np.zeros(len(block.numbers), bool)
  for kind, column in zip(kinds, block.columns, strict=True):
    if kind.plain and not missing and (numbers := _plain(column, kind)) is not None:
      values[kind.name] = numbers
      continue
    codes, texts = encoded(column)
    if missing and (gone := [n for n, text in enumerate(texts.to_pylist()) if text in missing]):
      empty |= np.isin(codes, gone)
    values[kind.name], reasons = _ids(codes, texts, kind) if kind.dtype is None else _numbers(codes, texts, kind)
    for row in np.flatnonzero(np.isin(codes, list(reasons))).tolist() if reasons else ():
      wrong.setdefault(row, reasons[int(codes[row])])
  return values, {row: reason for row, reason in wrong.items() if not empty[row]}, empty


def encoded(column: Any) -> tuple[np.ndarray, Any]:
  """(codes [n] int32, distinct texts as a pyarrow array, in the order of their first rows). A null is the text ""."""
  if isinstance(column, pa.ChunkedArray):
    column = column.unify_dictionaries() if pa.types.is_dictionary(column.type) else column
    column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
  if not pa.types.is_dictionary(column.type):
    column = column.fill_null("") if column.null_count else column
    numbers = _cast(column, pa.int64(), b"0123456789")
    column = column.dictionary_encode() if numbers is None or _padded(column) else _as_texts(numbers)
  if column.null_count:
    return encoded(column.dictionary_decode())
  return column.indices.to_numpy(zero_copy_only=False), column.dictionary


def _plain(column, kind) -> np.ndarray | None:
  """The values of a column of digits, points and minus signs; None if a text is anything else, or refused."""
  if pa.types.is_dictionary(column.type) or column.null_count:
    return None
  numbers = []
  for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
    whole = kind.dtype == np.int64
    found = _cast(chunk, pa.int64() if whole else pa.float64(), b"-0123456789" if whole else b"-.0123456789")
    if found is None:
      return None
    numbers.append(found.to_numpy(zero_copy_only=False))
  return kind.plain(np.concatenate(numbers)) if numbers else np.zeros(0, kind.dtype)


def _cast(texts, kind, letters) -> Any:
  """The numbers in an array of texts without nulls; None if a text has a byte that is not in `letters`, or is none."""
  data, offsets = _bytes_of(texts)
  part = data[offsets[0] : offsets[-1]] if len(texts) else data[:0]
  marks = part - np.uint8(ord("-"))  # ASCII has - . / 0 1 ... 9 in a row; a comparison is faster than a table
  if (marks > 12).any() or any((part == other).any() for other in b"-./" if other not in letters):
    return None
  try:
    return texts.cast(kind)
  except pa.ArrowInvalid:
    return None


def _padded(texts) -> bool:
  """Whether one of the texts of digits begins with a zero, as 007 does. Then it is another text than its number."""
  data, offsets = _bytes_of(texts)
  return len(texts) > 0 and bool((data[offsets[:-1]][np.diff(offsets) > 1] == ord("0")).any())


def _as_texts(numbers) -> Any:
  """A dictionary of the numbers as texts: the same as of their texts, in a third of the time."""
  numbers = numbers.dictionary_encode()
  return pa.DictionaryArray.from_arrays(numbers.indices, numbers.dictionary.cast(pa.string()))


def _bytes_of(texts) -> tuple[np.ndarray, np.ndarray]:
  """(all bytes, offsets [n + 1]) of a pyarrow array of text."""
  _, offsets, data = texts.buffers()
  offsets = np.frombuffer(offsets, np.int64 if pa.types.is_large_string(texts.type) else np.int32)
  offsets = offsets[texts.offset : texts.offset + len(texts) + 1]
  return np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8), offsets


def _ids(codes, texts, kind) -> tuple[Any, dict[int, str]]:
  """The column as a dictionary, and {code: reason} of ids that are none."""
  data, offsets = _bytes_of(texts)
  suspect = np.diff(offsets) > 100
  suspect |= True if not len(data) else ~_SAFE[data[np.minimum(offsets[:-1], len(data) - 1)]] | (np.diff(offsets) == 0)
  if len(data) and not data[offsets[0] : offsets[-1]].all():  # a NUL somewhere
    suspect[:] = True
  reasons = {}
  for code in np.flatnonzero(suspect).tolist():
    try:
      kind.read(texts[code].as_py())
    except ValueError as error:
      reasons[code] = str(error)
  return pa.DictionaryArray.from_arrays(pa.array(codes), texts), reasons


def _numbers(codes, texts, kind) -> tuple[np.ndarray, dict[int, str]]:
  values, reasons = [], {}
  for code, text in enumerate(texts.to_pylist()):
    try:
      values.append(kind.read(text))
    except ValueError as error:
      values.append(0)
      reasons[code] = str(error)
  return np.array(values, np.float64 if kind.dtype == np.float32 else kind.dtype).astype(kind.dtype)[codes], reasons


def _taken(column, kept):
  """The kept rows; texts that are left in no row are left out."""
  if isinstance(column, np.ndarray):
    return column[kept]
  return column.filter(pa.array(kept)).dictionary_decode().dictionary_encode()


def _joined(blocks):
  if not blocks:
    return np.zeros(0, np.int32), []
  chunks = pa.chunked_array(blocks).unify_dictionaries().chunks
  return np.concatenate([chunk.indices.to_numpy() for chunk in chunks]), chunks[0].dictionary.to_pylist()
