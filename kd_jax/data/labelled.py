"""Reads your own labelled table."""

from __future__ import annotations

import functools
import operator
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from kd_jax.base import Features, InputError
from kd_jax.data import interactions, parsing
from kd_jax.data.formats import checked, table
from kd_jax.data.formats.checked import Kind, Limit
from kd_jax.data.formats.table import Column, Shape
from kd_jax.data.recipe import Contexts, Log, Recipe, Source

_TRUTH = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
_LABEL, _FIELD, _NUMBER = "label ", "field ", "number "  # beginnings of the names of kinds
_RULES = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


Fill = float | str | None  # what an empty number becomes


def labelled(path: str, labels: tuple = ("label",), fields: tuple = (), numeric: tuple = (),
             timestamp: Column | None = None, split_column: Column | None = None, hashed=0, split="random",
             ratios=(0.8, 0.1, 0.1), split_seed=0, folds=0, fold=0, delimiter: str | None = None,
             max_bad_rows: Limit = 0, header: bool | None = None, skip=0, quoting=True, unit: str | None = None,
             missing: tuple = (), positive: str | None = None, fill: Fill = None, validation: str | None = None,
             test: str | None = None) -> Recipe:
  """Your own labelled table: CSV, TSV or text, JSON lines or Parquet, packed or not; a row is a context.

  Origin: `path`, in the working directory or the data folder (in `data_dir` first, if it is given); licence and
  counts depend on the file. Its sha256 is part of the prepared data set's name, so a changed file is prepared again.
  The arguments name columns: `labels`, one (clicks) or several (tags), each 0 or 1 (or false, true), or as `positive`
  says: 'yes' (this word is positive, all others are not), or '>=4', '>4', '<=4', '<4' (numbers); `fields`,
  categorical, any text, where an empty text is a value too; `numeric`, finite numbers, which are standardised to mean
  0 and variance 1 over training for the models; `timestamp`, in the `unit` of `interactions`. An empty number is an
  error, or with `fill` another number: 'mean', of training, or the one that is given; a field NAME_missing then says
  where it was. The vocabulary of a field is exact; with `hashed`, values are hashed (CRC-32) into that many buckets.
  Group AUC groups by the field named user, if there is one. `delimiter`, `header`, `skip`, `quoting`, `max_bad_rows`
  and `missing` are those of `interactions`; without a header, columns are numbers, and fields are named by them. A row
  is bad if it has another number of columns or an invalid value. Split by context: random (with `folds`, k-fold: fold
  `fold` is test, and a share ratios[1] of the rest is validation), temporal, or given, which reads train, validation
  or test from `split_column`, or from the files `validation` and `test` beside `path`. The order of the rows does not
  matter: contexts are sorted by their values. The id of a context is the number of its row over all files, from 0, bad
  ones left out.
  """
  files = {name: x for name, x in (("path", path), ("validation", validation), ("test", test)) if x is not None}
  if (split == "given") != (split_column is not None or len(files) == 3) or (split_column and len(files) > 1):
    raise InputError("`data`: split='given' and split_column='...', or validation='...' and test='...', go together")
  names = [*labels, *fields, *numeric, *(x for x in (timestamp, split_column) if x is not None)]
  wrong = [v for v in (*files.values(), *names) if not isinstance(v, str | int) or isinstance(v, bool) or v == ""]
  if wrong or len(set(names)) < len(names) or not labels or not (fields or numeric):
    raise InputError("`data`: labelled needs distinct names of columns, at least one of labels, and one of fields or "
                     f"numeric, not {wrong or names}")
  if isinstance(hashed, bool) or not isinstance(hashed, int) or hashed < 0:
    raise InputError(f"`data`: hashed={hashed!r}: must be an integer of at least 0")
  if not (fill is None or fill == "mean" or (isinstance(fill, int | float) and not isinstance(fill, bool))):
    raise InputError(f"`data`: fill={fill!r}: must be 'mean', a number or None")
  interactions.check_shape({"delimiter": delimiter, "missing": missing, "max_bad_rows": max_bad_rows, "unit": unit})
  label, value = functools.partial(_label, _rule(positive)), functools.partial(_value, fill)
  columns = {Kind(f"{_LABEL}{name}", label, bool): name for name in labels}
  columns |= {Kind(f"{_FIELD}{name}", _category): name for name in fields}
  columns |= {Kind(f"{_NUMBER}{name}", value, np.float32, parsing.all_finite): name for name in numeric}
  columns |= {parsing.times(unit): timestamp} if timestamp is not None else {}
  columns |= {parsing.KINDS["parts"]: split_column} if split_column is not None else {}
  read = functools.partial(_read, columns, Shape(delimiter, header, skip, quoting), hashed, fill, max_bad_rows, missing)
  return Recipe(lambda paths: read(dict(zip(files, paths, strict=True))), tuple(
      Source(pathlib.Path(x).name, None, ((x, None),)) for x in files.values()), split=split,
                ratios=ratios, split_seed=split_seed, folds=folds, fold=fold, revision=1)


def _read(columns: dict[Kind, Any], shape: Shape, hashed, fill, max_bad_rows, missing,
          paths: dict[str, pathlib.Path]) -> Log:
  found, parts = checked.joined({
      name: checked.collect(path, table.blocks(path, columns, shape), list(columns), max_bad_rows, missing)
      for name, path in paths.items()})
  texts = {kind.name: _code(*found.columns[kind.name], hashed) for kind in columns if kind.dtype is None}
  numbers = {kind.name: found.columns[kind.name] for kind in columns if kind.dtype is not None}
  numbers |= {"parts": parts} if len(paths) > 1 else {}
  for name in [name for name in numbers if fill is not None and name.startswith(_NUMBER)]:
    gone = np.isnan(numbers[name])
    texts[f"{_FIELD}{name.removeprefix(_NUMBER)}_missing"] = gone.astype(np.int32), 2
    if fill != "mean":
      numbers[name] = np.where(gone, np.float32(fill), numbers[name])
  rows = np.lexsort([*numbers.values(), *(codes for codes, _ in texts.values())])
  numbers = {name: column[rows] for name, column in numbers.items()}
  features = Features(tuple(name.removeprefix(_FIELD) for name in texts), tuple(size for _, size in texts.values()),
                      np.stack([codes[rows] for codes, _ in texts.values()], axis=1) if texts else None,
                      {name.removeprefix(_NUMBER): column[:, None] for name, column in numbers.items()
                       if name.startswith(_NUMBER)})
  true = {name.removeprefix(_LABEL): x for name, x in numbers.items() if name.startswith(_LABEL)}
  return Log(*np.nonzero(np.stack(list(true.values()), axis=1)), [str(n) for n in rows], list(true),
             bad_rows=found.bad_rows, missing=found.missing, user_features=features, unordered=True,
             contexts=Contexts(numbers.get("timestamps"), numbers.get("parts")))


def _code(codes, texts, hashed) -> tuple[np.ndarray, int]:
  """(codes [E] int32, number of distinct codes)."""
  distinct, order = np.unique(np.array(texts), return_inverse=True)
  if not hashed:
    return order.astype(np.int32)[codes], len(distinct)
  buckets = np.array([zlib.crc32(value.encode()) % hashed for value in distinct.tolist()], np.int32)
  return buckets[order][codes], hashed


def _rule(positive: str | None) -> Callable[[str], bool] | None:
  """What makes a label positive; None: 1 or true."""
  if positive is None:
    return None
  if not isinstance(positive, str) or not positive:
    raise InputError(f"`data`: positive={positive!r}: must be a word, or a bound such as '>=4'")
  compare = next((sign for sign in _RULES if positive.startswith(sign)), None)
  if compare is None:
    return functools.partial(operator.eq, positive)
  try:
    bound = parsing.number(positive.removeprefix(compare), "positive")
  except ValueError as error:
    raise InputError(f"`data`: positive={positive!r}: {error}") from None
  return lambda text: _RULES[compare](parsing.number(text, "label"), bound)


def _label(rule, text):
  if rule is not None:
    if text == "":
      raise ValueError("an empty label")
    return rule(text)
  if text.lower() not in _TRUTH:
    raise ValueError(f"label {text[:40]!r} is neither 0 nor 1 (positive='...' says what is positive)")
  return _TRUTH[text.lower()]


def _category(text):
  return text


def _value(fill, text):
  return np.nan if fill is not None and not text.strip() else parsing.number(text, "number")
