"""The exports that a service answers from; one that is replaced on disk is replaced here while requests run."""

from __future__ import annotations

import hashlib
import os
import pathlib
from typing import NamedTuple

from kd_jax.base import InputError
from kd_jax.serving import loading, new_items
from kd_jax.serving.recommender import Recommender
from kd_jax.serving.requests import Request

FIRST, SECOND, TEACHER = "a", "b", "teacher"


class Loaded(NamedTuple):
  """An export in memory. A request keeps the one that it began with."""

  name: str
  recommender: Recommender
  seal: str  # the content of its manifest.sha256 when it was loaded

  @property
  def export(self) -> str:
    """The beginning of the sha256 that identifies the export."""
    return self.recommender.contents.sha256[:12]


class Live:
  """{name: export}. Loading is slow; asking is not, and may be done while another thread loads."""

  def __init__(self, places: dict[str, str | os.PathLike], share: float, format: str | None, index: bool,
               together: int):
    """Loads all exports. `share` of the users get the export "b", if there is one. Raises InputError."""
    self._places, self._share, self._options = places, share, (format, index, together)
    self._loaded = {name: _load(name, place, *self._options) for name, place in places.items()}

  def __getitem__(self, name: str) -> Loaded:
    """Raises InputError for an unknown name."""
    if name not in self._loaded:
      raise InputError(f"`model={name}`: choose from {', '.join(self._loaded)}")
    return self._loaded[name]

  def names(self) -> list[str]:
    """The names of all exports."""
    return list(self._loaded)

  def of_user(self, user: str | int | None) -> Loaded:
    """The export that answers this user, always the same one of the two. Requests without a user get the first."""
    second = SECOND in self._loaded and user is not None and bucket(str(user)) < self._share
    return self._loaded[SECOND if second else FIRST]

  def is_replaced(self, name: str) -> bool:
    """Whether the directory holds another export than the one in memory."""
    return self.seal_of(name) not in ("", self._loaded[name].seal)

  def seal_of(self, name: str) -> str:
    """What identifies the export in the directory now."""
    return _seal(self._places[name])

  def replace(self, name: str) -> Loaded:
    """Loads the export that is in the directory now. Raises InputError, and keeps the old one, if it is refused."""
    fresh = _load(name, self._places[name], *self._options)
    self._loaded = self._loaded | {name: fresh}
    return fresh


def bucket(user: str) -> float:
  """A number in [0, 1) that depends on the user's id alone."""
  digest = hashlib.blake2b(user.encode("utf-8", "surrogatepass"), digest_size=7, person=b"kd_jax a/b").digest()
  return int.from_bytes(digest, "big") / 2**56


def _seal(place) -> str:
  try:
    return (pathlib.Path(place) / "manifest.sha256").read_text("latin-1")
  except OSError:  # between two renames there is none
    return ""


def _load(name, place, format, index, together) -> Loaded:
  seal = _seal(place)
  recommender = loading.load(place, format, index=index)
  contents, size = recommender.contents, 1
  while size <= together and contents.user_ids:  # compiles the program for every batch size
    recommender.recommend_many([Request(contents.user_ids[0])] * size)
    size *= 2
  new_items.run_once(recommender)
  return Loaded(name, recommender, seal)
