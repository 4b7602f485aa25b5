"""Metrics from the positions of held-out items among the top k."""

from __future__ import annotations

import numpy as np

from kd_jax.base import Metric


def ndcg(k: int = 10) -> Metric:
  """Sum over hits of 1 / log2(r + 2), divided by the same sum for ranks 0 .. min(n, k) - 1."""

  def value(found):
    hit = (found.ranks < k).astype(np.float64)
    ideal = np.cumsum(1 / np.log2(np.arange(k) + 2))
    return found.total(hit / np.log2(found.ranks + 2)) / ideal[np.minimum(found.counts, k) - 1]

  return Metric(value, groups=True)


def mrr(k: int = 10) -> Metric:
  """1 / (r + 1) for the smallest r of the user; 0 if r >= k."""

  def value(found):
    best = found.ranks[found.start]
    return np.where(best < k, 1 / (best + 1), 0.0)

  return Metric(value)


def map(k: int = 10) -> Metric:
  """Sum over hits of (number of hits at ranks 0 .. r) / (r + 1), divided by n."""

  def value(found):
    hit = (found.ranks < k).astype(np.float64)
    return found.total(hit * (found.nth + 1) / (found.ranks + 1)) / found.counts

  return Metric(value)
