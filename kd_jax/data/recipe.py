"""The types of the data layer: what a data set's file says about itself, and the log that it reads."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kd_jax.base import Features

TRAIN, VALIDATION, TEST = 0, 1, 2  # the values of `Log.parts`


class Contexts(NamedTuple):
  """What is known of each of the U contexts (users) of labelled data, to split them by."""

  timestamps: np.ndarray | None = None  # [U] int64, seconds
  parts: np.ndarray | None = None  # [U] int8, TRAIN, VALIDATION or TEST, where the source fixes the split


class Log(NamedTuple):
  """Interactions as read, ids as codes into the lists of the source's own ids.

  With `contexts` the log is labelled data: users are contexts, items labels, interactions the positive
  labels. It is split by context, nothing is filtered, and every context and label stays.
  """

  users: np.ndarray  # [N] int64, indices into user_ids
  items: np.ndarray  # [N] int64, indices into item_ids
  user_ids: list[str]  # [U]
  item_ids: list[str]  # [I]
  ratings: np.ndarray | None = None  # [N] float32
  timestamps: np.ndarray | None = None  # [N] int64, seconds
  parts: np.ndarray | None = None  # [N] int8, TRAIN, VALIDATION or TEST, where the source fixes the split
  bad_rows: tuple[str, ...] = ()  # "file:line: reason" of every row that was left out
  user_features: Features | None = None  # of user_ids
  item_features: Features | None = None  # of item_ids
  contexts: Contexts | None = None


class Source(NamedTuple):
  """A file that a data set is made of. `sha256` None: the user's own file, hashed when it is found."""

  name: str
  sha256: str | None
  places: tuple[tuple[str, str | None], ...]  # (path below the data folder, sha256), tried in order
  fetch: tuple[Callable[[], bytes], ...] = ()  # tried in order; each raises OSError with a short reason
  canonical: Callable[[bytes], bytes] | None = None  # applied before hashing, where only content counts
  advice: str = ""  # where a person finds the file


class Recipe(NamedTuple):
  """How a data set is made. A factory `kd_jax/data/NAME.py:NAME` returns one and touches no file."""

  read: Callable[[list[pathlib.Path]], Log]  # the found `sources`, in order -> the log
  sources: tuple[Source, ...] = ()
  min_rating: float | None = None  # lower ratings are dropped
  min_user: int = 1  # interactions that every user keeps (k-core)
  min_item: int = 1  # interactions that every item keeps (k-core)
  split: str = "random"
  ratios: tuple[float, float, float] = (0.8, 0.1, 0.1)
  split_seed: int = 0
  terms: str = ""  # printed to stderr when the data set is prepared
  synthetic: bool = False
  may_be_empty: tuple[str, ...] = ()  # splits that the arguments ask to be empty
  folds: int = 0  # labelled data: k-fold cross-validation, the test split being the `fold`-th of so many parts
  fold: int = 0


def encode(values: list[Any]) -> tuple[np.ndarray, list[Any]]:
  """Codes [N] int64 in order of first appearance, and the distinct values [U]."""
  index: dict[Any, int] = {}
  codes = np.fromiter((index.setdefault(v, len(index)) for v in values), np.int64, len(values))
  return codes, list(index)
