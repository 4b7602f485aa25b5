"""Cleaning of logs: rating threshold, duplicates, k-core. Every step reports what it removed."""

from __future__ import annotations

from typing import Any

import numpy as np

from kd_jax.base import Features, InputError
from kd_jax.data import order
from kd_jax.data.recipe import Log

SHOWN = 20  # number of bad rows that the report lists; it counts all of them


def clean(log: Log, min_rating: float | None, min_user: int, min_item: int,
          repeated: str = "first") -> tuple[Log, dict[str, Any]]:
  """Returns the cleaned log, with ids recoded 0.. in order of first appearance, and the report.

  Steps, in order: remove ratings below `min_rating`; of a repeated (user, item) keep the earliest, by time
  stamp and then by row; remove users with fewer than `min_user` and items with fewer than `min_item`
  interactions, repeatedly, until no such users and items remain. In a given split a pair may occur in two
  parts. That is a leak: it is kept here, so that the check of the split can report it. With `repeated` "keep", all of
  a repeated (user, item) are kept; they count once for the k-core.
  """
  if min_rating is not None and log.ratings is None:
    raise InputError(f"`data`: min_rating={min_rating} needs a rating column")
  report: dict[str, Any] = {"rows": len(log.users) + len(log.bad_rows) + log.missing, "bad_rows": len(log.bad_rows),
                            "first_bad_rows": list(log.bad_rows[:SHOWN])}
  if log.missing:
    report["missing_rows"] = log.missing
  if min_rating is not None:
    count = len(log.users)
    log = take(log, log.ratings >= min_rating)
    report["below_min_rating"] = count - len(log.users)
  first, keep = first_of_pairs(log), repeated == "keep"
  report["duplicates"] = 0 if keep else int((~first).sum())
  if keep:
    report["repeated"] = int((~first).sum())
    kept = _pairs_of(log, first, core(log.users[first], log.items[first], min_user, min_item))
  else:
    log = take(log, first)
    kept = core(log.users, log.items, min_user, min_item)
  count, users, items = len(log.users), _distinct(log.users), _distinct(log.items)
  log = take(log, kept)
  report["k_core"] = {"min_user": min_user, "min_item": min_item, "interactions": count - len(log.users),
                      "users": users - _distinct(log.users), "items": items - _distinct(log.items)}
  report["interactions"] = len(log.users)
  return recode(log), report


def take(log: Log, rows: np.ndarray) -> Log:
  """The rows that a boolean mask [N] selects; the lists of ids do not change. Columns are not copied for all rows."""
  if rows.all():
    return log
  columns = {name: getattr(log, name) for name in ("users", "items", "ratings", "timestamps", "parts")}
  return log._replace(**{name: None if c is None else c[rows] for name, c in columns.items()})


def first_of_pairs(log: Log) -> np.ndarray:
  """Mask [N] that is True for the earliest row of each (user, item), or (user, item, part)."""
  if log.unordered and log.parts is None and len(log.users):  # then equal pairs are neighbours, the earliest first
    return np.concatenate([[True], (log.users[1:] != log.users[:-1]) | (log.items[1:] != log.items[:-1])])
  parts = np.zeros_like(log.users) if log.parts is None else log.parts
  times = np.zeros_like(log.users) if log.timestamps is None else log.timestamps
  rows = np.lexsort((times, parts, log.items, log.users))  # stable: rows of equal times keep their order
  keys = np.stack([log.users, log.items, parts.astype(np.int64)])[:, rows]
  mask = np.zeros(len(log.users), bool)
  mask[rows] = np.concatenate([[True], (keys[:, 1:] != keys[:, :-1]).any(0)])[: len(rows)]
  return mask


def _pairs_of(log: Log, first: np.ndarray, kept: np.ndarray) -> np.ndarray:
  """Mask [N] of all rows of the pairs whose first rows, the `first`, are `kept` by a k-core."""
  users, items = np.unique(log.users[first][kept]), np.unique(log.items[first][kept])
  return np.isin(log.users, users) & np.isin(log.items, items)


def core(users: np.ndarray, items: np.ndarray, min_user: int, min_item: int) -> np.ndarray:
  """Mask [N] of the largest subset in which every user has `min_user` rows and every item `min_item`."""
  mask = np.ones(len(users), bool)
  while max(min_user, min_item) > 1 and mask.any():
    of_user = np.bincount(users[mask], minlength=users.max() + 1)
    of_item = np.bincount(items[mask], minlength=items.max() + 1)
    kept = mask & (of_user[users] >= min_user) & (of_item[items] >= min_item)
    if kept.sum() == mask.sum():
      break
    mask = kept
  return mask


def recode(log: Log) -> Log:
  """Codes 0.. in order of first appearance; ids without rows are removed, with their features."""
  users, user_codes = _first_appearance(log.users)
  items, item_codes = _first_appearance(log.items)
  return log._replace(users=users, items=items, user_ids=[log.user_ids[c] for c in user_codes],
                      item_ids=[log.item_ids[c] for c in item_codes],
                      user_features=take_features(log.user_features, user_codes),
                      item_features=take_features(log.item_features, item_codes))


def take_features(features: Features | None, rows: np.ndarray) -> Features | None:
  """The features of the entities `rows`."""
  if features is None:
    return None
  categories = None if features.categories is None else features.categories[rows]
  return features._replace(categories=categories, vectors={k: v[rows] for k, v in features.vectors.items()})


def _first_appearance(codes):
  first = np.full(int(codes.max(initial=-1)) + 1, len(codes))
  for part in reversed(list(order.slices(len(codes)))):
    first[codes[part][::-1]] = np.arange(part.start, part.stop)[::-1]  # of equal indices, the last value stays
  distinct = np.flatnonzero(first < len(codes))
  ordered = distinct[np.argsort(first[distinct])]
  rank = np.empty(len(first), codes.dtype)
  rank[ordered] = np.arange(len(ordered))
  return np.concatenate([rank[codes[part]] for part in order.slices(len(codes))] or [codes]), ordered


def _distinct(codes):
  return int(np.count_nonzero(np.bincount(codes)))
