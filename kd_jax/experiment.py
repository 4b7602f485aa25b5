"""One run, from flags to a finished run directory: the same loop for teachers and students."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from kd_jax import (
    artifacts,
    assembly,
    batches,
    checkpoint,
    evaluate,
    monitoring,
    parallel,
    progress,
    resample,
    runs,
    train,
    transfer,
)
from kd_jax.base import InputError
from kd_jax.data import store

_SAVE_SECONDS = 30  # between checkpoints; a kill loses no more than this


class Position(NamedTuple):
  """Where a run stands, beside its state. Plain numbers: it is saved as JSON."""

  epoch: int = 0  # epochs done
  best_epoch: int = 0
  best_value: float = -math.inf
  best: dict[str, float] | None = None  # validation metrics of the best epoch
  stale: int = 0  # validations without improvement
  seconds: float = 0.0
  others: dict[str, float] = {}  # noqa: RUF012 best values of the further metrics of --monitor


def cache_compilations(cache_dir: str | None) -> None:
  """Keeps compiled programs on disk, so that a second run starts at once."""
  jax.config.update("jax_compilation_cache_dir", str(store.cache_folder(cache_dir) / "compiled"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def run_training(values: flags.FlagValues) -> dict[str, Any]:
  """Trains, or goes on, or finds the run finished; returns the content of result.json.

  Raises InputError before anything is written if flags, data and teachers do not fit.
  """
  runs.check_flags(values.workdir, values)
  if (result := runs.finished(values.workdir, values)) is not None:
    return result
  cache_compilations(values.cache_dir)
  ready = assembly.setup(values)
  stored = ready.teachers[0].stored if ready.teachers else None
  sources = resample.prepare(ready.run, ready.dataset, ready.given, stored)
  os.makedirs(values.workdir, exist_ok=True)
  with artifacts.lock(values.workdir):
    runs.start(values.workdir, values, _info(values, ready))
    if hasattr(dict(ready.run.networks)[train.STUDENT], "fit"):
      return _fit(values, ready)
    return _train(values, ready, sources)


def _info(values, ready) -> dict[str, Any]:
  shapes = jax.eval_shape(lambda: train.init(jax.random.key(0), ready.run, ready.given, ready.example))
  sizes = [math.prod(x.shape) for x in jax.tree.leaves(shapes.params["networks"][train.STUDENT])]
  return {
      "model": values.model, "peer": values.peer, "data": ready.dataset.name, "synthetic": ready.dataset.synthetic,
      "hashes": ready.dataset.hashes, "num_users": ready.dataset.num_users, "num_items": ready.dataset.num_items,
      "parameters": sum(sizes), "bytes": 4 * sum(sizes), "teacher": [t.provenance for t in ready.teachers],
      "features": ready.features,
      "init_from": [ready.warm_start.provenance] if ready.warm_start else [],
      "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}"}


def _fit(values, ready) -> dict[str, Any]:
  """A baseline in closed form: no epochs."""
  start = time.perf_counter()
  params = {train.STUDENT: dict(ready.run.networks)[train.STUDENT].fit(ready.dataset)}
  layout = evaluate.layout(ready.dataset, "validation", sampled=monitoring.needs(ready.monitor)[1])
  position = Position(seconds=time.perf_counter() - start)
  position, _ = monitoring.compare(ready.monitor, position, _validate(ready, layout, {"networks": params}))
  checkpoint.save(values.workdir, 0, {}, params, position._asdict())
  return _finish(values, ready, position)


def _validate(ready, layout, params) -> dict[str, float]:
  module, variables = dict(ready.run.networks)[train.STUDENT], train.variables(ready.given, params, train.STUDENT)
  return evaluate.means(evaluate.measure(module, variables, layout, monitoring.needs(ready.monitor)[0])[1])


def _train(values, ready, sources) -> dict[str, Any]:
  root = jax.random.key(values.seed)
  state = train.init(jax.random.fold_in(root, 0), ready.run, ready.given, ready.example)
  if ready.warm_start is not None:
    own = transfer.start(state.params["networks"][train.STUDENT], ready.warm_start.found)
    state = state._replace(params=state.params | {"networks": state.params["networks"] | {train.STUDENT: own}})
  state = state._replace(memory=resample.initial_memory(ready.run, ready.dataset))
  best, position = jax.tree.map(jnp.copy, state.params["networks"]), Position()
  if checkpoint.latest(values.workdir) is not None:
    _, state, best, saved = checkpoint.restore(values.workdir, state, best)
    position = Position(**saved)
  runs.truncate_metrics(values.workdir, position.epoch)
  if _done(values, position):
    return _finish(values, ready, position)
  epoch = _epoch_function(values, ready, sources, jax.random.fold_in(root, 1))
  sampled = monitoring.needs(ready.monitor)[1]
  layouts = {"validation": evaluate.layout(ready.dataset, "validation", sampled=sampled)}
  if values.log_test:
    layouts["test"] = evaluate.layout(ready.dataset, "test", values.mask_validation, sampled)
  # Lists that live for several epochs are not saved: a checkpoint waits until they are due anyway.
  whole = math.lcm(*(kd.lists.every for _, kd in ready.run.kds))
  saved_at = time.perf_counter()
  state = parallel.replicate(state)
  with progress.reporting(values.epochs, position.epoch) as report, _stopping() as stop:
    while not _done(values, position):
      state, losses, seconds = epoch(state, position.epoch + 1)
      position = position._replace(epoch=position.epoch + 1, seconds=position.seconds + sum(seconds.values()))
      line = {"epoch": position.epoch, "loss": losses, "seconds": seconds}
      if position.epoch % values.eval_every == 0 or position.epoch == values.epochs:
        line |= {split: _validate(ready, layout, state.params) for split, layout in layouts.items()}
        position, improved = monitoring.compare(ready.monitor, position, line["validation"])
        best = jax.tree.map(jnp.copy, state.params["networks"]) if improved else best
      runs.append_metrics(values.workdir, line)
      report(line, monitoring.names(ready.monitor)[0], position)
      due = stop or time.perf_counter() - saved_at > _SAVE_SECONDS
      if _done(values, position) or (due and position.epoch % whole == 0):
        checkpoint.save(values.workdir, position.epoch, state, best, position._asdict())
        saved_at = time.perf_counter()
        if stop and not _done(values, position):
          raise KeyboardInterrupt
  return _finish(values, ready, position)


def _done(values, position):
  return position.epoch >= values.epochs or (values.patience > 0 and position.stale >= values.patience)


def _epoch_function(values, ready, sources, rng):
  """epoch(state, number from 1) -> (state, losses, seconds); a function of seed, number and state alone."""
  run, given, dataset = ready.run, ready.given, ready.dataset
  users, items = batches.to_device(dataset.train, dataset.num_users, dataset.num_items)
  compiled = parallel.compile_epoch(run, values.parallel, values.batch_size)
  lists = None

  def epoch(state, number):
    nonlocal lists
    start = time.perf_counter()
    batch_rng, sample_rng, step_rng = jax.random.split(jax.random.fold_in(rng, number), 3)
    batch = batches.draw(batch_rng, ready.plan(number), users, items, sources.seen["users"],
                         negatives=assembly.negatives(values), num_items=dataset.num_items, kd_per=values.kd_per)
    lists = resample.learner_lists(run, state.params, given, sources, number - 1, lists)
    targets = resample.targets(sample_rng, state.params, given, sources, lists, state.memory,
                               jnp.int32(number - 1), run=run)
    jax.block_until_ready((batch, targets))
    memory = {key: {f: jnp.copy(targets[key][f]) for f in fields} for key, fields in state.memory.items()}
    sampled = time.perf_counter()
    state, losses = compiled(state._replace(memory=memory), given, targets, batch, step_rng)
    losses = {name: float(value) for name, value in losses.items()}
    if not np.isfinite(list(losses.values())).all():
      raise InputError(f"epoch {number}: a loss is not finite ({losses}); a lower --learning_rate or another "
                       "weight of --kd may help. The last checkpoint is kept")
    return state, losses, {"resample": sampled - start, "train": time.perf_counter() - sampled}

  return epoch


@contextlib.contextmanager
def _stopping():
  """Yields a list that SIGTERM or SIGINT fills: the run then saves and ends. A second one ends it at once."""
  asked = []

  def ask(number, frame):
    if asked:
      raise KeyboardInterrupt
    asked.append(number)

  before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield asked
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _finish(values, ready, position) -> dict[str, Any]:
  result = {"epochs": position.epoch, "best_epoch": position.best_epoch, "monitor": ready.monitor,
            "validation": position.best, "seconds": position.seconds}
  artifacts.write_json_atomic(os.path.join(values.workdir, runs.RESULT), result)
  return result
