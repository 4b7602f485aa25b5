"""Answers requests from the contents of an export."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from kd_jax.base import InputError
from kd_jax.serving import as_npz, inputs, layout, ranking, requests
from kd_jax.serving.inputs import Context
from kd_jax.serving.layout import Contents
from kd_jax.serving.requests import Answer, Checked, Id, Request

_TOGETHER = 256  # requests whose scores are in memory at a time


class Recommender:
  """Recommends items to users, or for histories.

  `recommend("196")` returns an `Answer`. What is known of a user is excluded, if the export was made so; so are the
  items of the request's history. Users that the export does not know get the most popular items, and the answer says
  so. Its methods may be called by several threads.
  """

  def __init__(self, contents: Contents, score: Callable[..., np.ndarray], index: Any = None,
               tower: Callable[..., np.ndarray] | None = None):
    """`score(**inputs) -> [b, I]` are the scores of the network; `index` an `approximate.Index` of its vectors.

    `tower` makes vectors of new items, see `new_items.tower`.
    """
    self.contents, self.metadata, self.tower = contents, contents.metadata, tower
    self._score, self._index = score, index
    self._users, self._items = ({name: place for place, name in enumerate(ids)}
                                for ids in (contents.user_ids, contents.item_ids))
    self._inputs = contents.metadata["inputs"]
    self._read = inputs.readers(contents)[self._inputs]
    self._directions: np.ndarray | None = None
    self._popularity = contents.popularity.astype(np.float32)

  def recommend(self, user: Id | None = None, *, history: Iterable[Id] = (), exclude: Iterable[Id] = (),
                candidates: Iterable[Id] | None = None, k: int = 10) -> Answer:
    """The `k` best items for a user, or for a history. Fields and errors are those of `Request`."""
    return self.recommend_many([Request(user, history, exclude, candidates, k)])[0]

  def recommend_many(self, many: Sequence[Request]) -> list[Answer]:
    """An answer to each of many requests; they are scored together. Raises InputError if one of them is wrong."""
    if isinstance(many, str | bytes | Request) or not isinstance(many, Sequence):
      raise InputError(f"`requests`: a list of Requests is expected, not {type(many).__name__}")
    checked = [self.check(request) for request in many]
    found: list[Answer] = []
    for start in range(0, len(checked), _TOGETHER):
      found += self.answer(checked[start : start + _TOGETHER])
    return found

  def check(self, request: Request) -> Checked:
    """The request in indices. Raises InputError if it is wrong."""
    return requests.check(request, self._users, self._items)

  def answer(self, checked: Sequence[Checked]) -> list[Answer]:
    """The answers to requests that `check` returned; their scores are computed in one call."""
    contexts = [self._context(request) for request in checked]
    sources = [inputs.source(self._inputs, context) for context in contexts]
    near = [self._near(*each) for each in zip(checked, contexts, sources, strict=True)]
    scored = [context for context, source, done in zip(contexts, sources, near, strict=True) if source and not done]
    rows = iter(self._score(**self._read(scored)) if scored else ())
    return [done or self._listed(request, context, next(rows) if source else self._popularity, source or "popularity")
            for request, context, source, done in zip(checked, contexts, sources, near, strict=True)]

  def similar(self, item: Id, k: int = 10) -> Answer:
    """The `k` items whose vectors have the largest cosines with that of an item.

    Raises InputError if the item is unknown, or the network has no vectors of items.
    """
    place, k = requests.item_index(item, self._items), requests.check_k(k)
    vectors = self._vectors()
    scores = vectors @ vectors[place]
    scores[place] = -np.inf
    chosen = ranking.best(scores, self.contents.priority, k)
    return self._answer(chosen, scores[chosen], "item")

  def knows_item(self, item: str) -> bool:
    """Whether the export has an item."""
    return item in self._items

  def with_items(self, ids: list[str], vectors: np.ndarray) -> Recommender:
    """The same with more items, whose vectors are [n, D]; scores are inner products, computed by NumPy.

    None has interactions; among equal scores they are last, in their order.
    """
    contents, more = self.contents, copy.copy(self)
    table = layout.table(contents.weights, "item")
    weights = {name: x for name, x in contents.weights.items() if name != "item_scale"}
    places = np.arange(len(table), len(table) + len(ids), dtype=np.int32)
    more.contents = contents._replace(
        item_ids=[*contents.item_ids, *ids], weights=weights | {"item": np.concatenate([table, vectors])},
        popularity=np.concatenate([contents.popularity, 0 * places]),
        priority=np.concatenate([contents.priority, places]))
    more._items = self._items | dict(zip(ids, places.tolist(), strict=True))
    more._popularity = more.contents.popularity.astype(np.float32)
    more._score, more._read = as_npz.read(more.contents), inputs.readers(more.contents)[self._inputs]
    more._index = more._directions = None
    return more

  def _context(self, request) -> Context:
    known = self.contents.history(request.user) if request.user >= 0 else request.history[:0]
    return Context(request.user, np.concatenate([known, request.history]))

  def _excluded(self, request, context) -> np.ndarray:
    return np.concatenate([context.history, request.exclude]) if self.metadata["exclude_seen"] else request.exclude

  def _listed(self, request, context, scores, source) -> Answer:
    scores, priority = np.array(scores, np.float32), self.contents.priority
    scores[self._excluded(request, context)] = -np.inf
    if request.candidates is None:
      chosen = ranking.best(scores, priority, request.k)
    else:
      among = request.candidates
      chosen = among[ranking.best(scores[among], priority[among], request.k)]
    return self._answer(chosen, scores[chosen], source)

  def _near(self, request, context, source) -> Answer | None:
    """An answer from the approximate index; None if there is none, or it does not find enough items."""
    if self._index is None or source is None or request.candidates is not None:
      return None
    excluded = self._excluded(request, context)
    query = self._read([context])["query"]
    items, scores = self._index.search(query[0], request.k + len(excluded))
    kept = np.flatnonzero(~np.isin(items, excluded))[: request.k]
    return self._answer(items[kept], scores[kept], source) if len(kept) == request.k else None

  def _answer(self, items, scores, source) -> Answer:
    return Answer([self.contents.item_ids[i] for i in items.tolist()], scores.tolist(), source)

  def _vectors(self) -> np.ndarray:
    """The vectors of all items, of length 1."""
    if self._directions is None:
      name = self.metadata.get("vectors")
      if name is None:
        raise InputError(f"`similar`: {self.metadata['model']} has no vectors of items")
      table = layout.table(self.contents.weights, name)
      self._directions = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return self._directions
