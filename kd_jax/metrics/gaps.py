"""Fairness gaps: how far a metric differs between two groups of users, or of items. One number each."""

from __future__ import annotations

import numpy as np

from kd_jax.base import HeldOutRanks, Metric
from kd_jax.metrics.positions import ndcg


def user_gap(k: int = 10) -> Metric:
  """|mean NDCG@k of active users - mean NDCG@k of inactive users|; NaN if one group is empty.

  Li, Chen, Fu, Ge, Zhang: User-oriented fairness in recommendation, WWW 2021.
  """

  def value(found):
    values, active = ndcg(k).value(found), found.groups["active"][found.start]
    return _gap(values[active], values[~active])

  return Metric(value, per_user=False, higher_is_better=False)


def item_gap(k: int = 10) -> Metric:
  """|mean recall@k on popular items - mean recall@k on unpopular items|; NaN if one group is empty.

  Each mean is over the users that have held-out items of the group. Equal opportunity of Zhu, Wang, Caverlee: Measuring
  and mitigating item under-recommendation bias in personalized ranking systems, SIGIR 2020.
  """
  return Metric(lambda found: _gap(*(_recall(found, found.groups[name], k) for name in ("popular", "unpopular"))),
                per_user=False, higher_is_better=False)


def _recall(found: HeldOutRanks, mask: np.ndarray, k: int) -> np.ndarray:
  held = found.total(mask.astype(np.float64))
  hits = found.total((mask & (found.ranks < k)).astype(np.float64))
  return hits[held > 0] / held[held > 0]


def _gap(a, b):
  return abs(np.mean(a) - np.mean(b)) if len(a) and len(b) else np.nan
