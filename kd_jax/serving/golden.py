"""Compares answers of a loaded network with those of the training code that are stored in the export."""

from __future__ import annotations

import numpy as np

from kd_jax.base import InputError
from kd_jax.serving.recommender import Recommender
from kd_jax.serving.requests import Request


def replay(recommender: Recommender) -> None:
  """Raises InputError if an answer for a stored user differs. Items with almost equal scores may change places."""
  contents = recommender.contents
  items, scores = contents.golden["items"], contents.golden["scores"]
  asked = [Request(contents.user_ids[user], k=max(1, items.shape[1])) for user in contents.golden["users"]]
  try:
    answers = recommender.recommend_many(asked)
  except InputError as error:
    raise InputError(f"{contents.directory}: {error}") from None
  for answer, listed, expected in zip(answers, items, scores, strict=True):
    listed, expected = listed[listed >= 0], expected[listed >= 0]
    found = recommender.check(Request(history=answer.items)).history
    if not agrees(found, np.array(answer.scores), listed, expected):
      raise InputError(f"{contents.directory}: the program answers differently from the training code (golden users)")


def agrees(items: np.ndarray, scores: np.ndarray, expected_items: np.ndarray, expected_scores: np.ndarray) -> bool:
  """Whether two lists [K] with descending scores are equal, up to rounding and the order of near ties."""
  if not items.shape == scores.shape == expected_items.shape == expected_scores.shape:
    return False
  if not near(scores, expected_scores).all():
    return False
  tied = np.zeros(len(items) + 1, bool)
  tied[1:-1] = near(expected_scores[1:], expected_scores[:-1])
  tied[-1] = True  # the last item may be tied with the first unlisted item, which is unknown
  return bool(((items == expected_items) | tied[1:] | tied[:-1]).all())


def near(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Equal up to rounding in float32."""
  return np.isclose(x, y, rtol=1e-4, atol=1e-5)
