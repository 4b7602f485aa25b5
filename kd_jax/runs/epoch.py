"""One epoch of one or several runs: plan, draw, lists, targets, steps. Only this module assembles an epoch.

The inputs of an epoch are drawn again from the seed, the epoch and the state, so they need not be saved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Array
from kd_jax.data import streams
from kd_jax.devices import parallel, table_sharding
from kd_jax.runs.setup import Setup
from kd_jax.training import batches, graph, kd_targets, step, windows


class Drawn(NamedTuple):
  """The arguments of `parallel.compile_epoch`."""

  state: graph.TrainState
  given: graph.Given
  targets: dict
  batches: dict
  rng: Array


class Trained(NamedTuple):
  """A run after an epoch."""

  state: graph.TrainState
  losses: list[dict[str, Array]]  # one entry per part of the epoch
  seconds: dict[str, float]  # of drawing and of training; this run's share


def keys(seed: int) -> tuple[Array, Array]:
  """(key for initialisation, key for the draws of epochs) of a run."""
  root = jax.random.key(seed)
  return jax.random.fold_in(root, 0), jax.random.fold_in(root, 1)


def initial_state(ready: Setup) -> graph.TrainState:
  """The state before the first epoch."""
  def init():
    return step.init(keys(ready.options.seed)[0], ready.run, ready.given, ready.example)

  return table_sharding.initialise(ready.run, init)._replace(memory=kd_targets.initial_memory(ready.run, ready.dataset))


def drawer(ready: Setup) -> Callable[[graph.TrainState, int, int], Drawn]:
  """Returns draw(state, epoch from 0, part), which depends only on these and the seed. Frozen teachers rank here."""
  if ready.dataset.stream is not None:
    return _of_parts(ready)
  sources = kd_targets.prepare(ready.run, ready.dataset, ready.given, _stored(ready))
  draw, plan = _of_data(ready, sources), ready.planner(ready.dataset)
  return lambda state, epoch, part: draw(state, epoch, epoch + 1, plan(epoch + 1))


def advance(runs: Sequence[tuple[Setup, Callable, graph.TrainState]], epochs: Sequence[int]) -> list[Trained]:
  """Trains one epoch of every run (setup, its `drawer`, state), all at once; `epochs` are their numbers, from 0.

  Each run gives the same result as alone, see `parallel.epochs`.
  """
  options, states = runs[0][0].options, [state for _, _, state in runs]
  seconds, losses = {"resample": 0.0, "train": 0.0}, [[] for _ in runs]
  for part in range(runs[0][0].run.parts):
    start = time.perf_counter()
    drawn = parallel.each(lambda x: x[0][1](x[1], x[2], part),  # noqa: B023
                          list(zip(runs, states, epochs, strict=True)))
    sampled = time.perf_counter()
    made = parallel.epochs([(ready.run, of_run) for (ready, _, _), of_run in zip(runs, drawn, strict=True)],
                           options.parallel, options.batch_size)
    seconds["resample"] += (sampled - start) / len(runs)
    seconds["train"] += (time.perf_counter() - sampled) / len(runs)
    states = [state for state, _ in made]
    for of_run, (_, found) in zip(losses, made, strict=True):
      of_run.append(found)
  return [Trained(state, of_run, seconds) for state, of_run in zip(states, losses, strict=True)]


def _stored(ready):
  return ready.teachers[0].stored if ready.teachers else None


def _of_parts(ready):
  """`drawer` for streamed data: a thread reads and indexes the next part while the current part is trained."""
  dataset, parts = ready.dataset, ready.run.parts
  ranked: dict[int, Any] = {}  # {part: (lists of frozen teachers, weights of their rows)}, in host memory
  thread, begun = futures.ThreadPoolExecutor(1), {}

  def prepare(epoch, place):
    part = int(windows.order(ready.options.seed, epoch + 1, dataset)[place])
    own = ready._replace(dataset=streams.part(dataset, part),
                         given=windows.of_part(ready.given, ready.run, dataset, part))
    stored = windows.listed(_stored(ready), dataset, part)
    of_part = kd_targets.prepare(own.run, own.dataset, own.given, stored, ranked.get(part))
    ranked[part] = jax.tree.map(np.asarray, (of_part.teacher, of_part.weight))
    number = epoch * parts + part + 1
    return _of_data(own, of_part), number, own.planner(own.dataset)(number)

  def draw_part(state, epoch, place):
    draw, *rest = begun.pop((epoch, place)).result() if (epoch, place) in begun else prepare(epoch, place)
    following = (epoch, place + 1) if place + 1 < parts else (epoch + 1, 0)
    begun[following] = thread.submit(prepare, *following)
    return draw(state, epoch, *rest)

  return draw_part


def _of_data(ready, sources):
  """Returns draw(state, epoch from 0, number of the draw, plan of its batches) for a data set, or a part of one."""
  run, given, dataset, options = ready.run, ready.given, ready.dataset, ready.options
  rng = keys(options.seed)[1]
  users, items = batches.to_device(dataset.train, dataset.num_users, dataset.num_items)
  placed = {"place": table_sharding.split_rows} if table_sharding.is_split(run) else {}
  lists = None

  def draw(state, epoch, number, plan):
    nonlocal lists
    batch_rng, sample_rng, step_rng = jax.random.split(jax.random.fold_in(rng, number), 3)
    batch = batches.draw(batch_rng, plan, users, items, sources.seen["users"], ready.pool,
                         negatives=ready.negatives, num_items=dataset.num_items, kd_per=options.kd_per)
    lists = kd_targets.learner_lists(run, state.params, given, sources, epoch, lists)
    targets = kd_targets.targets(sample_rng, state.params, given, sources, lists, state.memory, jnp.int32(epoch),
                                 run=run, **placed)
    jax.block_until_ready((batch, targets))
    memory = {key: {f: x if f == graph.OWN_LOSS else jnp.copy(targets[key][f][: len(x)]) for f, x in fields.items()}
              for key, fields in state.memory.items()}
    return Drawn(state._replace(memory=memory), given, targets, batch, step_rng)

  return draw
