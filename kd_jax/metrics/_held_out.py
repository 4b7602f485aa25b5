"""Sorts the ranks of held-out items for metrics."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kd_jax.base import Dataset, HeldOutRanks, Ranked


def lay_out(users: np.ndarray, items: np.ndarray, ranks: np.ndarray, ratings: np.ndarray | None = None,
            lists: Ranked | None = None, dataset: Dataset | None = None,
            groups: Mapping[str, np.ndarray] | None = None) -> HeldOutRanks:
  """Sorts held-out interactions, all [M], by user and rank; `lists` [V, K] belong to the sorted users.

  `groups` are {name: [M] bool}, in the order of the interactions.
  """
  order = np.lexsort((ranks, users))
  ranks = ranks[order].astype(np.int64)
  evaluated, start, count = np.unique(users[order], return_index=True, return_counts=True)
  nth = np.arange(len(ranks)) - np.repeat(start, count)
  return HeldOutRanks(evaluated, count, start, items[order], ranks, nth, None if ratings is None else ratings[order],
                      lists, dataset, groups and {name: mask[order] for name, mask in groups.items()})
