"""What an epoch is given: batches, ranked lists and targets, drawn afresh from the seed, the epoch and the state."""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from kd_jax.base import Array
from kd_jax.data import streams
from kd_jax.devices import table_sharding
from kd_jax.runs import setup
from kd_jax.training import batches, kd_targets, windows


def sources(ready: setup.Setup) -> kd_targets.Sources | None:
  """What samplers draw from; None where the data is streamed, a part of it at a time."""
  return None if ready.dataset.stream else kd_targets.prepare(ready.run, ready.dataset, ready.given, _stored(ready))


def _stored(ready):
  return ready.teachers[0].stored if ready.teachers else None


def of_run(values: flags.FlagValues, ready: setup.Setup, sources: kd_targets.Sources | None, rng: Array) -> Callable:
  """draw(state, epoch from 1, part) -> (state, given, targets, batches, rng), a function of these and `rng` alone."""
  dataset, parts = ready.dataset, ready.run.parts
  if dataset.stream is None:
    draw, plan = _of_data(values, ready, sources, rng), ready.planner(dataset)
    return lambda state, epoch, part: draw(state, epoch - 1, epoch, plan(epoch))
  listed = {}  # by frozen teachers, for every part, in the memory of the host
  thread, begun = futures.ThreadPoolExecutor(1), {}  # reads and indexes the next part while this one is trained on

  def prepare(epoch, place):
    part = int(windows.order(values.seed, epoch, dataset)[place])
    own = ready._replace(dataset=streams.part(dataset, part),
                         given=windows.of_part(ready.given, ready.run, dataset, part))
    stored = windows.listed(_stored(ready), dataset, part)
    of_part = kd_targets.prepare(own.run, own.dataset, own.given, stored, listed.get(part))
    listed[part] = jax.tree.map(np.asarray, of_part.teacher)
    number = (epoch - 1) * parts + part + 1
    return _of_data(values, own, of_part, rng), number, own.planner(own.dataset)(number)

  def draw_part(state, epoch, place):
    draw, *rest = begun.pop((epoch, place)).result() if (epoch, place) in begun else prepare(epoch, place)
    following = (epoch, place + 1) if place + 1 < parts else (epoch + 1, 0)
    begun[following] = thread.submit(prepare, *following)
    return draw(state, epoch - 1, *rest)

  return draw_part


def _of_data(values, ready, sources, rng):
  """draw(state, epoch from 0, number of the draw, plan of its batches) of a data set, or of a part of it."""
  run, given, dataset = ready.run, ready.given, ready.dataset
  users, items = batches.to_device(dataset.train, dataset.num_users, dataset.num_items)
  placed = {"place": table_sharding.split_rows} if table_sharding.is_split(run) else {}
  lists = None

  def draw(state, epoch, number, plan):
    nonlocal lists
    batch_rng, sample_rng, step_rng = jax.random.split(jax.random.fold_in(rng, number), 3)
    batch = batches.draw(batch_rng, plan, users, items, sources.seen["users"], ready.pool,
                         negatives=setup.negatives(values), num_items=dataset.num_items, kd_per=values.kd_per)
    lists = kd_targets.learner_lists(run, state.params, given, sources, epoch, lists)
    targets = kd_targets.targets(sample_rng, state.params, given, sources, lists, state.memory, jnp.int32(epoch),
                                 run=run, **placed)
    jax.block_until_ready((batch, targets))
    memory = {key: {f: jnp.copy(targets[key][f][: len(x)]) for f, x in fields.items()}
              for key, fields in state.memory.items()}
    return state._replace(memory=memory), given, targets, batch, step_rng

  return draw
