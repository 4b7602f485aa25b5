"""Cleaning of logs: rating threshold, duplicates, k-core. Every step reports what it removed."""

from __future__ import annotations

from typing import Any

import numpy as np

from kd_jax.base import Features, InputError
from kd_jax.data.recipe import Log

SHOWN = 20  # number of bad rows that the report lists; it counts all of them


def clean(log: Log, min_rating: float | None, min_user: int, min_item: int) -> tuple[Log, dict[str, Any]]:
  """Returns the cleaned log, with ids recoded 0.. in order of first appearance, and the report.

  Steps, in order: remove ratings below `min_rating`; of a repeated (user, item) keep the earliest, by time
  stamp and then by row; remove users with fewer than `min_user` and items with fewer than `min_item`
  interactions, repeatedly, until no such users and items remain. In a given split a pair may occur in two
  parts. That is a leak: it is kept here, so that the check of the split can report it.
  """
  if min_rating is not None and log.ratings is None:
    raise InputError(f"`data`: min_rating={min_rating} needs a rating column")
  report: dict[str, Any] = {"rows": len(log.users) + len(log.bad_rows), "bad_rows": len(log.bad_rows),
                            "first_bad_rows": list(log.bad_rows[:SHOWN])}
  if min_rating is not None:
    kept = take(log, log.ratings >= min_rating)
    report["below_min_rating"] = len(log.users) - len(kept.users)
    log = kept
  kept = take(log, first_of_pairs(log))
  report["duplicates"] = len(log.users) - len(kept.users)
  log = take(kept, core(kept.users, kept.items, min_user, min_item))
  report["k_core"] = {"min_user": min_user, "min_item": min_item,
                      "interactions": len(kept.users) - len(log.users),
                      "users": _distinct(kept.users) - _distinct(log.users),
                      "items": _distinct(kept.items) - _distinct(log.items)}
  report["interactions"] = len(log.users)
  return recode(log), report


def take(log: Log, rows: np.ndarray) -> Log:
  """The rows that a boolean mask [N] selects; the lists of ids do not change."""
  columns = {name: getattr(log, name) for name in ("users", "items", "ratings", "timestamps", "parts")}
  return log._replace(**{name: None if c is None else c[rows] for name, c in columns.items()})


def first_of_pairs(log: Log) -> np.ndarray:
  """Mask [N] that is True for the earliest row of each (user, item), or (user, item, part)."""
  parts = np.zeros_like(log.users) if log.parts is None else log.parts
  times = np.zeros_like(log.users) if log.timestamps is None else log.timestamps
  order = np.lexsort((times, parts, log.items, log.users))  # stable: rows of equal times keep their order
  keys = np.stack([log.users, log.items, parts.astype(np.int64)])[:, order]
  mask = np.zeros(len(log.users), bool)
  mask[order] = np.concatenate([[True], (keys[:, 1:] != keys[:, :-1]).any(0)])[: len(order)]
  return mask


def core(users: np.ndarray, items: np.ndarray, min_user: int, min_item: int) -> np.ndarray:
  """Mask [N] of the largest subset in which every user has `min_user` rows and every item `min_item`."""
  mask = np.ones(len(users), bool)
  while mask.any():
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
  distinct, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
  order = np.argsort(first)
  rank = np.empty_like(order)
  rank[order] = np.arange(len(order))
  return rank[inverse], distinct[order]


def _distinct(codes):
  return len(np.unique(codes))
