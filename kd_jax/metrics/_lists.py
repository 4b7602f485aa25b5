"""Pieces shared by metrics of ranked lists [V, k], in which -1 is no item."""

from __future__ import annotations

import numpy as np

from kd_jax.base import HeldOutRanks


def listed(found: HeldOutRanks) -> np.ndarray:
  """The items [n] of all lists, one after the other."""
  items = found.lists.items
  return items[items >= 0]


def counts(found: HeldOutRanks) -> np.ndarray:
  """Number of lists that each item is in, [I]."""
  return np.bincount(listed(found), minlength=found.dataset.num_items)


def mean_of_items(found: HeldOutRanks, values: np.ndarray) -> np.ndarray:
  """The mean [V] of the items' `values` [I] over each list; NaN for a list without items."""
  items = found.lists.items
  there = items >= 0
  return divided(np.where(there, values[items], 0.0).sum(axis=1), there.sum(axis=1))


def mean_of_training(found: HeldOutRanks, values: np.ndarray) -> np.ndarray:
  """The mean [V] of the items' `values` [I] over each user's training items; NaN for a user without any."""
  train, users = found.dataset.train, found.dataset.num_users
  sums = np.bincount(train.users, values[train.items], minlength=users)
  return divided(sums, np.bincount(train.users, minlength=users))[found.users]


def divided(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """a / b; NaN where b is 0."""
  return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=np.asarray(b) > 0)
