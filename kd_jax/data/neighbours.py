"""The co-occurrence graph of users, or of items, in training interactions.

Each entity chooses the k others with which it co-occurs most often. In the matrix A, the entry of a pair is 1 if both
choose each other, 1/2 if only one does, and 0 otherwise. The graph has the normalised entries
A_ij / sqrt(sum of row i * sum of row j).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from kd_jax.base import KD, Array, Dataset
from kd_jax.data import order

_BLOCK = 256  # Number of rows whose co-occurrences are counted at a time.
_WIDTH = 4  # At most _WIDTH * k neighbours are kept.


class Neighbours(NamedTuple):
  """The rows of the normalised matrix, largest entry first."""

  indices: Array  # [E, 4 k] int32
  weights: Array  # [E, 4 k] float32, 0 for padding


def tables(kds: Iterable[tuple[object, KD]], dataset: Dataset) -> dict[int, dict[str, Neighbours]]:
  """{k: {"users": ..., "items": ...}} for every k that a method needs. Runs on the host."""
  log, sizes = dataset.train, (dataset.num_users, dataset.num_items)

  def of(k):
    return {"users": co_occurrence(log.users, log.items, *sizes, k, order.priority(dataset.user_ids)),
            "items": co_occurrence(log.items, log.users, *sizes[::-1], k, order.priority(dataset.item_ids))}

  return {k: of(k) for k in {kd.neighbours for _, kd in kds} - {0}}


def co_occurrence(rows: np.ndarray, columns: np.ndarray, num_rows: int, num_columns: int, k: int,
                  priority: np.ndarray) -> Neighbours:
  """Neighbours of every row. Repeated interactions count once.

  Ties in the number of co-occurrences are broken by lower total frequency, then by lower `priority` [num_rows], see
  `order.priority`. An entity that many others choose keeps the 4 k neighbours of largest weight, or lowest priority.
  """
  chooser, chosen = _choices(rows, columns, num_rows, num_columns, k, priority)
  pair, returned = np.unique(np.concatenate([chooser * num_rows + chosen, chosen * num_rows + chooser]),
                             return_counts=True)
  i, j = np.divmod(pair, num_rows)
  weight = returned / 2
  total = np.bincount(i, weight, minlength=num_rows)
  weight /= np.sqrt(total[i] * total[j])
  falling = np.lexsort((priority[j], -weight, i))
  i, j, weight = i[falling], j[falling], weight[falling]
  place = np.arange(len(i)) - np.searchsorted(i, i)
  width = _WIDTH * k
  indices, weights = np.zeros((num_rows, width), np.int32), np.zeros((num_rows, width), np.float32)
  kept = place < width
  indices[i[kept], place[kept]], weights[i[kept], place[kept]] = j[kept], weight[kept]
  return Neighbours(indices, weights)


def _choices(rows, columns, num_rows, num_columns, k, priority):
  """Pairs (row, a row that it chooses) as two int64 arrays; fewer than k per row if it co-occurs with fewer."""
  pair = np.unique(rows.astype(np.int64) * num_columns + columns)
  rows, columns = np.divmod(pair, num_columns)
  frequency = np.bincount(rows, minlength=num_rows)
  by_column = np.argsort(columns, kind="stable")
  members, starts = rows[by_column], np.searchsorted(columns[by_column], np.arange(num_columns + 1))
  ends = np.searchsorted(rows, np.arange(0, num_rows + _BLOCK, _BLOCK))
  found = []
  for low, high in itertools.pairwise(ends):
    start = starts[columns[low:high]]
    size = starts[columns[low:high] + 1] - start
    met = members[np.arange(size.sum()) + np.repeat(start - np.cumsum(size) + size, size)]
    pair, times = np.unique(np.repeat(rows[low:high], size) * num_rows + met, return_counts=True)
    i, j = np.divmod(pair, num_rows)
    i, j, times = (x[i != j] for x in (i, j, times))
    falling = np.lexsort((priority[j], frequency[j], -times, i))
    i, j = i[falling], j[falling]
    kept = np.arange(len(i)) - np.searchsorted(i, i) < k
    found.append((i[kept], j[kept]))
  return tuple(np.concatenate(x) for x in zip(*found, strict=True))
