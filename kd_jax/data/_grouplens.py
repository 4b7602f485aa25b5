"""The larger MovieLens data sets, read from the zip archives of GroupLens as they are."""

from __future__ import annotations

import functools
import pathlib

from kd_jax.base import InputError
from kd_jax.data import order, sources
from kd_jax.data.movielens import TERMS
from kd_jax.data.parsing import read_columns
from kd_jax.data.recipe import Log, Recipe, Source

_FOLDER = "https://files.grouplens.org/datasets/movielens"
SHA256 = {  # of the archives, as TensorFlow Datasets has them in url_checksums/movielens.txt
    "ml-1m": "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
    "ml-20m": "96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3",
    "ml-25m": "8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa",
    "ml-latest-small": "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436"}
_SPLITS = ("random", "temporal", "loo", "loo_last", "cold_items")


def ratings(name: str, min_rating: float | None, min_user: int, min_item: int, split: str,
            ratios: tuple[float, float, float], split_seed: int) -> Recipe:
  """The recipe of NAME.zip. Raises InputError for another split than those that need no order of rows."""
  if split not in _SPLITS:
    raise InputError(f"`data`: split={split!r}: the order of the rows of {name} means nothing; choose from "
                     f"{', '.join(_SPLITS)}")
  url, sha256 = f"{_FOLDER}/{name}.zip", SHA256[name]
  source = Source(f"{name}.zip", sha256, ((f"{name}.zip", sha256), (f"{name}/{name}.zip", sha256)),
                  (functools.partial(sources.get, url),), advice=f"It is at {url}; do not unpack it.")
  return Recipe(functools.partial(_read, name), (source,), min_rating, min_user, min_item, split, ratios, split_seed,
                terms=TERMS)


def _read(name: str, paths: list[pathlib.Path]) -> Log:
  """Many ratings of a user have one second, and the rows of a user may ascend by film: their order is lost here."""
  file, delimiter, header = ("ratings.dat", "::", False) if name == "ml-1m" else ("ratings.csv", ",", True)
  columns = ("users", "items", "ratings", "timestamps")
  return order.unordered(read_columns(paths[0] / name / file, delimiter, columns, header))
