"""Hits that popularity does not explain."""

from __future__ import annotations

import numpy as np

from kd_jax.base import Metric


def serendipity(k: int = 10) -> Metric:
  """Sum over hits of max((P - r) / I, 0), divided by k: an item of rank r (from 0) that is only P-th in popularity.

  P counts the items with more training interactions, and half of the others with equally many. Murakami, Mori, Orihara:
  Metrics for evaluating the serendipity of recommendation lists, JSAI 2007, in the form of RecTools.
  """

  def value(found):
    popularity = found.dataset.item_popularity()
    _, inverse, count = np.unique(-popularity, return_inverse=True, return_counts=True)
    place = (np.cumsum(count) - count + (count - 1) / 2)[inverse]
    gain = np.maximum(place[found.items] - found.ranks, 0) / len(popularity)
    return found.total(np.where(found.ranks < k, gain, 0.0)) / k

  return Metric(value, needs=("popularity",))
