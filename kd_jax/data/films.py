"""Film ratings as labelled data. Every rating is a context, with features of its user, film and time."""

from __future__ import annotations

import collections
import pathlib
import re
from typing import NamedTuple

import numpy as np

from kd_jax.base import Features, InputError
from kd_jax.data import parsing
from kd_jax.data.features import categorical
from kd_jax.data.recipe import Contexts, Log

_DAY = 86_400
_AGES = (18, 25, 35, 45, 50, 56)  # the age groups of MovieLens 1M


class Film(NamedTuple):
  """Metadata of a film."""

  title: str
  year: str
  genres: tuple[str, ...]


def read_movielens(paths: list[pathlib.Path]) -> tuple[Log, dict[str, Film], dict[str, tuple[str, ...]]]:
  """Reads u.data, u.item, u.user: ratings, {film: Film}, {user: (age group, gender, occupation, region)}."""
  ratings = parsing.read_columns(paths[0], "\t", ("users", "items", "ratings", "timestamps"))
  films, users = {}, {}
  for row in _rows(paths[1], 24):
    names = [name for name, flag in zip(MOVIELENS_GENRES, row[5:], strict=True) if flag == "1"]
    films[row[0]] = Film(*_title_and_year(row[1]), tuple(names))
  for name, age, gender, occupation, code in _rows(paths[2], 5):
    users[name] = str(np.searchsorted(_AGES, int(age), side="right")), gender, occupation, code[:1]
  return ratings, films, users


MOVIELENS_GENRES = ("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
                    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller",
                    "War", "Western")  # the order of the columns of u.item


def read_movietweetings(paths: list[pathlib.Path]) -> tuple[Log, dict[str, Film]]:
  """Reads ratings.dat and movies.dat: the ratings and {film: Film}."""
  ratings = parsing.read_columns(paths[0], "::", ("users", "items", "ratings", "timestamps"))
  films = {}
  for number, line in parsing.lines(paths[1]):
    row, reason = parsing.fields(line.replace(b'"', b""), "::", 3)
    if row is None:
      raise InputError(f"`data`: {paths[1]}:{number}: {reason}")
    films[row[0]] = Film(*_title_and_year(row[1]), tuple(g for g in row[2].split("|") if g))
  return ratings, films


def _rows(path, count):
  """Rows of a MovieLens file, in Latin-1 encoding."""
  for number, line in parsing.lines(path):
    row = line.decode("latin-1").split("|")
    if len(row) != count:
      raise InputError(f"`data`: {path}:{number}: {len(row)} columns, expected {count}")
    yield row


def _title_and_year(text):
  """("Toy Story", "1995") from "Toy Story (1995)"."""
  found = re.match(r"(.*?)\s*\((\d{4})\)", text)
  return found.groups() if found else (text, "")


def columns(log: Log, films: dict[str, Film]) -> dict[str, np.ndarray]:
  """The fields of every rating [N]: user, item, year of the film, rating, and weekday and hour (UTC) of the rating."""
  return {"user": log.users, "item": log.items, "year": np.array([films[i].year for i in log.item_ids])[log.items],
          "rating": log.ratings, "weekday": log.timestamps // _DAY % 7, "hour": log.timestamps // 3600 % 24}


def title_words(log: Log, films: dict[str, Film], count: int) -> np.ndarray:
  """[N, count] float32: 1 if the title of the rating's film contains the word, for the most frequent title words."""
  words = [set(re.findall(r"\w+", films[i].title.lower())) for i in log.item_ids]
  frequent = collections.Counter(word for one in words for word in sorted(one)).most_common(count)
  table = np.array([[word in one for word, _ in frequent] for one in words], np.float32)
  return table[log.items]


def genre_log(log: Log, films: dict[str, Film], features: Features, tags: int) -> Log:
  """Labelled data: contexts are ratings, labels the `tags` genres with most ratings, positive if the film has them."""
  genres = [films[i].genres for i in log.item_ids]
  counted = collections.Counter()
  for own, count in zip(genres, np.bincount(log.items, minlength=len(genres)).tolist(), strict=True):
    counted.update(dict.fromkeys(own, count))
  names = [name for name, _ in counted.most_common(tags)]
  true = np.array([[name in own for name in names] for own in genres])[log.items]
  rows, labels = np.nonzero(true)
  return _labelled(log, rows, labels, names, features)


def rating_log(log: Log, features: Features, threshold: float) -> Log:
  """Labelled data with one label, positive for ratings of at least `threshold`."""
  rows = np.flatnonzero(log.ratings >= threshold)
  return _labelled(log, rows, np.zeros_like(rows), ["liked"], features)


def _labelled(log, rows, labels, names, features) -> Log:
  ids = [f"{log.user_ids[u]}:{log.item_ids[i]}" for u, i in zip(log.users, log.items, strict=True)]
  return Log(rows, labels, ids, names, user_features=features, contexts=Contexts(log.timestamps))


def user_columns(log: Log, users: dict[str, tuple[str, ...]]) -> dict[str, np.ndarray]:
  """User fields of every rating, [N] each."""
  table = list(zip(*(users[name] for name in log.user_ids), strict=True))
  return {name: np.array(column)[log.users] for name, column in zip(
      ("age", "gender", "occupation", "region"), table, strict=True)}


def features_of(log: Log, films: dict[str, Film], more: dict[str, np.ndarray],
                vectors: dict[str, np.ndarray]) -> Features:
  """Features of the ratings: the fields of `columns`, `more` fields [N], and `vectors` [N, D]."""
  return categorical(columns(log, films) | more)._replace(vectors=vectors)


def without(features: Features, field: str) -> Features:
  """Removes one field, for example the one that the label was made from."""
  kept = [n for n, name in enumerate(features.fields) if name != field]

  def take(values):
    return tuple(values[n] for n in kept)

  return features._replace(fields=take(features.fields), sizes=take(features.sizes),
                           categories=features.categories[:, kept])
