"""Metrics of how recommendations are spread over the items, and over users: one number for all evaluated users."""

from __future__ import annotations

import numpy as np

from kd_jax.base import Metric
from kd_jax.metrics import _lists


def coverage(k: int = 10) -> Metric:
  """Catalogue coverage: the share of all items that are in the top k of at least one user.

  Ge, Delgado-Battenfeld, Jannach: Beyond accuracy, RecSys 2010.
  """
  return Metric(lambda found: np.mean(_lists.counts(found) > 0), per_user=False, lists=k)


def gini(k: int = 10) -> Metric:
  """Gini index of the numbers of lists c_(1) <= ... <= c_(I) that the items are in, items in no list included.

  Sum over j of (2 j - I - 1) c_(j) / (I sum of c): 0 if all items are recommended equally often, near 1 if one item
  takes all. Shani, Gunawardana: Evaluating recommendation systems, 2011.
  """

  def value(found):
    counts = np.sort(_lists.counts(found))
    weights = 2 * np.arange(1, len(counts) + 1) - len(counts) - 1
    return _lists.divided(weights @ counts, len(counts) * counts.sum())

  return Metric(value, per_user=False, higher_is_better=False, lists=k)


def entropy(k: int = 10) -> Metric:
  """Shannon entropy, in bits, of the share that each item has of all recommendations. At most log2(I).

  Shani, Gunawardana: Evaluating recommendation systems, 2011.
  """

  def value(found):
    counts = _lists.counts(found)
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return -np.sum(shares * np.log2(shares)) if len(shares) else np.nan

  return Metric(value, per_user=False, lists=k)


def personalisation(k: int = 10) -> Metric:
  """1 - the mean, over all pairs of users, of (number of items in both lists) / k. 0 if all lists are equal.

  The inter-user diversity of Zhou et al., PNAS 107(10), 2010. NaN for fewer than two users.
  """

  def value(found):
    counts, users = _lists.counts(found).astype(np.float64), len(found.users)
    return 1 - _lists.divided(np.sum(counts * (counts - 1)), k * users * (users - 1))

  return Metric(value, per_user=False, lists=k)
