"""Intra-list diversity: the mean distance of all pairs of items in a list.

Smyth, McClave: Similarity vs. diversity, ICCBR 2001; Ziegler, McNee, Konstan, Lausen: Improving recommendation lists
through topic diversification, WWW 2005. A user with fewer than two listed items has no value.
"""

from __future__ import annotations

import numpy as np

from kd_jax.base import Metric
from kd_jax.metrics import _lists

_NUMBERS = 1 << 24  # in memory at a time


def diversity(k: int = 10) -> Metric:
  """Distance by co-occurrence: 1 - (users of both items) / sqrt(n_i n_j), over training users.

  1 if an item has no training interaction.
  """

  def value(found):
    from scipy import sparse  # the import takes time, and few runs need it

    train = found.dataset.train
    shape = found.dataset.num_users, found.dataset.num_items
    users = sparse.csr_array((np.ones(len(train.users)), (train.users, train.items)), shape)
    users.data[:] = 1  # repeated interactions count once
    norms = np.sqrt(users.sum(axis=0))
    scaled = (users / np.maximum(norms, 1)[None]).T.tocsr()  # [I, U], rows of length 1 or 0
    return _blocks(found, lambda items: _by_rows(items, lambda own: _sums_of_sparse(scaled, own), norms > 0),
                   shape[0])

  return Metric(value, lists=k, needs=("train",))


def vector_diversity(k: int = 10) -> Metric:
  """Distance by vectors of items, all of the data one after the other: 1 - cosine; 1 for a vector of zeros."""

  def value(found):
    vectors = np.concatenate(list(found.dataset.item_features.vectors.values()), axis=1).astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1)
    scaled = vectors / np.where(norms > 0, norms, 1)[:, None]

    def sums(items):
      return np.sum(np.where((items >= 0)[:, :, None], scaled[items], 0.0), axis=1)

    return _blocks(found, lambda items: _by_rows(items, sums, norms > 0), k * vectors.shape[1])

  return Metric(value, lists=k, needs=("vectors",))


def feature_diversity(k: int = 10) -> Metric:
  """Distance by categorical fields of items: the share of fields in which two items differ (Hamming)."""

  def value(found):
    categories = found.dataset.item_features.categories

    def similarity(items):
      own, there = categories[items], items >= 0
      equal = np.mean(own[:, :, None] == own[:, None, :], axis=3)
      both = there[:, :, None] & there[:, None, :]
      return np.sum(np.where(both, equal, 0.0), axis=(1, 2)) - there.sum(axis=1)

    return _blocks(found, similarity, k * k * categories.shape[1])

  return Metric(value, lists=k, needs=("categories",))


def _blocks(found, similarity, numbers):
  """1 - the mean similarity of pairs, [V]; `similarity(items [n, k])` sums it over ordered pairs of different places.

  `numbers` is what it needs in memory for one user.
  """
  items, size = found.lists.items, max(1, _NUMBERS // max(numbers, 1))
  sums = [similarity(items[first : first + size]) for first in range(0, len(items), size)]
  lengths = (items >= 0).sum(axis=1)
  return 1 - _lists.divided(np.concatenate(sums), lengths * (lengths - 1))


def _by_rows(items, sums, has_row):
  """Sums of inner products of unit rows over pairs: |sum of rows|^2 - number of rows."""
  whole = sums(items)
  return np.sum(whole * whole, axis=1) - np.sum(has_row[items] & (items >= 0), axis=1)


def _sums_of_sparse(rows, items):
  """The sums [n, U] of the listed rows."""
  from scipy import sparse

  there = items >= 0
  starts = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
  chosen = sparse.csr_array((np.ones(starts[-1]), items[there], starts), (len(items), rows.shape[0]))
  return (chosen @ rows).toarray()
