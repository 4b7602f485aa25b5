"""Reads your own labelled table."""

from __future__ import annotations

import functools
import pathlib
import zlib

import numpy as np

from kd_jax.base import Features, InputError
from kd_jax.data import interactions, parsing
from kd_jax.data.recipe import Contexts, Log, Recipe, Source

_TRUTH = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


def labelled(path: str, labels: tuple = ("label",), fields: tuple = (), numeric: tuple = (),
             timestamp: str | None = None, split_column: str | None = None, hashed=0, split="random",
             ratios=(0.8, 0.1, 0.1), split_seed=0, folds=0, fold=0, delimiter: str | None = None,
             max_bad_rows=0) -> Recipe:
  """Your own labelled table: CSV, TSV or text with a header line, gzipped or not, or Parquet; a row is a context.

  Origin: `path`, in the working directory or the data folder (in `data_dir` first, if it is given); licence and
  counts depend on the file. Its sha256 is part of the prepared data set's name, so a changed file is prepared again.
  The arguments name columns: `labels`, one (clicks) or several (tags), each 0 or 1 (or false, true); `fields`,
  categorical, any text, where an empty text is a value too; `numeric`, finite numbers, which are standardised to mean
  0 and variance 1 over training for the models; `timestamp`, seconds. The vocabulary of a field is exact; with
  `hashed`, values are hashed (CRC-32) into that many buckets. Group AUC groups by the field named user, if there is
  one. A row is bad if it has another number of columns or an invalid value. More than `max_bad_rows` bad rows are an
  error, which names file, line and reason. Split by context: random (with `folds`, k-fold: fold `fold` is test, and a
  share ratios[1] of the rest is validation), temporal, or given, which reads train, validation or test from
  `split_column`. The order of the rows does not matter: contexts are sorted by their values. The id of a context is
  the number of its row, from 0, bad ones left out.
  """
  if (split == "given") != (split_column is not None):
    raise InputError("`data`: split='given' and split_column='...' go together")
  names = [*labels, *fields, *numeric, *(x for x in (timestamp, split_column) if x is not None)]
  wrong = [v for v in (path, *names) if not isinstance(v, str) or not v]
  if wrong or len(set(names)) < len(names) or not labels or not (fields or numeric):
    raise InputError("`data`: labelled needs distinct names of columns, at least one of labels, and one of fields or "
                     f"numeric, not {wrong or names}")
  for name, value in (("hashed", hashed), ("max_bad_rows", max_bad_rows)):
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
      raise InputError(f"`data`: {name}={value!r}: must be an integer of at least 0")
  kinds = dict.fromkeys(labels, _label) | dict.fromkeys(fields, _category) | dict.fromkeys(numeric, _number)
  kinds |= {name: parsing.READERS[kind] for name, kind in ((timestamp, "timestamps"), (split_column, "parts")) if name}
  read = functools.partial(_read, kinds, (labels, fields, numeric, timestamp, split_column), hashed, delimiter,
                           max_bad_rows)
  return Recipe(lambda paths: read(paths[0]), (Source(pathlib.Path(path).name, None, ((path, None),)),), split=split,
                ratios=ratios, split_seed=split_seed, folds=folds, fold=fold, revision=1)


def _read(kinds, roles, hashed, delimiter, max_bad_rows, path: pathlib.Path) -> Log:
  labels, fields, numeric, timestamp, split_column = roles
  values, bad = _columns(kinds, delimiter, max_bad_rows, path)
  coded = {name: _code(values[name], hashed) for name in fields}
  columns = {name: np.array(values[name], _TYPES[kind]) for name, kind in kinds.items() if kind in _TYPES}
  columns |= {name: codes for name, (codes, _) in coded.items()}
  rows = np.lexsort(list(columns.values()))
  columns = {name: column[rows] for name, column in columns.items()}
  features = Features(tuple(fields), tuple(size for _, size in coded.values()),
                      np.stack([columns[name] for name in fields], axis=1) if fields else None,
                      {name: columns[name][:, None] for name in numeric})
  contexts = Contexts(columns.get(timestamp), columns.get(split_column))
  true = np.stack([columns[name] for name in labels], axis=1)
  return Log(*np.nonzero(true), [str(n) for n in rows], list(labels), bad_rows=tuple(bad), user_features=features,
             contexts=contexts, unordered=True)


def _columns(kinds, delimiter, max_bad_rows, path) -> tuple[dict[str, list], list[str]]:
  """({name: values} of the valid rows, "file:line: reason" of each bad row)."""
  columns, bad = {name: [] for name in kinds}, []
  for number, row, reason in interactions.rows(path, dict(enumerate(kinds)), delimiter):
    try:
      if row is None:
        raise ValueError(reason)
      values = [read(text) for read, text in zip(kinds.values(), row, strict=True)]
    except ValueError as error:
      bad.append(f"{path}:{number}: {error}")
      if len(bad) > max_bad_rows:
        raise InputError(f"`data`: {bad[0]} ({len(bad)} bad, max_bad_rows={max_bad_rows})") from None
      continue
    for column, value in zip(columns.values(), values, strict=True):
      column.append(value)
  return columns, bad


def _code(values, hashed) -> tuple[np.ndarray, int]:
  """(codes [E] int32, number of distinct codes)."""
  distinct, codes = np.unique(np.array(values), return_inverse=True)
  if not hashed:
    return codes.astype(np.int32), len(distinct)
  buckets = np.array([zlib.crc32(value.encode()) % hashed for value in distinct.tolist()], np.int32)
  return buckets[codes], hashed


def _label(text):
  if str(text).lower() not in _TRUTH:
    raise ValueError(f"label {str(text)[:40]!r} is neither 0 nor 1")
  return _TRUTH[str(text).lower()]


def _category(text):
  return "" if text is None else text


def _number(text):
  return parsing.READERS["ratings"](text, "number")


_TYPES = {_label: bool, _number: np.float32, parsing.READERS["timestamps"]: np.int64, parsing.READERS["parts"]: np.int8}
