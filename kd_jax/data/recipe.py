"""The types of the data layer: the recipe of a data set, and the log of interactions that it reads."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kd_jax.base import Features

TRAIN, VALIDATION, TEST = 0, 1, 2  # the values of `Log.parts`


class Contexts(NamedTuple):
  """Columns by which the U contexts (users) of labelled data are split."""

  timestamps: np.ndarray | None = None  # [U] int64, seconds
  parts: np.ndarray | None = None  # [U] int8, TRAIN, VALIDATION or TEST, if the source fixes the split


class Log(NamedTuple):
  """Interactions as read; users and items are indices into the lists of the source's ids.

  With `contexts` the log is labelled data: users are contexts, items are labels, interactions are the
  positive labels. It is split by context. It is not filtered: all contexts and labels are kept.
  """

  users: np.ndarray  # [N] int64 or int32, indices into user_ids
  items: np.ndarray  # [N] int64 or int32, indices into item_ids
  user_ids: list[str]  # [U]
  item_ids: list[str]  # [I]
  ratings: np.ndarray | None = None  # [N] float32
  timestamps: np.ndarray | None = None  # [N] int64, seconds
  parts: np.ndarray | None = None  # [N] int8, TRAIN, VALIDATION or TEST, if the source fixes the split
  bad_rows: tuple[str, ...] = ()  # "file:line: reason" of every bad row; of the later of very many, ""
  user_features: Features | None = None  # in the order of user_ids
  item_features: Features | None = None  # in the order of item_ids
  contexts: Contexts | None = None
  unordered: bool = False  # the rows are sorted by hashes: their order in the source was lost on purpose
  missing: int = 0  # number of rows that were left out because they miss a value
  notes: tuple[str, ...] = ()  # what else of the source was left out, for the audit
  moved: float | None = None  # the share of each user's training rows that was moved into validation
  in_time: bool = False  # there are no time stamps, and the order of a user's rows is taken for that of time


class Source(NamedTuple):
  """A source file of a data set. `sha256` None: the user's own file, hashed when it is found."""

  name: str
  sha256: str | None
  places: tuple[tuple[str, str | None], ...]  # (path below the data folder, sha256), tried in order
  fetch: tuple[Callable[[], bytes], ...] = ()  # downloads, tried in order; each raises OSError with a short reason
  canonical: Callable[[bytes], bytes] | None = None  # normalises the content before hashing, if copies differ
  advice: str = ""  # tells the user where to find the file


class Recipe(NamedTuple):
  """How a data set is made. A factory `kd_jax/data/NAME.py:NAME` returns one and touches no file."""

  read: Callable[[list[pathlib.Path]], Log]  # paths of the `sources`, in order -> the log
  sources: tuple[Source, ...] = ()
  min_rating: float | None = None  # lower ratings are dropped
  min_user: int = 1  # minimum number of interactions per user (k-core)
  min_item: int = 1  # minimum number of interactions per item (k-core)
  split: str = "random"
  ratios: tuple[float, float, float] = (0.8, 0.1, 0.1)
  split_seed: int = 0
  terms: str = ""  # printed to stderr when the data set is prepared
  synthetic: bool = False
  may_be_empty: tuple[str, ...] = ()  # splits that the arguments allow to be empty
  folds: int = 0  # labelled data: number of folds of cross-validation; the `fold`-th fold is the test split
  fold: int = 0
  revision: int = 0  # increase it if `read` gives other rows for the same files
  repeated: str = "first"  # what of a repeated (user, item) is kept, see `cleaning.clean`
  # The arguments that the source files decide and the call leaves open; {} if there are none.
  complete: Callable[[list[pathlib.Path]], dict[str, Any]] | None = None


def encode(values: list[Any]) -> tuple[np.ndarray, list[Any]]:
  """Codes [N] int64 in order of first appearance, and the distinct values [U]."""
  index: dict[Any, int] = {}
  codes = np.fromiter((index.setdefault(v, len(index)) for v in values), np.int64, len(values))
  return codes, list(index)
