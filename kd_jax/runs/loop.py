"""One run, from flags to a finished run directory: the same loop for teachers and students."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from kd_jax.base import STUDENT, InputError
from kd_jax.callbacks import progress
from kd_jax.data import store
from kd_jax.devices import parallel, processes, signals, table_sharding
from kd_jax.evaluation import model_selection, protocols, streaming
from kd_jax.runs import epochs, setup
from kd_jax.storage import checkpoint, run_directory, sealed
from kd_jax.teachers import warm_start
from kd_jax.training import graph, kd_targets, step

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


class Training(NamedTuple):
  """A run under way: what stays, and what an epoch changes."""

  values: flags.FlagValues
  ready: setup.Setup
  draw: Callable  # (state, epoch from 1, part) -> arguments of `parallel.compile_epoch`
  layouts: dict[str, Any]  # {split: evaluate.layout}
  state: graph.TrainState
  best: dict  # parameters of the best epoch
  position: Position


def run_training(values: flags.FlagValues) -> dict[str, Any]:
  """Trains, or goes on, or finds the run finished; returns the content of result.json.

  Raises InputError before anything is written if flags, data and teachers do not fit; later if the run diverges.
  """
  result = run_together([values])[0]
  if isinstance(result, InputError):
    raise result
  return result


def run_together(several: Sequence[flags.FlagValues]) -> list[dict[str, Any] | InputError]:
  """`run_training` of several runs at once, e.g. seeds: each is as it would be alone, all take less time.

  See `parallel.epochs`. One that diverges has its error as result, the others go on. Raises InputError before writing.
  """
  for values in several:
    run_directory.check_flags(values.workdir, values)
  found = [setup.finished(values) for values in several]
  waiting, failed = [values for values, result in zip(several, found, strict=True) if result is None], {}
  processes.meet()  # nothing is written before all have looked
  if waiting:
    parallel.check_together([values.parallel for values in waiting])
    cache_compilations(waiting[0].cache_dir)
    readies = setup.share([setup.setup(values) for values in waiting])
    if len(readies) > 1 and any(ready.run.parts > 1 for ready in readies):
      raise InputError("--data_memory: the interactions are streamed, by one run at a time: no --seeds, no --sweep")
    prepared = [(values, ready, epochs.sources(ready)) for values, ready in zip(waiting, readies, strict=True)]
    with contextlib.ExitStack() as locks:
      for values, ready, _ in prepared:
        if processes.is_first():
          os.makedirs(values.workdir, exist_ok=True)
          locks.enter_context(sealed.lock(values.workdir))
          run_directory.start(values.workdir, values, _info(values, ready))
        if _in_closed_form(ready):
          _fit(values, ready)
      processes.meet()  # the directories stand
      failed = _train([_begin(*x) for x in prepared if not _in_closed_form(x[1])])
    processes.meet()  # all is written
  return [failed.get(x.workdir) or run_directory.read_json(pathlib.Path(x.workdir) / run_directory.RESULT) for x in several]


def _in_closed_form(ready) -> bool:
  return hasattr(dict(ready.run.networks)[STUDENT], "fit")


def _info(values, ready) -> dict[str, Any]:
  sizes = [math.prod(x.shape) for x in jax.tree.leaves(ready.shapes.params["networks"][STUDENT])]
  return {
      "model": values.model, "peer": values.peer, "data": ready.dataset.name,
      "data_memory": values.data_memory, "synthetic": ready.dataset.synthetic,
      "hashes": ready.dataset.hashes, "num_users": ready.dataset.num_users, "num_items": ready.dataset.num_items,
      "parameters": sum(sizes), "bytes": 4 * sum(sizes), "teacher": [t.provenance for t in ready.teachers],
      "features": ready.features,
      "init_from": [ready.warm_start.provenance] if ready.warm_start else [],
      "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}"}


def _fit(values, ready) -> None:
  """A baseline in closed form: no epochs."""
  start = time.perf_counter()
  params = {STUDENT: dict(ready.run.networks)[STUDENT].fit(ready.dataset)}
  _, sampled, only = model_selection.needs(ready.monitor)
  layout = protocols.layout(ready.dataset, "validation", sampled=sampled, only_sampled=only)
  position = Position(seconds=time.perf_counter() - start)
  position, _ = model_selection.compare(ready.monitor, position, _validate(ready, layout, {"networks": params}))
  processes.by_first(checkpoint.save, values.workdir, 0, {}, params, position._asdict())
  _finish(values, ready, position)


def _validate(ready, layout, params) -> dict[str, float]:
  module, cutoffs = dict(ready.run.networks)[STUDENT], model_selection.needs(ready.monitor)[0]
  if ready.dataset.stream:
    return protocols.means(streaming.measure(module, params["networks"][STUDENT], layout, cutoffs)[1])
  variables = graph.variables(ready.given, params, STUDENT)
  return processes.of_first(protocols.means(protocols.measure(module, variables, layout, cutoffs)[1]))


def _begin(values, ready, sources) -> Training:
  """The run at its start, or where its last checkpoint left it."""
  root = jax.random.key(values.seed)
  init = lambda: step.init(jax.random.fold_in(root, 0), ready.run, ready.given, ready.example)
  memory = kd_targets.initial_memory(ready.run, ready.dataset)
  if checkpoint.latest(values.workdir) is not None:
    _, state, best, saved = checkpoint.restore(values.workdir, *_whole(ready, memory))
    shapes, position = jax.eval_shape(init), Position(**saved)
    state = table_sharding.resize(state, shapes._replace(memory=memory))
    best = parallel.place(table_sharding.resize(best, shapes.params["networks"]), ready.run)
  else:
    state = table_sharding.initialise(ready.run, init)._replace(memory=memory)
    if ready.warm_start is not None:
      own = warm_start.start(state.params["networks"][STUDENT], ready.warm_start.found)
      state = state._replace(params=state.params | {"networks": state.params["networks"] | {STUDENT: own}})
    best, position = jax.tree.map(jnp.copy, state.params["networks"]), Position()
  processes.by_first(run_directory.truncate_metrics, values.workdir, position.epoch)
  _, sampled, only = model_selection.needs(ready.monitor)  # the full ranking takes three times as long as the sampled one
  layout = functools.partial(streaming.Protocol if ready.dataset.stream else protocols.layout, ready.dataset)
  layouts = {"validation": layout("validation", sampled=sampled, only_sampled=only)}
  if values.log_test:
    layouts["test"] = layout("test", values.mask_validation, sampled, only_sampled=only)
  draw = epochs.of_run(values, ready, sources, jax.random.fold_in(root, 1))
  return Training(values, ready, draw, layouts, parallel.place(state, ready.run), best, position)


def _whole(ready, memory):
  """Shapes of what a checkpoint holds, (state, best parameters), however tables are split."""
  return ready.shapes._replace(memory=memory), ready.shapes.params["networks"]


def _train(trainings: list[Training]) -> dict[str, InputError]:
  """Epoch by epoch, all at once, until each is done; result.json of a run is written when it is.

  A run that diverges is left where it was last saved, and the others go on. Returns {workdir: error} of those.
  """
  for x in trainings:
    if _done(x):
      _finish(x.values, x.ready, x.position)
  trainings, saved_at, unsaved = [x for x in trainings if not _done(x)], time.perf_counter(), set()
  if not trainings:
    return {}
  first, numbers, failed = trainings[0], itertools.count(1), {}
  with progress.reporting(first.values.epochs, first.position.epoch) as report, signals.on_signal() as stop:
    while trainings:
      with _traced(first.values, next(numbers)):
        trainings, lines, errors = _epoch(trainings)
      failed |= errors
      unsaved &= {x.values.workdir for x in trainings}
      if not trainings:
        break
      report(lines[0], model_selection.names(trainings[0].ready.monitor)[0], trainings[0].position)
      # Once: a signal may come while runs are being saved.
      asked, long = processes.any_of(bool(stop), time.perf_counter() - saved_at > _SAVE_SECONDS)
      if not unsaved and (asked or long):
        unsaved, saved_at = {x.values.workdir for x in trainings}, time.perf_counter()
      for x in trainings:
        if x.values.keep_every and x.position.epoch % x.values.keep_every == 0:
          processes.by_first(_keep, x, table_sharding.resize(x.best, x.ready.shapes.params["networks"]))
        if _done(x) or (x.values.workdir in unsaved and _lists_are_due(x)):
          whole = table_sharding.resize((x.state, x.best), _whole(x.ready, x.state.memory))
          processes.by_first(checkpoint.save, x.values.workdir, x.position.epoch, *whole, x.position._asdict())
          unsaved.discard(x.values.workdir)
        if _done(x):
          _finish(x.values, x.ready, x.position)
      trainings = [x for x in trainings if not _done(x)]
      if asked and trainings and not unsaved:
        raise signals.Agreed
  return failed


def _keep(training, best):
  """Makes the directory that the run would be if it ended here."""
  made, position = run_directory.start_after(training.values.workdir, training.position.epoch), training.position
  checkpoint.save(made, position.epoch, {}, best, position._asdict())
  sealed.write_json_atomic(made / run_directory.RESULT, _result(training.ready, position))


def _traced(values, number):
  """Writes a trace of the third epoch, if that is asked for: those before it compile."""
  if not values.profile or number != 3 or not processes.is_first():
    return contextlib.nullcontext()
  return jax.profiler.trace(os.path.join(values.workdir, "profile"), create_perfetto_trace=True)


def _lists_are_due(training) -> bool:
  """Lists that live for several epochs are not saved: a checkpoint waits until they are ranked again anyway."""
  return training.position.epoch % math.lcm(*(kd.lists.every for _, kd in training.ready.run.kds)) == 0


def _done(training):
  values, position = training.values, training.position
  return position.epoch >= values.epochs or (values.patience > 0 and position.stale >= values.patience)


def _epoch(trainings: list[Training]) -> tuple[list[Training], list[dict[str, Any]], dict[str, InputError]]:
  """(the runs after one more epoch and its validation, their lines of metrics.jsonl, {workdir: error} of others)."""
  seconds, parts = {"resample": 0.0, "train": 0.0}, []
  for part in range(trainings[0].ready.run.parts):
    start = time.perf_counter()
    drawn = parallel.each(lambda x: x.draw(x.state, x.position.epoch + 1, part), trainings)  # noqa: B023
    sampled = time.perf_counter()
    made = parallel.epochs([(x.ready.run, of_run) for x, of_run in zip(trainings, drawn, strict=True)],
                           trainings[0].values.parallel, trainings[0].values.batch_size)
    seconds["resample"] += (sampled - start) / len(made)  # a share
    seconds["train"] += (time.perf_counter() - sampled) / len(made)
    trainings = [x._replace(state=state) for x, (state, _) in zip(trainings, made, strict=True)]
    parts.append([losses for _, losses in made])
  after = parallel.each(lambda x: _or_error(*x, seconds), list(zip(trainings, zip(*parts, strict=True), strict=True)))
  failed = {x.values.workdir: error for x, error in zip(trainings, after, strict=True) if isinstance(error, InputError)}
  going = [x for x in after if not isinstance(x, InputError)]
  return [x for x, _ in going], [line for _, line in going], failed


def _or_error(training, *arguments):
  try:
    return _after_epoch(training, *arguments)
  except InputError as error:
    return InputError(f"{training.values.workdir}: epoch {training.position.epoch + 1}: {error}; a lower "
                      "--learning_rate or another weight of --kd may help. Its last checkpoint is kept")


def _after_epoch(training, losses, seconds):
  """(the run, its line of metrics.jsonl), which is appended; `losses` of every part of the epoch.

  Raises InputError if a loss or a score is not finite.
  """
  values, ready, position = training.values, training.ready, training.position
  position = position._replace(epoch=position.epoch + 1, seconds=position.seconds + sum(seconds.values()))
  losses = {name: float(np.mean([part[name] for part in losses])) for name in losses[0]}
  if not np.isfinite(list(losses.values())).all():
    raise InputError(f"a loss is not finite ({losses})")
  line, best = {"epoch": position.epoch, "loss": losses, "seconds": seconds}, training.best
  if position.epoch % values.eval_every == 0 or position.epoch == values.epochs:
    line |= {split: _validate(ready, layout, training.state.params) for split, layout in training.layouts.items()}
    position, improved = model_selection.compare(ready.monitor, position, line["validation"])
    best = jax.tree.map(jnp.copy, training.state.params["networks"]) if improved else best
  processes.by_first(run_directory.append_metrics, values.workdir, line)
  return training._replace(best=best, position=position), line


def _result(ready, position) -> dict[str, Any]:
  return {"epochs": position.epoch, "best_epoch": position.best_epoch, "monitor": ready.monitor,
          "validation": position.best, "seconds": position.seconds}


def _finish(values, ready, position) -> None:
  processes.by_first(sealed.write_json_atomic, os.path.join(values.workdir, run_directory.RESULT), _result(ready, position))
