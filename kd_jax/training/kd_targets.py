"""Distillation targets of an epoch: ranked lists, samples, and the teacher's scores of sampled candidates.

If the teacher's scores can be computed here, once per user, the teacher does not run inside training steps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import KD, ROWS, Array, Batch, Dataset, InputError, Ranked, View
from kd_jax.data import index
from kd_jax.ranking import rank
from kd_jax.training import graph, left_out

_ROWS = 32  # number of users whose candidates the teacher scores together


class Sources(NamedTuple):
  """The inputs of samplers that are fixed during a run. Edge keys are those of `graph.edges`."""

  seen: dict[str, index.Seen]  # by side: "users" (their items) and, if needed, "items" (their users)
  popularity: dict[str, Array]  # by side: number of training interactions of every candidate
  teacher: dict[str, Ranked]  # lists of frozen teachers, [U, lists.teacher], or [U, E, lists.teacher]
  excluded: dict[str, index.Seen]  # seen, or in the teacher's list: never drawn as unseen
  weight: dict[str, Array]  # [U], 0 for rows without enough candidates, or stored ones; only if there are such rows
  labels: dict[str, Array]  # labelled data: frozen teachers' scores of all labels, [U, C] or [U, E, C]
  first: dict[str, Array]  # [U, lists.seen] first training items; of methods with `lists.first`


def check(run: graph.Run, dataset: Dataset) -> list[str]:
  """Raises InputError if methods do not fit the run or the data, e.g. if no user has enough items for their lists.

  Returns a line for every method that leaves out some rows, see `left_out`.
  """
  lines = []
  for missing in {kd.learner for _, kd in run.kds} - {"", *run.learners}:
    raise InputError(f"`kd`: learner={missing!r} is not in this run; give `peer=MODEL`")
  for edge in graph.edges(run):
    if edge.kd.labels and dataset.contexts is None:
      raise InputError(f"`kd`: the method reads true labels, and {dataset.name} is not labelled data")
    if (edge.kd.rows == "items" or edge.kd.neighbours) and dataset.contexts is not None:
      raise InputError(f"`kd`: the method ranks users for items, or relates them by common items, and {dataset.name} "
                       "has contexts and labels")
    if edge.kd.own_loss and (edge.kd.rows == "entities" or edge.kd.sampled_items or edge.kd.sample is None):
      raise InputError("`kd`: own_loss is for methods that sample for users, or for the items of a batch")
    if edge.kd.rows == "entities":
      continue
    lines.append(left_out.by_method(edge, dataset))
  return [line for line in dict.fromkeys(lines) if line is not None]


def needs_live_teacher(kd: KD) -> bool:
  """Whether a method reads teacher scores or representations that no stored list holds."""
  if kd.adapter is not None or kd.sample is None or kd.rows != "users" or kd.all_teachers:
    return True
  return kd.teacher_scores and "teacher" not in jax.eval_shape(lambda: _example(kd, 1, 1, {}))


def _example(kd: KD, teachers: int, num_candidates: int, previous: Batch) -> Batch:
  """The result of a sampler for one example row; only its shapes are used."""
  lists = kd.lists

  def ranked(*shape):
    return Ranked(jnp.zeros(shape, jnp.int32), jnp.zeros(shape)) if shape[-1] else None

  teacher = ranked(teachers, lists.teacher) if kd.all_teachers else ranked(lists.teacher)
  unseen, seen = (jnp.zeros(n, jnp.int32) if n else None for n in (lists.unseen, lists.seen))
  previous = {name: previous.get(name, jnp.zeros(())) for name in kd.remember}
  zero = jnp.zeros((), jnp.int32)
  popularity = jnp.ones(num_candidates, jnp.int32)
  view = View(zero, teacher, ranked(lists.student), unseen, zero, previous, popularity, seen,
              jnp.zeros(()) if kd.own_loss else None, priority=jnp.arange(num_candidates, dtype=jnp.int32))
  sample = jax.vmap(kd.sample, in_axes=(0, None), axis_name=ROWS)
  return jax.tree.map(lambda x: x[0], sample(jax.random.key(0)[None], view))


def initial_memory(run: graph.Run, dataset: Dataset) -> dict[str, Batch]:
  """{edge key: {remembered field: zeros [U]}}."""
  memory = {}
  for edge in graph.edges(run):
    if edge.kd.remember or edge.kd.own_loss:
      _, _, num_rows, num_candidates = index.side(dataset, edge.kd.rows)
      shapes = jax.eval_shape(lambda edge=edge, n=num_candidates: _example(edge.kd, len(edge.teachers), n, {}))
      memory[edge.key] = {f: jnp.zeros((num_rows, *shapes[f].shape), shapes[f].dtype) for f in edge.kd.remember}
      if edge.kd.own_loss:
        memory[edge.key][graph.OWN_LOSS] = jnp.zeros(num_rows)
  return memory


def prepare(run: graph.Run, dataset: Dataset, given, stored: Ranked | None = None,
            ranked: tuple[dict[str, Ranked], dict[str, Array]] | None = None) -> Sources:
  """Ranks with every frozen teacher, once per run, or uses the `stored` lists of a soft-label store.

  With `ranked`, the fields `teacher` and `weight` of an earlier call for the same data, nothing is ranked. Raises
  InputError if scores of a teacher are not finite.
  """
  sides = {"users", *(e.kd.rows for e in graph.edges(run) if e.kd.rows == "items")}
  seen = {side: _seen(*index.side(dataset, side), index.priority_of(dataset, side)) for side in sides}
  column = {"users": dataset.train.items, "items": dataset.train.users}
  popularity = {side: jnp.asarray(np.bincount(column[side], minlength=index.side(dataset, side)[3])) for side in sides}
  if dataset.popularity is not None:
    popularity["users"] = jnp.asarray(dataset.popularity)
  teacher, weight = ({}, {}) if ranked is None else jax.tree.map(jnp.asarray, ranked)
  sources = Sources(seen, popularity, teacher, {}, weight, {}, {})
  for edge in graph.edges(run):
    if dataset.contexts is not None and edge.kd.sample is None and _scored_once(run, edge):
      sources.labels[edge.key] = _scores_of_teachers(run, edge, {"networks": {}}, given, dataset.num_users)
    if ranked is None:
      _rank(run, edge, dataset, given, sources, stored)
    if edge.kd.lists.unseen:
      sources.excluded[edge.key] = _excluded(dataset, edge, sources.teacher.get(edge.key))
    if edge.kd.lists.first:
      users, items, num_users, _ = index.side(dataset, edge.kd.rows)
      sources.first[edge.key] = jnp.asarray(index.first_seen(users, items, num_users, edge.kd.lists.seen))
  return sources


def _seen(rows, candidates, num_rows, num_candidates, priority=None) -> index.Seen:
  return jax.tree.map(jnp.asarray, index.seen_of(rows, candidates, num_rows, num_candidates, priority))


def _rank(run, edge, dataset, given, sources, stored) -> None:
  """Adds to `sources` the lists of an edge's frozen teachers, and the weights of its rows if some are 0."""
  if edge.kd.rows == "entities":
    return
  seen, num_candidates = sources.seen[edge.kd.rows], index.side(dataset, edge.kd.rows)[3]
  enough, ranked = left_out.enough(edge, np.diff(np.asarray(seen.starts)), num_candidates), None
  listed = edge.kd.lists.teacher and not graph.teaches_live(run, edge)
  if listed and stored is not None:
    ranked, whole = stored_lists(stored, dataset, edge.kd.lists)
    enough = enough & whole
  if not enough.all():
    sources.weight[edge.key] = jnp.asarray(enough, jnp.float32)
  if listed:
    ranked = teacher_lists(run, edge, {"networks": {}}, given, sources) if ranked is None else jax.tree.map(
        jnp.asarray, ranked)
    check_teacher(ranked)
    sources.teacher[edge.key] = ranked


def stored_lists(stored: Ranked, dataset: Dataset, lists) -> tuple[Ranked, np.ndarray]:
  """(the first `lists.teacher` items of every stored list, without training items if `lists.exclude_seen`; mask [U] of
  the users whose list is long enough). The rows of other users are placeholders with weight 0: items 0, 1, ...
  """
  keep, k = stored.items >= 0, lists.teacher
  if lists.exclude_seen:
    def key(users, items):
      return users.astype(np.int64) * dataset.num_items + items

    seen = key(*index.seen_in(dataset)[:2])
    keep &= ~np.isin(key(np.arange(dataset.num_users)[:, None], stored.items), seen)
  enough = keep.sum(axis=1) >= k
  first = np.argsort(~keep, axis=1, kind="stable")[:, :k]
  items, scores = (np.take_along_axis(x, first, axis=1) for x in stored)
  whole = enough[:, None]
  return Ranked(np.where(whole, items, np.arange(k, dtype=np.int32)), np.where(whole, scores, 0)), enough


def teacher_lists(run: graph.Run, edge: graph.Edge, params: dict, given, sources: Sources) -> Ranked:
  """The teachers' ranked lists of every row of an edge; rows of weight 0 hold placeholders, as in `stored_lists`."""
  lists = [_network_lists(run, name, edge, edge.kd.lists.teacher, params, given, sources) for name in edge.teachers]
  return jax.tree.map(lambda *x: jnp.stack(x, axis=1), *lists) if edge.kd.all_teachers else lists[0]


def _network_lists(run, name, edge, k, params, given, sources) -> Ranked:
  ranked = rank.network_top_k(
      dict(run.networks)[name], graph.variables(given, params, name), sources.seen[edge.kd.rows], k=k,
      exclude_seen=edge.kd.lists.exclude_seen, rows=edge.kd.rows)
  if edge.key not in sources.weight:
    return ranked
  whole = sources.weight[edge.key][:, None] > 0
  return Ranked(jnp.where(whole, ranked.items, jnp.arange(k)), jnp.where(whole, ranked.scores, 0))


def check_teacher(ranked: Ranked) -> None:
  """Raises InputError for scores that are not finite: top-k would rank a NaN first."""
  scores, items = np.asarray(ranked.scores), np.asarray(ranked.items)
  if not np.isfinite(scores).all() or (items < 0).any():
    user = int(np.argmin(np.isfinite(scores).all(axis=1) & (items >= 0).all(axis=1)))
    raise InputError(f"`teacher`: its scores of user {user} (index) are not finite; nothing was trained")


def _excluded(dataset, edge, ranked) -> index.Seen:
  rows, candidates, num_rows, num_candidates = index.side(dataset, edge.kd.rows)
  if ranked is not None:
    listed = np.asarray(ranked.items).reshape(num_rows, -1)
    rows = np.concatenate([rows, np.repeat(np.arange(num_rows), listed.shape[1])])
    candidates = np.concatenate([candidates, listed.ravel()])
  return _seen(rows, candidates, num_rows, num_candidates)


class Lists(NamedTuple):
  """Ranked lists that change during training: of students, and of teachers that are trained. {edge key: lists}."""

  student: dict[str, Ranked]
  teacher: dict[str, Ranked]


def learner_lists(run: graph.Run, params: dict, given, sources: Sources, epoch: int, before: Lists | None) -> Lists:
  """Ranks with the learners every `lists.every` epochs; otherwise keeps the lists `before`."""
  lists = Lists({}, {})
  for edge in graph.edges(run):
    wanted, keep = edge.kd.lists, before is not None and epoch % edge.kd.lists.every
    if wanted.student:
      lists.student[edge.key] = before.student[edge.key] if keep else _network_lists(
          run, edge.learner, edge, wanted.student, params, given, sources)
    if wanted.teacher and edge.key not in sources.teacher:
      lists.teacher[edge.key] = before.teacher[edge.key] if keep else teacher_lists(run, edge, params, given, sources)
  return lists


def _as_they_are(fields):
  return fields


@functools.partial(jax.jit, static_argnames=("run", "place"))
def targets(rng: Array, params: dict, given, sources: Sources, lists: Lists, memory: dict, epoch: Array, *,
            run: graph.Run, place: Callable[[Any], Any] = _as_they_are) -> dict[str, Batch]:
  """{edge key: {field: [U, ...]}} for `epoch` (from 0); `place` puts them on the devices that read them."""
  fields = {}
  for j, edge in enumerate(graph.edges(run)):
    if edge.kd.sample is None:
      fields |= {edge.key: {"teacher": sources.labels[edge.key]}} if edge.key in sources.labels else {}
      continue
    sampled = _sample(jax.random.fold_in(rng, j), edge, sources, lists, memory.get(edge.key, {}), epoch)
    if "teacher" not in sampled and _scored_once(run, edge):
      sampled["teacher"] = _scores_of_teachers(run, edge, params, given, len(sampled["items"]), sampled["items"])
    if edge.key in sources.weight:
      sampled["weight"] = sampled.get("weight", 1.0) * sources.weight[edge.key]
    fields[edge.key] = sampled
  return place(fields)


def _sample(rng, edge, sources, lists, previous, epoch) -> Batch:
  """Runs the method's sampler for all users, or all items, of an edge."""
  popularity = sources.popularity[edge.kd.rows]
  rows = jnp.arange(sources.seen[edge.kd.rows].starts.shape[0] - 1, dtype=jnp.int32)
  unseen_rng, rng = jax.random.split(rng)
  unseen = seen = None
  if edge.kd.lists.unseen:
    unseen = index.draw_unseen(unseen_rng, sources.excluded[edge.key], rows, edge.kd.lists.unseen, popularity.shape[0])
    unseen = jnp.maximum(unseen, 0) if edge.key in sources.weight else unseen  # -1 only in rows of weight 0
  if edge.kd.lists.first:
    seen = sources.first[edge.key]
  elif edge.kd.lists.seen:
    seen = index.draw_seen(jax.random.fold_in(unseen_rng, 1), sources.seen[edge.kd.rows], rows, edge.kd.lists.seen)
  teacher = sources.teacher.get(edge.key, lists.teacher.get(edge.key))
  own_loss = previous.get(graph.OWN_LOSS)
  previous = {name: previous[name] for name in edge.kd.remember}
  weight = sources.weight.get(edge.key)
  views = View(rows, teacher, lists.student.get(edge.key), unseen, epoch, previous, popularity, seen, own_loss,
               1.0 if weight is None else weight, sources.seen[edge.kd.rows].priority)
  axes = View(0, 0, 0, 0, None, 0, None, 0, 0, None if weight is None else 0, None)
  return jax.vmap(edge.kd.sample, in_axes=(0, axes), axis_name=ROWS)(jax.random.split(rng, rows.shape[0]), views)


def _scored_once(run, edge) -> bool:
  """Whether a method reads scores of teachers that are not trained."""
  return edge.kd.teacher_scores and not graph.teaches_live(run, edge)


def _scores_of_teachers(run, edge, params, given, num_rows, candidates=None) -> Array:
  """Teacher scores of `candidates` [U, C] (None: all candidates): [U, C], or [U, E, C] with `all_teachers`."""
  scores = [_teacher_scores(run, graph.variables(given, params, name), name, edge, num_rows, candidates)
            for name in edge.teachers]
  return jnp.stack(scores, axis=1) if edge.kd.all_teachers else scores[0]


def _teacher_scores(run, variables, name, edge, num_rows, candidates) -> Array:
  score = rank.scorer(dict(run.networks)[name], variables, edge.kd.rows)
  rows = jnp.minimum(jnp.arange(-(-num_rows // _ROWS) * _ROWS), num_rows - 1).reshape(-1, _ROWS)
  scores = jax.lax.map(lambda r: score(r, None if candidates is None else candidates[r]), rows)
  return scores.reshape(-1, scores.shape[-1])[:num_rows]
