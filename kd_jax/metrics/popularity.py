"""Metrics of the popularity of recommended items. n_i is the number of training interactions of item i."""

from __future__ import annotations

import numpy as np

from kd_jax.base import Metric
from kd_jax.metrics import _lists

_BORDERS = (0.2, 0.8)  # of the shares of training interactions that head and tail have
_HEAD, _MIDDLE, _TAIL = range(3)


def average_popularity(k: int = 10) -> Metric:
  """Mean of n_i over the top k. Yin, Cui, Li, Yao, Chen: Challenging the long tail, VLDB 2012."""
  return Metric(lambda found: _lists.mean_of_items(found, found.dataset.item_popularity()), higher_is_better=False,
                lists=k)


def popularity_lift(k: int = 10) -> Metric:
  """(R - P) / P: R is the mean over users of their `average_popularity`, P that of their training items.

  0 if lists are as popular as what users chose themselves. Users without training interactions are left out.
  Abdollahpouri, Mansoury, Burke, Mobasher: The connection between popularity bias, calibration, and fairness in
  recommendation, RecSys 2020.
  """

  def value(found):
    popularity = found.dataset.item_popularity()
    chosen, given = _lists.mean_of_training(found, popularity), _lists.mean_of_items(found, popularity)
    both = np.isfinite(chosen) & np.isfinite(given)
    return _lists.divided(np.sum(given[both] - chosen[both]), np.sum(chosen[both]))

  return Metric(value, per_user=False, higher_is_better=False, lists=k, needs=("train",))


def novelty(k: int = 10) -> Metric:
  """Mean over the top k of the self-information -log2(max(n_i, 1) / U), in bits, for U users of the data.

  Zhou et al., PNAS 107(10), 2010; Vargas, Castells: Rank and relevance in novelty and diversity metrics, RecSys 2011.
  """

  def value(found):
    users, popularity = found.dataset.num_users, found.dataset.item_popularity()
    return _lists.mean_of_items(found, -np.log2(np.maximum(popularity, 1) / users))

  return Metric(value, lists=k)


def popularity_deviation(k: int = 10) -> Metric:
  """Jensen-Shannon divergence, in bits, of the shares of head, middle and tail in the top k and in the training items.

  Head: the most popular items with 20 % of all training interactions; tail: the least popular ones with 20 %; equally
  popular items are together. NaN for a user without training interactions. Abdollahpouri, Mansoury, Burke, Mobasher,
  Malthouse: User-centered evaluation of popularity bias in recommender systems (UPD), UMAP 2021.
  """

  def value(found):
    part = parts_of(found.dataset.item_popularity())
    masks = [(part == name).astype(np.float64) for name in (_HEAD, _MIDDLE, _TAIL)]
    given = np.stack([_lists.mean_of_items(found, mask) for mask in masks], axis=1)
    chosen = np.stack([_lists.mean_of_training(found, mask) for mask in masks], axis=1)
    both = (given + chosen) / 2
    return (_kl(given, both) + _kl(chosen, both)) / 2

  return Metric(value, higher_is_better=False, lists=k, needs=("train",))


def parts_of(popularity: np.ndarray) -> np.ndarray:
  """The part of each item, [I]: 0 head, 1 middle, 2 tail, by the middle of the interval of its popularity."""
  values, inverse, count = np.unique(-popularity, return_inverse=True, return_counts=True)
  own = -values * count
  middle = (np.cumsum(own) - own / 2) / max(own.sum(), 1)
  return np.searchsorted(_BORDERS, middle)[inverse]


def _kl(p, q):
  ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0)
  return np.sum(p * np.log2(ratio), axis=1)
