"""Distillation targets of an epoch: ranked lists, samples, and the teacher's scores of what was sampled.

The teacher is never run inside a training step where its scores can be computed here, once per user.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import ranking, train
from kd_jax.base import KD, Array, Batch, Dataset, InputError, Ranked, View

_USERS = 32  # users whose candidates the teacher scores at a time


class Sources(NamedTuple):
  """What samplers draw from; fixed during a run. Keys are those of `train.edges`."""

  seen: ranking.Seen
  teacher: dict[str, Ranked]  # [U, lists.teacher]
  excluded: dict[str, ranking.Seen]  # seen and listed by the teacher: not to be drawn as unseen


def check(run: train.Run, dataset: Dataset) -> None:
  """Raises InputError if a method asks for longer lists than the data can give every user."""
  degrees = np.bincount(dataset.train.users, minlength=dataset.num_users)
  for edge in train.edges(run):
    lists = edge.kd.lists
    left = dataset.num_items - (degrees.max() if lists.exclude_seen else 0)
    longest = max(lists.teacher, lists.student)
    if longest > left:
      raise InputError(f"--kd: lists of {longest} items are asked for, but a user has only {left} to rank")
    if lists.unseen and lists.unseen > dataset.num_items - degrees.max() - lists.teacher:
      raise InputError(f"--kd: {lists.unseen} unseen items beyond the teacher's {lists.teacher} are asked for, "
                       f"but of {dataset.num_items} items a user has seen {degrees.max()}")


def needs_live_teacher(kd: KD) -> bool:
  """Whether a method reads teacher scores or representations that no stored list holds."""
  if kd.adapter is not None or kd.sample is None:
    return True
  return kd.teacher_scores and "teacher" not in jax.eval_shape(lambda: _example(kd))


def _example(kd: KD) -> Batch:
  ranked = lambda k: Ranked(jnp.zeros(k, jnp.int32), jnp.zeros(k)) if k else None
  lists = kd.lists
  unseen = jnp.zeros(lists.unseen, jnp.int32) if lists.unseen else None
  return kd.sample(jax.random.key(0), View(jnp.int32(0), ranked(lists.teacher), ranked(lists.student), unseen))


def prepare(run: train.Run, dataset: Dataset, seen: ranking.Seen, given, stored: Ranked | None) -> Sources:
  """Ranks with every teacher, once per run, or takes the `stored` lists of a soft-label file."""
  teacher, excluded = {}, {}
  for edge in train.edges(run):
    lists = edge.kd.lists
    if lists.teacher:
      if stored is not None:
        ranked = Ranked(*(jnp.asarray(x[:, : lists.teacher]) for x in stored))
      else:
        variables = train.variables(given, {"networks": {}}, edge.teacher)
        module = dict(run.networks)[edge.teacher]
        ranked = ranking.network_top_k(module, variables, seen, k=lists.teacher, exclude_seen=lists.exclude_seen)
      check_teacher(ranked)
      teacher[edge.key] = ranked
    if lists.unseen:
      excluded[edge.key] = _excluded(dataset, teacher.get(edge.key))
  return Sources(seen, teacher, excluded)


def check_teacher(ranked: Ranked) -> None:
  """Raises InputError for scores that are not finite: top-k would rank a NaN first."""
  scores, items = np.asarray(ranked.scores), np.asarray(ranked.items)
  if not np.isfinite(scores).all() or (items < 0).any():
    user = int(np.argmin(np.isfinite(scores).all(axis=1) & (items >= 0).all(axis=1)))
    raise InputError(f"--teacher: its scores of user {user} (index) are not finite; nothing was trained")


def _excluded(dataset, ranked):
  users, items = dataset.train.users, dataset.train.items
  if ranked is not None:
    listed = np.asarray(ranked.items)
    users = np.concatenate([users, np.repeat(np.arange(len(listed)), listed.shape[1])])
    items = np.concatenate([items, listed.ravel()])
  return jax.tree.map(jnp.asarray, ranking.seen_of(users, items, dataset.num_users, dataset.num_items))


def targets(rng: Array, params: dict, given, sources: Sources, *, run: train.Run, num_items: int) -> dict[str, Batch]:
  """{edge key: {field: [U, ...]}} for the coming epoch."""
  listed = {}
  for edge in train.edges(run):
    if edge.kd.lists.student:
      module, variables = dict(run.networks)[edge.learner], train.variables(given, params, edge.learner)
      lists = edge.kd.lists
      listed[edge.key] = ranking.network_top_k(module, variables, sources.seen, k=lists.student,
                                               exclude_seen=lists.exclude_seen)
  return _targets(rng, params, given, sources, listed, run=run, num_items=num_items)


@functools.partial(jax.jit, static_argnames=("run", "num_items"))
def _targets(rng, params, given, sources, listed, *, run, num_items):
  fields = {}
  for j, edge in enumerate(train.edges(run)):
    if edge.kd.sample is None:
      continue
    sampled = _sample(jax.random.fold_in(rng, j), edge, sources, listed.get(edge.key), num_items)
    if edge.kd.teacher_scores and "teacher" not in sampled:
      variables = train.variables(given, params, edge.teacher)
      sampled["teacher"] = _teacher_scores(run, variables, edge.teacher, sampled["items"])
    fields[edge.key] = sampled
  return fields


def _sample(rng, edge, sources, student, num_items) -> Batch:
  """The method's sampler, for every user."""
  users = jnp.arange(sources.seen.starts.shape[0] - 1, dtype=jnp.int32)
  unseen_rng, rng = jax.random.split(rng)
  unseen = None
  if edge.kd.lists.unseen:
    unseen = draw_unseen(unseen_rng, sources.excluded[edge.key], users, edge.kd.lists.unseen, num_items)
  views = View(users, sources.teacher.get(edge.key), student, unseen)
  return jax.vmap(edge.kd.sample)(jax.random.split(rng, users.shape[0]), views)


def draw_unseen(rng: Array, excluded: ranking.Seen, users: Array, n: int, num_items: int) -> Array:
  """`n` distinct items per user [b, n], each absent item with the same probability.

  A systematic sample: one uniform draw from each of n equal stretches of the absent items.
  """
  absent = ranking.num_absent(excluded, users, num_items)[:, None]
  stretch = jnp.arange(n) + jax.random.uniform(rng, (users.shape[0], n))
  place = jnp.minimum((stretch * absent / n).astype(jnp.int32), absent - 1)
  return ranking.nth_absent(excluded, jnp.broadcast_to(users[:, None], place.shape), place)


def _teacher_scores(run, variables, name, items) -> Array:
  """Scores [U, C] of every user's candidates `items` [U, C] by a live teacher."""
  module = dict(run.networks)[name]
  tables = module.apply(variables, method="tables")
  num_users = items.shape[0]
  users = jnp.minimum(jnp.arange(-(-num_users // _USERS) * _USERS), num_users - 1).reshape(-1, _USERS)
  score = lambda users: module.apply(variables, {"users": users, "items": items[users]}, tables).scores
  return jax.lax.map(score, users).reshape(-1, items.shape[1])[:num_users]
