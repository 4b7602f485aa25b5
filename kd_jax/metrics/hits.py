"""Metrics from the number of held-out items among the top k (hits)."""

from __future__ import annotations

import numpy as np

from kd_jax.base import HeldOutRanks, Metric


def recall(k: int = 10) -> Metric:
  """Hits / n, with n held-out items of the user."""
  return Metric(lambda found: hits(found, k) / found.counts, groups=True)


def precision(k: int = 10) -> Metric:
  """Hits / k."""
  return Metric(lambda found: hits(found, k) / k)


def f1(k: int = 10) -> Metric:
  """2 precision recall / (precision + recall); 0 without hits."""

  def value(found):
    in_list = hits(found, k)
    recall, precision = in_list / found.counts, in_list / k
    return 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)

  return Metric(value)


def hit(k: int = 10) -> Metric:
  """1 if any held-out item is among the top k, else 0."""
  return Metric(lambda found: (hits(found, k) > 0).astype(np.float64))


def hits(found: HeldOutRanks, k: int) -> np.ndarray:
  """The number of held-out items among the top k, [V]."""
  return found.total((found.ranks < k).astype(np.float64))
