"""From requests to the arrays that a network reads: a user's vector, the last items, the set of items, or an index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from kd_jax.serving import layout
from kd_jax.serving.layout import HISTORY, QUERY, SET, USERS, Contents

_RIDGE = 0.1  # the weight of the penalty; the best of 0.01 to 100 on validation of MovieLens 100K


class Context(NamedTuple):
  """For whom a network scores items."""

  user: int  # index; -1: unknown
  history: np.ndarray  # [n] items, oldest first: those known of the user, then those of the request


def readers(contents: Contents) -> dict[str, Callable[[Sequence[Context]], dict[str, np.ndarray]]]:
  """{kind of network: contexts [b] -> its inputs, arrays [b, ...]}."""
  items = len(contents.item_ids)

  def query(contexts):
    return {"query": np.stack([_vector(contents, context) for context in contexts])}

  def history(contexts):
    length = contents.metadata["length"]
    rows, lengths = np.zeros((len(contexts), length), np.int32), np.zeros(len(contexts), np.int32)
    for row, context in enumerate(contexts):
      last = context.history[-length:]
      rows[row, length - len(last) :], lengths[row] = last, len(last)
    return {"history": rows, "lengths": lengths}

  def as_set(contexts):
    longest = max(len(context.history) for context in contexts)
    rows = np.full((len(contexts), 1 << (max(longest, 1) - 1).bit_length()), items, np.int32)  # few shapes: compiled
    for row, context in enumerate(contexts):
      rows[row, : len(context.history)] = context.history
    return {"history": rows}

  def users(contexts):
    return {"users": np.array([context.user for context in contexts], np.int32)}

  return {QUERY: query, HISTORY: history, SET: as_set, USERS: users}


def source(inputs: str, context: Context) -> str | None:
  """What an answer is made from: "user", "history" or "fold-in"; None if the network cannot answer."""
  if inputs == USERS:
    return "user" if context.user >= 0 else None
  if not len(context.history):
    return "user" if inputs == QUERY and context.user >= 0 else None
  if inputs == QUERY:
    return "user" if context.user >= 0 else "fold-in"
  return "user" if context.user >= 0 else "history"


def _vector(contents, context) -> np.ndarray:
  if context.user >= 0:
    return np.asarray(layout.table(contents.weights, "user", context.user), np.float32)
  return fold_in(layout.table(contents.weights, "item", context.history))


def fold_in(items: np.ndarray) -> np.ndarray:
  """The vector [D] of a user without one, from the vectors [n, D] of the user's items: ridge regression on ones.

  It minimises sum_i (<q, v_i> - 1)^2 + c |q|^2, where c is a tenth of sum_i |v_i|^2.
  """
  items = np.asarray(items, np.float64)
  penalty = _RIDGE * np.square(items).sum() + np.finfo(np.float64).tiny
  kernel = items @ items.T if len(items) < items.shape[1] else items.T @ items
  kernel[np.diag_indices_from(kernel)] += penalty
  if len(items) < items.shape[1]:
    return (items.T @ np.linalg.solve(kernel, np.ones(len(items)))).astype(np.float32)
  return np.linalg.solve(kernel, items.sum(axis=0)).astype(np.float32)
