"""What an epoch is given: batches, ranked lists and targets, drawn afresh from the seed, the epoch and the state."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from kd_jax import assembly, batches, resample, streaming
from kd_jax.base import Array
from kd_jax.data import streams


def sources(ready: assembly.Setup) -> resample.Sources | None:
  """What samplers draw from; None where the data is streamed, a part of it at a time."""
  return None if ready.dataset.stream else resample.prepare(ready.run, ready.dataset, ready.given, _stored(ready))


def _stored(ready):
  return ready.teachers[0].stored if ready.teachers else None


def of_run(values: flags.FlagValues, ready: assembly.Setup, sources: resample.Sources | None, rng: Array) -> Callable:
  """draw(state, epoch from 1, part) -> (state, given, targets, batches, rng), a function of these and `rng` alone."""
  dataset, parts = ready.dataset, ready.run.parts
  if dataset.stream is None:
    draw = _of_data(values, ready, sources, rng)
    return lambda state, epoch, part: draw(state, epoch - 1, epoch)
  listed = {}  # by frozen teachers, for every part, in the memory of the host

  def draw_part(state, epoch, part):
    part = int(streaming.order(values.seed, epoch, dataset)[part])
    own = ready._replace(dataset=streams.part(dataset, part),
                         given=streaming.of_part(ready.given, ready.run, dataset, part))
    stored = streaming.listed(_stored(ready), dataset, part)
    of_part = resample.prepare(own.run, own.dataset, own.given, stored, listed.get(part))
    listed[part] = jax.tree.map(np.asarray, of_part.teacher)
    return _of_data(values, own, of_part, rng)(state, epoch - 1, (epoch - 1) * parts + part + 1)

  return draw_part


def _of_data(values, ready, sources, rng):
  """draw(state, epoch from 0, number of the draw) of a data set, or of a part of it."""
  run, given, dataset, plan = ready.run, ready.given, ready.dataset, ready.planner(ready.dataset)
  users, items = batches.to_device(dataset.train, dataset.num_users, dataset.num_items)
  lists = None

  def draw(state, epoch, number):
    nonlocal lists
    batch_rng, sample_rng, step_rng = jax.random.split(jax.random.fold_in(rng, number), 3)
    batch = batches.draw(batch_rng, plan(number), users, items, sources.seen["users"], ready.pool,
                         negatives=assembly.negatives(values), num_items=dataset.num_items, kd_per=values.kd_per)
    lists = resample.learner_lists(run, state.params, given, sources, epoch, lists)
    targets = resample.targets(sample_rng, state.params, given, sources, lists, state.memory, jnp.int32(epoch), run=run)
    jax.block_until_ready((batch, targets))
    memory = {key: {f: jnp.copy(targets[key][f][: len(x)]) for f, x in fields.items()}
              for key, fields in state.memory.items()}
    return state._replace(memory=memory), given, targets, batch, step_rng

  return draw
