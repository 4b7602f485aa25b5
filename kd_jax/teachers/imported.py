"""Teachers from files of other frameworks or language models, with ids mapped to the indices of the data set.

Formats: see formats.py. A table of all scores, and embeddings, make a live teacher; they must contain every user and
item. Scores of some pairs, and ranked lists, are used like stored soft labels, with the length that they have.
Confidences become the scores of ranked lists: higher is more confident. They need not descend along a list.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from kd_jax.base import Dataset, InputError, Outputs, Ranked
from kd_jax.data import order
from kd_jax.teachers import formats
from kd_jax.teachers.formats import Pairs, Side, Tables, refuse


class Scores(nn.Module):
  """A teacher that is a table of scores [U, I]."""

  inner_product = False
  num_users: int
  num_items: int

  def setup(self):
    self.scores = self.param("scores", nn.initializers.zeros, (self.num_users, self.num_items))

  def tables(self):
    return self.scores

  def __call__(self, batch, tables=None) -> Outputs:
    scores = (self.tables() if tables is None else tables)[batch["users"]]
    return Outputs(scores).of(batch.get("items"))


class Imported(NamedTuple):
  """The tables or lists of a file, with indices of the data set."""

  tables: dict[str, np.ndarray]  # {"user": [U, D], "item": [I, D]}, {"scores": [U, I]}, or empty
  lists: Ranked | None  # [U, K]; -1 and -inf after the end of a list
  scored: bool  # False: the lists have an order but no scores
  coverage: str  # one line: how many users and items of the data the file covers


def read(path: str, dataset: Dataset, unknown_ids: int = 0) -> Imported:
  """Reads a teacher. Entries with ids that are not in the data are skipped, if at most `unknown_ids` ids are unknown.

  Raises InputError, one line with file and line: too many unknown ids, a repeated entry, a value that is not a finite
  number, a wrong shape, or a live teacher without a user or an item of the data.
  """
  where = f"`teacher=file:{path}`"
  content = formats.read(where, path)
  known = {"user": dataset.user_ids.tolist(), "item": dataset.item_ids.tolist()}
  unknown: dict[tuple[str, str], Any] = {}
  codes = {side: _codes(where, side, getattr(content, side), known[side], unknown) for side in known}
  if len(unknown) > unknown_ids:
    (side, text), place = next(iter(unknown.items()))
    raise InputError(f"{where}:{place}: {dataset.name} has no {side} {text[:40]!r} ({len(unknown):,} unknown ids; "
                     f"`teacher_unknown_ids={len(unknown)}` would leave them out)")
  if isinstance(content, Pairs):
    found = _lists(where, content, codes, dataset)
  else:
    found = _tables(where, content, codes, known)
  left_out = f"; {len(unknown):,} unknown ids left out" if unknown else ""
  return found._replace(coverage=found.coverage + left_out)


def _codes(where, side, given: Side, known, unknown) -> np.ndarray:
  """Indices [n] of the ids in the data, -1 for unknown ids."""
  index = {text: n for n, text in enumerate(known)}
  codes = np.empty(len(given.ids), np.int64)
  for n, value in enumerate(given.ids):
    if isinstance(value, bool) or not isinstance(value, str | int):
      raise InputError(f"{where}:{given.place(n)}: the {side} id {str(value)[:40]!r} is neither text nor an integer")
    codes[n] = index.get(str(value), -1)
    if codes[n] < 0:
      unknown.setdefault((side, str(value)), given.place(n))
  return codes


def _lists(where, pairs: Pairs, codes, dataset) -> Imported:
  """The lists by rank, or by score; items of equal score are in the order of their priority."""
  users, items, place = codes["user"], codes["item"], pairs.user.place
  for values in (pairs.ranks, pairs.scores):
    if values is not None:
      refuse(where, place, ~_finite(values), "a value is no finite number")
  rows = np.flatnonzero((users >= 0) & (items >= 0))
  if not len(rows):
    raise InputError(f"{where}: says nothing of any user and item of the data")

  def by(*keys):
    return rows[np.lexsort(tuple(key[rows] for key in keys))]  # the last key is the primary one

  def as_before(x, rows):
    return x[rows[1:]] == x[rows[:-1]]

  by_pair = by(items, users)
  twice = as_before(users, by_pair) & as_before(items, by_pair)
  refuse(where, lambda n: place(by_pair[n + 1]), twice, "the user has this item twice")
  by_rank = by(order.priority(dataset.item_ids)[items], -pairs.scores if pairs.ranks is None else pairs.ranks, users)
  if pairs.ranks is not None:
    tied = as_before(users, by_rank) & as_before(pairs.ranks, by_rank)
    refuse(where, lambda n: place(by_rank[n + 1]), tied, "the user has two items of this rank")
  users, items = users[by_rank], items[by_rank]
  lengths = np.bincount(users, minlength=dataset.num_users)
  column = np.arange(len(users)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
  shape = len(lengths), lengths.max()
  ranked = Ranked(np.full(shape, -1, np.int32), np.full(shape, -np.inf, np.float32))
  ranked.items[users, column] = items
  ranked.scores[users, column] = 0 if pairs.scores is None else pairs.scores[by_rank]
  listed, kind = lengths[lengths > 0], "lists without scores" if pairs.scores is None else "scored lists"
  return Imported({}, ranked, pairs.scores is not None, (
      f"{kind}, of {len(listed):,} of {dataset.num_users:,} users, with {len(np.unique(items)):,} of "
      f"{dataset.num_items:,} items; {listed.min()} to {listed.max()} items each, median {np.median(listed):g}"))


def _finite(values) -> np.ndarray:
  return np.abs(values) <= np.finfo(np.float32).max  # False for NaN


def _tables(where, content: Tables, codes, known) -> Imported:
  users = _table(where, "user", content.user, codes["user"], known["user"])
  if content.item.values is None:
    columns = content.item._replace(values=users.T)
    scores = np.ascontiguousarray(_table(where, "item", columns, codes["item"], known["item"]).T)
    kind, tables = "scores", {"scores": scores}
  else:
    items = _table(where, "item", content.item, codes["item"], known["item"])
    if users.shape[1] != items.shape[1]:
      raise InputError(f"{where}: vectors of users have {users.shape[1]} numbers, of items {items.shape[1]}")
    kind, tables = f"embeddings of width {users.shape[1]}", {"user": users, "item": items}
  return Imported(tables, None, True, f"{kind} of all {len(known['user']):,} users and {len(known['item']):,} items")


def _table(where, side, given: Side, codes, known) -> np.ndarray:
  """The rows [n, D] of a file, reordered to the entities of the data, [E, D] float32."""
  refuse(where, given.place, ~_finite(given.values).all(axis=1), "a value is no finite number")
  order = np.argsort(codes, kind="stable")
  twice = (codes[order[1:]] == codes[order[:-1]]) & (codes[order[1:]] >= 0)
  refuse(where, lambda n: given.place(order[n + 1]), twice, f"the {side} is there twice")
  missing = np.setdiff1d(np.arange(len(known)), codes)
  if len(missing):
    raise InputError(f"{where}: says nothing of {len(missing):,} of {len(known):,} {side}s, the first is "
                     f"{known[missing[0]]!r}; embeddings and tables of scores must have all (ranked lists need not)")
  table = np.empty((len(known), given.values.shape[1]), np.float32)
  table[codes[codes >= 0]] = given.values[codes >= 0]
  return table
