"""Reads your own interaction log."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import numpy as np

from kd_jax.base import InputError
from kd_jax.data import cleaning, order, parsing, splits
from kd_jax.data.formats import checked, entities, per_user, sniff, table
from kd_jax.data.formats.checked import PARTS, Kind, Limit, Table
from kd_jax.data.formats.table import Column, Shape
from kd_jax.data.recipe import VALIDATION, Log, Recipe, Source

_FILES = (*PARTS, "user_table", "item_table")
_ROLES = {"users": "user", "items": "item", "ratings": "rating", "timestamps": "timestamp", "parts": "split_column"}


def interactions(path: str, user: Column = "user", item: Column = "item", rating: Column | None = None,
                 timestamp: Column | None = None, min_rating: float | None = None, min_user=1, min_item=1,
                 split="random", split_column: Column | None = None, ratios=(0.8, 0.1, 0.1), split_seed=0,
                 delimiter: str | None = None, max_bad_rows: Limit = 0, layout: str | None = None,
                 header: bool | None = None, skip=0, quoting=True, validation: str | None = None,
                 test: str | None = None, validation_ratio=0.1, unit: str | None = None, missing: tuple = (),
                 repeated="first", user_table: str | None = None, item_table: str | None = None) -> Recipe:
  """Your own log: text with a separator, one line per user, JSON lines, Parquet, RecBole's files; packed or not.

  Origin: `path`, in the working directory or the data folder (in `data_dir` first, if it is given); licence and
  counts depend on the file. Its sha256 is part of the prepared data set's name, so a changed file is prepared again.
  `path` alone is enough for most files: prepare.py says how it was read, and the full call. If two readings are
  possible, it says which, and reads nothing. docs/bring_your_own_data.md has an example of each format.
  `user`, `item`, `rating`, `timestamp` and `split_column` are columns by name, or by number from 0, with or without a
  `header`. Ids stay strings: 001 is not 1. `skip` lines come before the header or the first row. Text is UTF-8, and a
  quoted field ends on its line; `quoting=False` reads quotes as letters. `delimiter` defaults to a comma for .csv and a
  tab for .tsv, .txt and RecBole's files. A file may be packed: .gz, .bz2, .xz, or .zip of one file.
  `layout` is for one line per user: 'user items', 'user count items', 'count items', 'items' (the user is the number
  of the line), and the same with 'item:rating'. `unit` of time stamps: None (seconds, any number), 'seconds',
  'milliseconds', 'microseconds' (mixed ones are bad rows), or 'iso8601'.
  A row is bad if it has another number of columns, an empty id, a rating or time stamp that is not a finite number, a
  NUL or invalid UTF-8. More than `max_bad_rows` bad rows, a number or a share such as '0.1%', are an error, which
  counts all and shows the first three. Rows with one of the words `missing` in a column that is read are left out
  and counted.
  Filter: ratings of at least `min_rating`, duplicates, k-core `min_user`, `min_item`. Of a `repeated` (user, item):
  'first' keeps the earliest, and of equal times, or without times, the one with the lowest rating; 'sum' keeps that
  with the sum of all ratings, or their number, which `min_rating` then bounds; 'keep' keeps all in training and the
  earliest elsewhere. Split: any rule of splits.py; split='given' reads train, validation or test from `split_column`,
  or from the files `validation` and `test` beside `path`. If nothing is in validation, a random
  floor(`validation_ratio` n) of each user's n training rows are moved there. The order of the rows matters for
  split='position', and for split='loo_last' without time stamps, which takes it for time; else they are sorted
  first, see `order.unordered`.
  `user_table` and `item_table` are files of features, such as RecBole's .user and .item, see formats/entities.py.
  """
  arguments = dict(locals())
  _check(arguments)
  read = functools.partial(_read, arguments)
  in_order = split == "position" or _in_time(arguments)
  files = [Source(pathlib.Path(x).name, None, ((x, None),)) for x in map(arguments.get, _FILES) if x is not None]
  return Recipe(read, tuple(files), None if repeated == "sum" else min_rating, min_user, min_item, split, ratios,
                split_seed, may_be_empty=("validation",) if split == "given" and not validation_ratio else (),
                revision=0 if in_order else 1, repeated="keep" if repeated == "keep" else "first",
                complete=functools.partial(_complete, arguments))


def _check(given: dict[str, Any]) -> None:
  """Raises InputError for arguments that contradict each other."""
  parts = [given[x] for x in ("split_column", "validation", "test") if given[x] is not None]
  if (given["split"] == "given") != bool(parts):
    raise InputError("`data`: split='given' and split_column='...', or validation='...' and test='...', go together")
  if given["split_column"] is not None and len(parts) > 1:
    raise InputError("`data`: split_column='...' is of one file, validation='...' and test='...' of several")
  names = [given[x] for x in _ROLES.values() if given[x] is not None]
  files = [given[x] for x in _FILES if given[x] is not None]
  wrong = [x for x in (*files, *names) if not isinstance(x, str | int) or isinstance(x, bool) or x == ""]
  wrong += [x for x in files if not isinstance(x, str)] + [x for x in names if isinstance(x, int) and x < 0]
  if wrong or len(set(names)) < len(names) or len(set(files)) < len(files):
    raise InputError(f"`data`: interactions needs distinct, non-empty names, or numbers, not {wrong or names}")
  check_shape(given)
  choices = {"layout": (None, *per_user.LAYOUTS), "unit": (None, *parsing.UNITS, "iso8601"),
             "repeated": ("first", "sum", "keep")}
  for name, known in choices.items():
    if given[name] not in known:
      raise InputError(f"`data`: {name}={given[name]!r}: choose from {', '.join(map(repr, known))}")
  if given["layout"] and (given["timestamp"] is not None or given["rating"] is not None or given["split_column"]):
    raise InputError(f"`data`: layout={given['layout']!r} has one line per user: it has no columns rating, timestamp, "
                     "split_column")
  if given["repeated"] == "sum" and given["split"] == "given":
    raise InputError("`data`: repeated='sum' would add interactions of several parts, so not with split='given'")


def check_shape(given: dict[str, Any]) -> None:
  """Raises InputError for a wrong delimiter, max_bad_rows or missing."""
  delimiter, missing = given["delimiter"], given["missing"]
  if delimiter is not None and (not isinstance(delimiter, str) or not delimiter or delimiter in '"\n\r'):
    raise InputError(f"`data`: delimiter={delimiter!r}: must be a text such as ','")
  if not isinstance(missing, tuple | list) or not all(isinstance(x, str) for x in missing):
    raise InputError(f"`data`: missing={missing!r}: must be a tuple of words, such as ('NA', '')")
  checked.check_limit(given["max_bad_rows"])


def _in_time(given) -> bool:
  return given["split"] == "loo_last" and given["timestamp"] is None


def _complete(given: dict[str, Any], paths: list[pathlib.Path]) -> dict[str, Any]:
  """What the files decide. Paths in the answer begin as the path that was given."""
  found = sniff.complete(paths[0], given)
  return found | {name: str(pathlib.Path(given["path"]) / pathlib.Path(found[name]).relative_to(paths[0]))
                  for name in _FILES if name in found}


def _read(given: dict[str, Any], paths: list[pathlib.Path]) -> Log:
  files = dict(zip((name for name in _FILES if given[name] is not None), paths, strict=True))
  found, parts = checked.joined({name: _table(given, files[name]) for name in PARTS if name in files})
  log = parsing.log_of(found)
  log = _with_features(log if len(files.keys() & PARTS) == 1 else log._replace(parts=parts), given, files)
  in_order = given["split"] == "position" or _in_time(given)
  log = log._replace(in_time=_in_time(given)) if in_order else order.unordered(log)
  if given["repeated"] == "sum":
    log = _summed(log, given["min_rating"])
  if log.parts is None or (log.parts == VALIDATION).any():
    return log
  ratio = given["validation_ratio"]
  return log._replace(parts=splits.hold_out(log, ratio, given["split_seed"]), moved=ratio)


def _with_features(log: Log, given, files: dict[str, pathlib.Path]) -> Log:
  """The log with the features of the tables of users and items."""
  for side, column in (("user", given["user"]), ("item", given["item"])):
    if path := files.get(f"{side}_table"):
      ids = getattr(log, f"{side}_ids")
      features, left_out = entities.read(path, ids, parsing.KINDS[f"{side}s"], column, given["max_bad_rows"])
      log = log._replace(**{f"{side}_features": features}, notes=log.notes + left_out)
  return log


def _table(given, path: pathlib.Path) -> Table:
  """The checked columns of a file."""
  if given["layout"]:
    kinds = [parsing.KINDS[x] for x in ("users", "items", *(["ratings"] if "rating" in given["layout"] else []))]
    blocks = per_user.blocks(path, given["layout"], given["delimiter"], given["skip"])
  else:
    columns = {_kind(name, given): given[role] for name, role in _ROLES.items() if given[role] is not None}
    kinds = list(columns)
    blocks = table.blocks(path, columns, Shape(given["delimiter"], given["header"], given["skip"], given["quoting"]))
  return checked.collect(path, blocks, kinds, given["max_bad_rows"], given["missing"])


def _kind(name, given) -> Kind:
  return parsing.times(given["unit"]) if name == "timestamps" else parsing.KINDS[name]


def _summed(log: Log, min_rating: float | None) -> Log:
  """One row per (user, item): the earliest, with the sum of its ratings, or the number of its rows."""
  first = cleaning.first_of_pairs(log)
  _, pair = np.unique(log.users.astype(np.int64) * len(log.item_ids) + log.items, return_inverse=True)
  sums = np.bincount(pair, None if log.ratings is None else log.ratings.astype(np.float64))
  log = cleaning.take(log._replace(ratings=sums[pair].astype(np.float32)), first)
  return log if min_rating is None else cleaning.take(log, log.ratings >= min_rating)
