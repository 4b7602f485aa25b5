"""Sorts the ranks of held-out items for metrics."""

from __future__ import annotations

import numpy as np

from kd_jax.base import Dataset, HeldOutRanks, Ranked


def lay_out(users: np.ndarray, items: np.ndarray, ranks: np.ndarray, ratings: np.ndarray | None = None,
            lists: Ranked | None = None, dataset: Dataset | None = None) -> HeldOutRanks:
  """Sorts held-out interactions, all [M], by user and rank; `lists` [V, K] belong to the sorted users."""
  order = np.lexsort((ranks, users))
  ranks = ranks[order].astype(np.int64)
  evaluated, start, count = np.unique(users[order], return_index=True, return_counts=True)
  nth = np.arange(len(ranks)) - np.repeat(start, count)
  return HeldOutRanks(evaluated, count, start, items[order], ranks, nth, None if ratings is None else ratings[order],
                      lists, dataset)
