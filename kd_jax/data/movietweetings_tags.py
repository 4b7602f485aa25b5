"""MovieTweetings 100K: genres as tags of ratings."""

from __future__ import annotations

from kd_jax.data import films
from kd_jax.data.movietweetings import TERMS, source
from kd_jax.data.recipe import Log, Recipe


def movietweetings_tags(tags=10, words=100, split="random", ratios=(0.8, 0.1, 0.1), split_seed=0,
                        folds=0, fold=0) -> Recipe:
  """LABELLED: MovieTweetings 100K. Every rating is a context; its labels (tags) are the genres of the film.

  Origin: ratings.dat and movies.dat of snapshots/100K of MovieTweetings (see `movietweetings`), from a local copy
  (movietweetings-100k/) or by download. Licence: MIT, (c) 2013 Simon Dooms. Exactly 100,000 contexts; labels: the
  `tags` genres with most ratings. Fields: user, item, year (of the film), rating, weekday, hour; vector `title`:
  a flag for each of the `words` most frequent title words that the film's title contains. Genres are not an input,
  but `item` determines them: exclude it with a model's `fields`. Split by context: random (with `folds`, k-fold:
  fold `fold` is test, and a share ratios[1] of the rest is validation) or temporal.
  """
  return Recipe(lambda paths: _read(paths, tags, words), (source("ratings.dat"), source("movies.dat")), split=split,
                ratios=ratios, split_seed=split_seed, terms=TERMS, folds=folds, fold=fold)


def _read(paths, tags, words) -> Log:
  log, known = films.read_movietweetings(paths)
  features = films.features_of(log, known, {}, {"title": films.title_words(log, known, words)})
  return films.genre_log(log, known, features, tags)
