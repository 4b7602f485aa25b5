"""MovieTweetings 100K."""

from __future__ import annotations

import functools

from kd_jax.data import sources
from kd_jax.data.parsing import read_columns
from kd_jax.data.recipe import Recipe, Source

_SHA256 = {
    "ratings.dat": "c0dd868c2632d10002ebc928ddc5345f33adeaa59eca52c2941c26a2c5e36fd6",
    "movies.dat": "e63fb84bc734e3c574f135634a40d3cbafab22b8f94f5fc0b80f80d1d2076efc",
}
_FOLDER = ("https://raw.githubusercontent.com/adrianrfreedman/MovieTweetings/"
           "3ae51d9ab4bac513259a36665182d1fd0e7afdf9/snapshots/100K")
TERMS = "MovieTweetings, (c) 2013 Simon Dooms, MIT licence; film ids are IMDb's."


def movietweetings(min_rating: float | None = None, min_user=5, min_item=5, split="random", ratios=(0.8, 0.1, 0.1),
                   split_seed=0) -> Recipe:
  """MovieTweetings 100K: 100,000 film ratings of 0 to 10 from tweets of 2013, with time stamps.

  Origin: snapshots/100K/ratings.dat of MovieTweetings (github adrianrfreedman/MovieTweetings, 3ae51d9),
  from a local copy (movietweetings-100k/) or by download. Licence: MIT, (c) 2013 Simon Dooms. sha256
  c0dd868c... 16,554 users, 10,506 films. Filter: ratings of at least `min_rating` (None keeps all),
  k-core `min_user`, `min_item`; the defaults leave 4,333 users, 2,414 films, 68,055 ratings. Split: any
  rule of splits.py.
  """
  read = functools.partial(read_columns, delimiter="::", columns=("users", "items", "ratings", "timestamps"))
  return Recipe(lambda paths: read(paths[0]), (source("ratings.dat"),), min_rating, min_user, min_item, split, ratios,
                split_seed, terms=TERMS)


def source(name: str) -> Source:
  """A file of the snapshot."""
  url, sha256 = f"{_FOLDER}/{name}", _SHA256[name]
  return Source(f"movietweetings-{name}", sha256, ((f"movietweetings-100k/{name}", sha256),),
                (functools.partial(sources.get, url),), advice=f"It is at {url}.")
