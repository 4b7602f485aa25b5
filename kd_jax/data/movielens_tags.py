"""MovieLens 100K: genres as tags of ratings."""

from __future__ import annotations

from kd_jax.data import films
from kd_jax.data.movielens import TERMS, source
from kd_jax.data.recipe import Log, Recipe


def movielens_tags(tags=10, words=100, split="random", ratios=(0.8, 0.1, 0.1), split_seed=0, folds=0, fold=0) -> Recipe:
  """LABELLED: MovieLens 100K. Every rating is a context; its labels (tags) are the genres of the film.

  Origin: u.data, u.item and u.user of GroupLens' ml-100k (see `movielens`), from a local copy (ml-100k/) or by
  download. Licence: research use, no redistribution, no commercial use, cite Harper and Konstan 2015. 100,000
  contexts; labels: the `tags` genres with most ratings. Fields: user, age, gender, occupation, region (first digit
  of the zip code), item, year (of the film), rating, weekday, hour; vector `title`: a flag for each of the `words`
  most frequent title words that the film's title contains. Genres are not an input, but `item` determines them:
  exclude it with a model's `fields`. Split by context: random (with `folds`, k-fold: fold `fold` is test, and a
  share ratios[1] of the rest is validation) or temporal.
  """
  return Recipe(lambda paths: _read(paths, tags, words), (source("u.data"), source("u.item"), source("u.user")),
                split=split, ratios=ratios, split_seed=split_seed, terms=TERMS, folds=folds, fold=fold)


def _read(paths, tags, words) -> Log:
  log, known, users = films.read_movielens(paths)
  more = films.user_columns(log, users)
  features = films.features_of(log, known, more, {"title": films.title_words(log, known, words)})
  return films.genre_log(log, known, features, tags)
