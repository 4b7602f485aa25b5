"""Which rows have too few unseen candidates: users with nearly every item, items with nearly every user.

Such a row has weight 0: a method does not distil a row that cannot fill its lists, and the base loss has no interaction
without negatives. The rows are counted, and a run says how many there are.
"""

from __future__ import annotations

import numpy as np

from kd_jax.base import Array, Dataset, InputError, Lists
from kd_jax.data import index
from kd_jax.training import graph


def needed(edge: graph.Edge) -> int:
  """The number of unseen candidates that a row must have, for the lists of a method and for its draws outside them."""
  lists = edge.kd.lists
  ranked = _longest(lists) if lists.exclude_seen else 0
  listed = lists.teacher * (len(edge.teachers) if edge.kd.all_teachers else 1)
  return max(ranked, listed + lists.unseen) if lists.unseen else ranked


def enough(edge: graph.Edge, seen: np.ndarray, num_candidates: int) -> np.ndarray:
  """Mask [R] of the rows that have the candidates `needed`; `seen` [R] is how many candidates each row has seen."""
  return (num_candidates - seen >= needed(edge)) & (_longest(edge.kd.lists) <= num_candidates)


def by_method(edge: graph.Edge, dataset: Dataset) -> str | None:
  """A line that counts the rows that a method leaves out, if there are any. Raises InputError if it leaves out all."""
  lists, num_candidates = edge.kd.lists, index.side(dataset, edge.kd.rows)[3]
  of, what = ("users", "items") if edge.kd.rows == "users" else ("items", "users")
  if _longest(lists) > num_candidates:
    raise InputError(f"`kd`: lists of {_longest(lists):,} {what} are asked for, but there are {num_candidates:,}")
  seen = _seen(dataset, edge.kd.rows, needed(edge))
  kept = enough(edge, seen, num_candidates)
  if not kept[(seen > 0) | (dataset.contexts is not None)].any():
    raise InputError(f"`kd`: its lists need {needed(edge):,} unseen {what}, and none of the {of} has so many; there "
                     f"are {num_candidates:,} {what}")
  return None if kept.all() else (f"kd: {kept.sum():,} of {len(kept):,} {of} have the {needed(edge):,} unseen {what} "
                                  "that its lists need; the others are not distilled")


def by_base_loss(dataset: Dataset, pool: Array | None) -> str | None:
  """A line that counts the users without negatives, if there are any. Raises InputError if all are without.

  `pool` [n] are the items from which negatives are drawn; it contains every training item. None: all.
  """
  left = (dataset.num_items if pool is None else len(pool)) - _seen(dataset, "users", 1)
  if not (left > 0).any():
    raise InputError("`data`: every user has every item in training, so there are no negatives")
  return None if (left > 0).all() else (f"loss: {(left > 0).sum():,} of {len(left):,} users have unseen items; the "
                                        "others have no negatives, and weight 0 in the base loss")


def _longest(lists: Lists) -> int:
  return max(lists.teacher, lists.student)


def _seen(dataset, side, needed) -> np.ndarray:
  """How many different candidates each row has seen [R]; repeated ones may count if there are enough others anyway."""
  if dataset.stream is not None:
    return np.diff(dataset.stream.starts["train"])
  rows, candidates, num_rows, num_candidates = index.side(dataset, side)
  counts = np.bincount(rows, minlength=num_rows)
  if counts.max() + needed <= num_candidates:
    return counts
  return np.diff(index.seen_of(rows, candidates, num_rows, num_candidates).starts)
