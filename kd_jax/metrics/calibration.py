"""Whether lists have the categories of items in the proportions in which a user chose them."""

from __future__ import annotations

import numpy as np

from kd_jax.base import HeldOutRanks, Metric

_SMOOTHING = 0.01  # alpha of the paper


def miscalibration(k: int = 10) -> Metric:
  """KL(p || q'), in nats: p are the shares of categories in the user's training items, q those in the top k.

  q' = .99 q + .01 p, so that the value is finite. Every categorical field of the items has its own shares, and the
  value is the mean over fields. NaN for a user without training interactions or without a list. Steck: Calibrated
  recommendations, RecSys 2018.
  """

  def value(found):
    features = found.dataset.item_features
    return np.mean([_divergence(found, features.categories[:, field], size)
                    for field, size in enumerate(features.sizes)], axis=0)

  return Metric(value, higher_is_better=False, lists=k, needs=("train", "categories"))


def _divergence(found: HeldOutRanks, categories, size):
  """[V] for one field."""
  train, lists = found.dataset.train, found.lists.items
  own = np.searchsorted(found.users, train.users)
  known = found.users[np.minimum(own, len(found.users) - 1)] == train.users
  p = _shares(own[known], categories[train.items[known]], len(found.users), size)
  rows, _ = np.nonzero(lists >= 0)
  q = _shares(rows, categories[lists[lists >= 0]], len(found.users), size)
  smoothed = (1 - _SMOOTHING) * q + _SMOOTHING * p
  ratio = np.divide(p, smoothed, out=np.ones_like(p), where=~(p <= 0))
  return np.sum(p * np.log(ratio), axis=1)


def _shares(rows, categories, count, size):
  """[count, size]: shares of the categories in each row; NaN for a row without items."""
  table = np.bincount(rows * size + categories, minlength=count * size).reshape(count, size)
  total = table.sum(axis=1, keepdims=True)
  return np.divide(table, total, out=np.full(table.shape, np.nan), where=total > 0)
