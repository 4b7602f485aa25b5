"""MovieLens 100K with one binary label: liked or not."""

from __future__ import annotations

import numpy as np

from kd_jax.data import films
from kd_jax.data.movielens import TERMS, source
from kd_jax.data.recipe import Log, Recipe


def movielens_ctr(min_rating: float = 4, split="random", ratios=(0.8, 0.1, 0.1), split_seed=0, folds=0,
                  fold=0) -> Recipe:
  """LABELLED: MovieLens 100K. Every rating is a context; the only label is 1 for ratings of at least `min_rating`.

  Origin: u.data, u.item and u.user of GroupLens' ml-100k (see `movielens`), from a local copy (ml-100k/) or by
  download. Licence: research use, no redistribution, no commercial use, cite Harper and Konstan 2015. 100,000
  contexts, 55,375 of them positive by default. Fields: user, age, gender, occupation, region (first digit of the
  zip code), item, year (of the film), weekday, hour; vector `genres`: 19 flags. Split by context: random (with
  `folds`, k-fold: fold `fold` is test, and a share ratios[1] of the rest is validation) or temporal.
  """
  return Recipe(lambda paths: _read(paths, min_rating), (source("u.data"), source("u.item"), source("u.user")),
                split=split, ratios=ratios, split_seed=split_seed, terms=TERMS, folds=folds, fold=fold)


def _read(paths, min_rating) -> Log:
  log, known, users = films.read_movielens(paths)
  genres = np.array([[name in known[i].genres for name in films.MOVIELENS_GENRES] for i in log.item_ids], np.float32)
  features = films.features_of(log, known, films.user_columns(log, users), {"genres": genres[log.items]})
  return films.rating_log(log, films.without(features, "rating"), min_rating)
