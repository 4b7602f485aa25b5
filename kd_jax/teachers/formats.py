"""Reads files that hold a teacher. kd_jax.teachers.imported then looks up their ids in the data set.

A file holds rows (.jsonl with an object per line; .tsv, .txt, .csv with named columns; all of these also .gz; or
.parquet) or arrays (.npz). Other fields of a row are ignored. Ids are text or integers.

  scores        user, item, score; arrays users [n], items [n], scores [n]
  ranked lists  user, item, rank (1 is best), and optionally confidence; or a row per user: user, items [K], and
                optionally confidences [K]; arrays users [n], lists [n, K], confidences [n, K], where "" or -1 pads
                shorter lists
  all scores    arrays users [n], items [m], scores [n, m]
  embeddings    user, vector and item, vector; arrays users [n], items [m], user_vectors [n, D], item_vectors [m, D]
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from kd_jax.base import InputError
from kd_jax.data import parsing
from kd_jax.data.formats import parquet
from kd_jax.storage import sealed

_ROWS = "user, item, score; user, item, rank[, confidence]; user, items[, confidences]; user or item, vector"
_ARRAYS = "users, items, scores; users, lists[, confidences]; users, items, user_vectors, item_vectors"


class Side(NamedTuple):
  """Ids of users or of items, in the order of the file."""

  ids: Sequence  # [n]
  place: Callable[[int], Any]  # index of an id -> its line, row or array index, for error messages
  values: np.ndarray | None = None  # [n, ...] rows of a table


class Pairs(NamedTuple):
  """Ranks or scores of N pairs."""

  user: Side
  item: Side
  ranks: np.ndarray | None  # [N], the lowest is best; None: order by descending score
  scores: np.ndarray | None  # [N]


class Tables(NamedTuple):
  """Embeddings [n, D] and [m, D]; or all scores [n, m] as values of `user`, and no values of `item`."""

  user: Side
  item: Side


def read(where: str, path: str) -> Pairs | Tables:
  """Reads a file. Raises InputError, which begins with `where` and names the line, row or array."""
  file = pathlib.Path(path)
  if not file.is_file():
    raise InputError(f"{where}: no such file")
  return _from_arrays(where, path) if file.suffix == ".npz" else _from_rows(where, _rows(where, file))


def refuse(where: str, place: Callable[[int], Any], bad: np.ndarray, what: str) -> None:
  """Raises InputError naming the place of the first True in `bad` [n], if there is one."""
  if bad.any():
    raise InputError(f"{where}:{place(int(bad.argmax()))}: {what}")


def _from_arrays(where, path) -> Pairs | Tables:
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
  except sealed.NOT_ARRAYS as error:
    raise InputError(f"{where}: not an .npz file of plain arrays: {' '.join(str(error).split())[:200]}") from None
  get = arrays.get
  shape = {name: array.shape for name, array in arrays.items()}
  n, m = (len(arrays[name]) if np.ndim(get(name)) == 1 else -1 for name in ("users", "items"))

  def side(name, values=None):
    return Side(arrays[name].tolist(), lambda k: f"{name}[{k}]", values)

  for name in arrays.keys() & {"scores", "confidences", "user_vectors", "item_vectors"}:
    if arrays[name].dtype.kind not in "fiu":
      raise InputError(f"{where}: {name} is {arrays[name].dtype}, expected numbers")
    arrays[name] = arrays[name].astype(np.promote_types(arrays[name].dtype, np.float32))  # unsigned: has no negatives
  if "lists" in arrays and n >= 0 and shape["lists"][:1] == (n,) and len(shape["lists"]) == 2 and (
      "confidences" not in arrays or shape["confidences"] == shape["lists"]):
    return _listed(arrays)
  if "scores" in arrays and n >= 0 and m >= 0:
    if shape["scores"] == (n, m):
      return Tables(side("users", arrays["scores"]), side("items"))
    if shape["scores"] == (n,) == (m,):
      return Pairs(side("users"), side("items"), None, arrays["scores"])
  vectors = [shape.get(name, ()) for name in ("user_vectors", "item_vectors")]
  if n >= 0 and m >= 0 and [x[:1] for x in vectors] == [(n,), (m,)] and all(len(x) == 2 for x in vectors):
    return Tables(side("users", arrays["user_vectors"]), side("items", arrays["item_vectors"]))
  found = ", ".join(f"{name} {list(x)}" for name, x in shape.items()) or "nothing"
  raise InputError(f"{where}: holds {found}; expected {_ARRAYS}, of fitting shapes")


def _listed(arrays) -> Pairs:
  lists, confidences = arrays["lists"], arrays.get("confidences")
  width = lists.shape[1]
  ended = lists == ("" if lists.dtype.kind == "U" else -1)
  kept = np.flatnonzero(~ended)

  def place(k):
    return f"lists[{kept[k] // width}, {kept[k] % width}]"

  return Pairs(Side(arrays["users"][kept // width].tolist(), place), Side(lists.ravel()[kept].tolist(), place),
                kept % width, None if confidences is None else confidences.ravel()[kept])


def _from_rows(where, rows) -> Pairs | Tables:
  kind, entries = None, []
  for place, row in rows:
    said = _kind(row)
    if said is None or kind not in (None, said):
      what = "are of another kind than those before" if said else f"are none of {_ROWS}"
      raise InputError(f"{where}:{place}: the fields {', '.join(map(str, row))[:200]} {what}")
    kind = said
    try:
      entries += ((place, *entry) for entry in _entries(kind, row))
    except (ValueError, TypeError) as error:
      raise InputError(f"{where}:{place}: {error}") from None
  if kind is None:
    raise InputError(f"{where}: holds no rows")
  if kind == ("vector",):
    return Tables(*(_stacked(where, name, [e for e in entries if e[1] == name]) for name in ("user", "item")))
  if not entries:
    raise InputError(f"{where}: all its lists are empty")
  places, users, items, ranks, scores = zip(*entries, strict=True)

  def place(n):
    return places[n]

  scores = None if scores[0] is None else np.array(scores, float)
  return Pairs(Side(users, place), Side(items, place), None if kind == ("score",) else np.array(ranks), scores)


def _kind(row) -> tuple[str, ...] | None:
  """The names of the fields of a row other than its ids; None if the row has no valid format."""
  has = {name for name, value in row.items() if value is not None}
  if "vector" in has and len(has & {"user", "item"}) == 1:
    return ("vector",)
  if {"user", "items"} <= has:
    return ("items", "confidences") if "confidences" in has else ("items",)
  if {"user", "item", "score"} <= has:
    return ("score",)
  if {"user", "item", "rank"} <= has:
    return ("rank", "confidence") if "confidence" in has else ("rank",)
  return None


def _entries(kind, row) -> Iterator[tuple]:
  """The entries of a row: (user, item, rank, score or None), or (side, id, vector)."""
  if kind[0] == "vector":
    side = "user" if row.get("user") is not None else "item"
    yield side, row[side], _vector(row["vector"])
  elif kind[0] == "items":
    items, confidences = row["items"], row.get("confidences")
    if not isinstance(items, list) or (confidences is not None and np.shape(confidences) != (len(items),)):
      raise ValueError("items must be a list, confidences one as long")
    for rank, item in enumerate(items):
      yield row["user"], item, rank, None if confidences is None else _number(confidences[rank])
  elif kind[0] == "score":
    yield row["user"], row["item"], None, _number(row["score"])
  else:
    yield row["user"], row["item"], _number(row["rank"]), _number(row["confidence"]) if kind[1:] else None


def _number(value) -> float:
  if isinstance(value, bool) or not isinstance(value, str | int | float):
    raise ValueError(f"{str(value)[:40]!r} is not a number")
  try:
    return float(value)
  except OverflowError:  # an integer of more than 308 digits
    return math.inf


def _vector(values) -> np.ndarray:
  if not isinstance(values, list) or not values:
    raise ValueError("a vector must be a list of numbers")
  return np.array([_number(x) for x in values])


def _stacked(where, side, entries) -> Side:
  """The vectors [n, D] of users or of items."""
  if not entries:
    raise InputError(f"{where}: has no vectors of {side}s")
  width = len(entries[0][3])

  def place(n):
    return entries[n][0]

  refuse(where, place, np.array([len(e[3]) != width for e in entries]), f"the first vector has {width} numbers")
  return Side([e[2] for e in entries], place, np.stack([e[3] for e in entries]))


def _rows(where, path: pathlib.Path) -> Iterator[tuple[Any, dict[str, Any]]]:
  """(line or row number, {name: value}, with None for missing values)."""
  suffix = parsing.kind(path)
  if suffix == parsing.PARQUET:
    yield from _parquet(where, path)
  elif suffix == ".jsonl":
    for number, line in parsing.lines(path, "teacher"):
      try:
        row = json.loads(line)
      except (ValueError, RecursionError) as error:
        raise InputError(f"{where}:{number}: not JSON: {error}") from None
      if not isinstance(row, dict):
        raise InputError(f"{where}:{number}: not an object")
      yield number, row
  elif suffix in parsing.DELIMITERS:
    header = None
    for number, line in parsing.lines(path, "teacher"):
      row, reason = parsing.fields(line, parsing.DELIMITERS[suffix], header and len(header))
      if row is None:
        raise InputError(f"{where}:{number}: {reason}")
      if header is not None:
        yield number, dict(zip(header, row, strict=True))
      header = header or row
  else:
    raise InputError(f"{where}: a file of .npz, .parquet, .jsonl, .tsv, .txt or .csv is read")


def _parquet(where, path):
  number = 0
  with parquet.opened(path, where) as file:
    for batch in file.iter_batches():
      for row in batch.to_pylist():
        number += 1
        yield f"row {number}", row
