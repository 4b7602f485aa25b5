"""The best items of one row of scores, in NumPy."""

from __future__ import annotations

import numpy as np

from kd_jax.base import InputError


def best(scores: np.ndarray, priority: np.ndarray, k: int) -> np.ndarray:
  """The places of the `k` highest scores [I], best first; of equal scores the lower priority [I] comes first.

  Scores of -inf are never among them, so there may be fewer. Raises InputError if a score is NaN.
  """
  k = min(k, len(scores))
  if k == 0:
    return np.zeros(0, np.int64)
  least = np.partition(scores, -k)[-k]
  if np.isnan(scores.max()):
    raise InputError("the program returned a score that is not a number")
  found = np.flatnonzero((scores >= least) & (scores > -np.inf))  # more than k, if the last one is tied
  return found[np.lexsort((priority[found], -scores[found]))][:k]
