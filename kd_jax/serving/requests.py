"""What is asked of a recommender and what it answers; types and ids are checked here, before anything is computed."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from kd_jax.base import InputError, one_line

Id = str | int  # an integer is the id that is written in its digits
_SHOWN = 100  # characters of a value in a message
_MOST_K = 1_000_000


class Request(NamedTuple):
  """Whom to recommend to, and what."""

  user: Id | None = None
  history: Iterable[Id] = ()  # items of the session, oldest first; they come after what is known of the user
  exclude: Iterable[Id] = ()  # items that are not recommended
  candidates: Iterable[Id] | None = None  # only these items are recommended; None: all
  k: int = 10  # the length of the list; it is shorter if fewer items are left


class Answer(NamedTuple):
  """A list of recommendations, best first."""

  items: list[str]
  scores: list[float]  # higher is better; of popularity, the number of interactions
  source: str  # "user", "history", "fold-in" (a vector made from the history), or "popularity" (nothing is known)


class Checked(NamedTuple):
  """A request whose ids are indices."""

  user: int  # -1: unknown, or none
  history: np.ndarray  # [n] int32
  exclude: np.ndarray  # [e] int32
  candidates: np.ndarray | None  # [c] int32, distinct
  k: int


def check(request: Request, users: Mapping[str, int], items: Mapping[str, int]) -> Checked:
  """The request in indices. Raises InputError, which names the field: a wrong type, or an item that is unknown."""
  if not isinstance(request, Request):
    raise InputError(f"`requests`: a Request is expected, not {type(request).__name__}")
  user = -1 if request.user is None else users.get(_id("user", request.user), -1)
  candidates = None if request.candidates is None else np.unique(_known("candidates", request.candidates, items))
  return Checked(user, _known("history", request.history, items), _known("exclude", request.exclude, items),
                 candidates, check_k(request.k))


def check_k(k: Any) -> int:
  """A number of items. Raises InputError."""
  if isinstance(k, bool) or not isinstance(k, numbers.Integral) or not 1 <= int(k) <= _MOST_K:
    raise InputError(f"`k={one_line(repr(k), _SHOWN)}`: an integer of 1 to {_MOST_K:,} is expected")
  return int(k)


def item_index(item: Any, items: Mapping[str, int]) -> int:
  """The index of an item. Raises InputError if its id is unknown."""
  return _index("item", item, items)


def _id(name, value) -> str:
  if isinstance(value, str):
    return str(value)
  if isinstance(value, numbers.Integral) and not isinstance(value, bool | np.bool_):
    return str(int(value))
  advice = "; recommend_many takes many requests" if name == "user" else ""
  raise InputError(f"`{name}`: one id, a text or an integer, is expected, not {type(value).__name__}{advice}")


def _known(name, values, items) -> np.ndarray:
  if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
    raise InputError(f"`{name}`: a list of ids is expected, not {one_line(repr(values), _SHOWN)}")
  return np.array([_index(name, value, items) for value in values], np.int32)


def _index(name, value, items) -> int:
  found = items.get(_id(name, value))
  if found is None:
    raise InputError(f"`{name}`: unknown item {one_line(repr(value), _SHOWN)}: the export knows {len(items)} items")
  return found
