"""The training loop of one or several runs, from options to fitted models. The same for teachers and students."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import registry
from kd_jax.base import STUDENT, InputError, Progress
from kd_jax.callbacks.progress import progress
from kd_jax.data import store
from kd_jax.devices import compiled, parallel, processes, signals, table_sharding
from kd_jax.evaluation import model_selection, protocols, streaming
from kd_jax.evaluation.model_selection import Position
from kd_jax.runs import agreement, epoch, privacy, setup
from kd_jax.runs.options import FIELDS, FitOptions, fit_options, text_of, texts
from kd_jax.storage import checkpoint, run_directory, sealed
from kd_jax.teachers import loading, warm_start
from kd_jax.teachers.fitted import Fitted
from kd_jax.training import graph, kd_targets, windows

_SAVE_SECONDS = 30  # between checkpoints; a killed run loses at most this much work


class DivergedError(InputError):
  """A loss or a score of a run is not finite."""


def fit(data: Any = None, *, options: FitOptions | None = None, **arguments: Any) -> Fitted:
  """Trains a teacher, a plain student or a distilled student.

  `arguments` are fields of `FitOptions`; they replace the values in `options`. `data` is a data set or its name. With a
  `workdir`, the run is stored there: a second call resumes an unfinished run and loads a finished one. Without a
  `workdir`, nothing is written.

  Raises InputError, which names the argument, if data, model, methods and teachers do not fit together; nothing is
  written then. Also raises it if the run diverges.
  """
  arguments = arguments if data is None else {"data": data, **arguments}
  return _or_raise(fit_many([fit_options(options, **arguments)])[0])


def fit_many(several: Sequence[FitOptions]) -> list[Fitted | InputError]:
  """`fit` for several runs at once, e.g. seeds. Results are the same as for separate runs, but training is faster.

  The result of a diverged run is its error; the other runs continue. Raises InputError before anything is written.
  """
  made, _ = _fit_all(several)
  return [made[number] if number in made else _reopened(options) for number, options in enumerate(several)]


def train(options: FitOptions) -> dict[str, Any]:
  """`fit` for its run directory: returns the content of result.json. Raises InputError."""
  return _or_raise(train_many([options])[0])


def train_many(several: Sequence[FitOptions]) -> list[dict[str, Any] | InputError]:
  """`fit_many` for the run directories: does not load finished runs. Returns the contents of result.json."""
  made, found = _fit_all(several)
  results: list[Any] = [made.get(number, result) for number, result in enumerate(found)]
  return [x.result if isinstance(x, Fitted) else x for x in results]


def _or_raise(result):
  if isinstance(result, InputError):
    raise result
  return result


class Training(NamedTuple):
  """A run in training: its fixed parts, and what every epoch changes."""

  ready: setup.Setup
  draw: Callable  # see `epoch.drawer`
  layouts: dict[str, Any]  # {split: protocols.layout}
  info: dict[str, Any]
  state: graph.TrainState
  best: dict  # parameters of the best epoch
  position: Position
  history: list[dict[str, Any]]  # lines of metrics.jsonl

  @property
  def options(self) -> FitOptions:
    return self.ready.options


def _fit_all(several: Sequence[FitOptions]) -> tuple[dict[int, Fitted | InputError], list[dict[str, Any] | None]]:
  """({index: fitted model or error} of runs trained now, [result.json of already finished runs, else None])."""
  for options in several:
    registry.allow_code(options.allow_code)
    _check_flags(options)
  found = [setup.finished(options) for options in several]
  waiting = [number for number, result in enumerate(found) if result is None]
  processes.agree(functools.partial(agreement.of_options, several, found))
  made: dict[int, Fitted | InputError] = {}
  if waiting:
    parallel.check_together([several[number].parallel for number in waiting])
    _cache_compilations([several[number] for number in waiting])
    readies = setup.share([setup.prepare(several[number]) for number in waiting])
    if len(readies) > 1 and any(ready.run.parts > 1 for ready in readies):
      raise InputError("`data_memory`: the interactions are streamed, by one run at a time: no `seeds`, no `sweep`")
    trained = [None if _in_closed_form(ready) else epoch.drawer(ready) for ready in readies]
    infos = [_info(ready) for ready in readies]
    # Nothing is written before all processes have checked.
    processes.agree(functools.partial(agreement.of_content, [ready.options for ready in readies], infos))
    with contextlib.ExitStack() as locks:
      infos = [_start(ready, info, locks) for ready, info in zip(readies, infos, strict=True)]
      processes.meet()  # all directories exist now
      going = {}
      for number, ready, draw, info in zip(waiting, readies, trained, infos, strict=True):
        if draw is None:
          made[number] = _fit(ready, info)
        else:
          going[number] = _begin(ready, draw, info)
      made |= _train(going)
    processes.meet()  # all files are written now
  return made, found


def _check_flags(options: FitOptions) -> None:
  if options.workdir is not None:
    run_directory.check_flags(options.workdir, texts(options), _defaults(), options.epochs,
                              not setup.has_horizon(options))


@functools.cache
def _defaults() -> dict[str, str]:
  """Defaults as texts: the values of options that older runs did not have yet."""
  return {name: text_of(field.default) for name, field in FIELDS.items() if field.default is not None}


def _cache_compilations(several: list[FitOptions]) -> None:
  """Only for runs with a `workdir`: others write nothing."""
  for options in several:
    if options.workdir is not None:
      compiled.cache_in(store.cache_folder(options.cache_dir) / "compiled")


def _reopened(options: FitOptions) -> Fitted:
  """Loads a finished run."""
  workdir = pathlib.Path(options.workdir or "")  # never empty: a finished run has a directory
  module = None if isinstance(options.model, str) else options.model
  return loading.open_run(workdir, setup.load(options), module)


def _in_closed_form(ready) -> bool:
  return hasattr(dict(ready.run.networks)[STUDENT], "fit")


def _start(ready, info, locks) -> dict[str, Any]:
  """The content of run.json. Creates and locks the directory, if the run has one."""
  options = ready.options
  if options.workdir is None or not processes.is_first():
    return info
  os.makedirs(options.workdir, exist_ok=True)
  locks.enter_context(sealed.lock(options.workdir))
  # Again, since another process may have started or finished the run before this one had the lock.
  _check_flags(options)
  if run_directory.finished(options.workdir, options.epochs):
    raise InputError(f"`workdir={options.workdir}`: another process has finished this run; start the command again")
  return run_directory.start(options.workdir, texts(options), info)


def _info(ready) -> dict[str, Any]:
  options, dataset = ready.options, ready.dataset
  sizes = [math.prod(x.shape) for x in jax.tree.leaves(ready.shapes.params["networks"][STUDENT])]
  private = privacy.statement(ready)
  return ({} if private is None else {"privacy": private}) | {
      "model": text_of(options.model), "peer": options.peer and text_of(options.peer), "data": dataset.name,
      "data_memory": options.data_memory, "synthetic": dataset.synthetic,
      "hashes": dataset.hashes, "num_users": dataset.num_users, "num_items": dataset.num_items,
      "parameters": sum(sizes), "bytes": 4 * sum(sizes), "teacher": [t.provenance for t in ready.teachers],
      "features": ready.features, "left_out": ready.left_out,
      "init_from": [ready.warm_start.provenance] if ready.warm_start else [],
      "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}", **run_directory.versions()}


def _fit(ready, info) -> Fitted:
  """Fits a closed-form baseline, without epochs."""
  start = time.perf_counter()
  params = {STUDENT: dict(ready.run.networks)[STUDENT].fit(ready.dataset)}
  monitor = ready.monitor
  layout = protocols.layout(ready.dataset, "validation", sampled=monitor.sampled, only_sampled=monitor.only_sampled)
  position = Position(seconds=time.perf_counter() - start)
  position, _ = model_selection.compare(monitor, position, _validate(ready, layout, {"networks": params}))
  if ready.options.workdir is not None:
    processes.by_first(_checkpoint, ready.options, info, position, {}, params)
  return _finish(ready, info, position, [], params, {})


def _checkpoint(options, info, position, state, best, directory=None) -> None:
  """Saves a checkpoint that carries the run's identity and the hash of its lines of metrics.jsonl."""
  directory = directory or options.workdir
  metadata = {"position": position._asdict(), "metrics": run_directory.hash_metrics(directory),
              "run": run_directory.identity(texts(options), _defaults(), info)}
  checkpoint.save(directory, position.epoch, state, best, metadata)


def _validate(ready, layout, params) -> dict[str, float]:
  module, metrics = dict(ready.run.networks)[STUDENT], ready.monitor.metrics
  if ready.dataset.stream:
    return protocols.means(streaming.measure(module, params["networks"][STUDENT], layout, metrics)[1])
  variables = graph.variables(ready.given, params, STUDENT)
  return processes.of_first(protocols.means(protocols.measure(module, variables, layout, metrics)[1]))


def _begin(ready, draw, info) -> Training:
  """The run in its initial state, or restored from its last checkpoint."""
  options, memory = ready.options, kd_targets.initial_memory(ready.run, ready.dataset)
  if options.workdir is not None and checkpoint.latest(options.workdir) is not None:
    _, state, best, saved = checkpoint.restore(options.workdir, *_whole(ready, memory))
    if saved["run"] != run_directory.identity(texts(options), _defaults(), info):
      raise InputError(f"{options.workdir}: its checkpoint belongs to another run; choose another directory")
    shapes, position = jax.eval_shape(lambda: epoch.initial_state(ready)), Position.restored(saved["position"])
    state = table_sharding.resize(state, shapes._replace(memory=memory))
    best = parallel.place(table_sharding.resize(best, shapes.params["networks"]), ready.run)
  else:
    state = epoch.initial_state(ready)
    if ready.warm_start is not None:
      own = warm_start.start(state.params["networks"][STUDENT], ready.warm_start.found)
      state = state._replace(params=state.params | {"networks": state.params["networks"] | {STUDENT: own}})
    best, position, saved = jax.tree.map(jnp.copy, state.params["networks"]), Position(), {}
  history = []
  if options.workdir is not None:
    processes.by_first(_repeat_from, options.workdir, position.epoch, saved)
    log = pathlib.Path(options.workdir) / run_directory.METRICS
    history = run_directory.read_metrics(options.workdir) if position.epoch and log.exists() else []
  monitor = ready.monitor  # sampled ranking takes a third of the time of full ranking
  layout = functools.partial(streaming.Protocol if ready.dataset.stream else protocols.layout, ready.dataset)
  layouts = {"validation": layout("validation", sampled=monitor.sampled, only_sampled=monitor.only_sampled)}
  if options.log_test:
    layouts["test"] = layout("test", options.mask_validation, monitor.sampled, only_sampled=monitor.only_sampled)
  return Training(ready, draw, layouts, info, parallel.place(state, ready.run), best, position, history)


def _repeat_from(directory, epoch, saved) -> None:
  """Removes the lines of metrics.jsonl after the checkpoint."""
  if not epoch and run_directory.epochs_done(directory):
    print(f"{directory}: was stopped before its first checkpoint; starts again", file=sys.stderr)
  run_directory.truncate_metrics(directory, epoch, saved.get("metrics", ""))


def _whole(ready, memory):
  """Shapes of a checkpoint, (state, best parameters), with whole tables even if they are split."""
  return ready.shapes._replace(memory=memory), ready.shapes.params["networks"]


def _train(trainings: dict[int, Training]) -> dict[int, Fitted | InputError]:
  """Trains all runs together, epoch by epoch, until each has finished; writes result.json when a run finishes.

  A diverged run keeps its last checkpoint, and the others continue.
  """
  made: dict[int, Fitted | InputError] = {key: _finish_training(x) for key, x in trainings.items() if _done(x)}
  trainings = {key: x for key, x in trainings.items() if key not in made}
  if not trainings:
    return made
  options, numbers, saved_at = next(iter(trainings.values())).options, itertools.count(1), time.perf_counter()
  unsaved: set[int] = set()
  with _watched(trainings) as tell, signals.on_signal() as stop:
    while trainings:
      with _traced(options, next(numbers)):
        trainings, lines, errors = _epoch(trainings)
      made |= errors
      unsaved &= trainings.keys()
      tell(trainings, lines)
      # Ask only once per epoch: a signal may arrive while runs are being saved.
      asked, long = processes.any_of(bool(stop), time.perf_counter() - saved_at > _SAVE_SECONDS)
      if not unsaved and (asked or long):
        unsaved, saved_at = set(trainings), time.perf_counter()
      for key, x in trainings.items():
        _save(x, key in unsaved and _lists_are_due(x))
      made |= {key: _finish_training(x) for key, x in trainings.items() if _done(x)}
      unsaved = {key for key in unsaved if not (_done(trainings[key]) or _lists_are_due(trainings[key]))}
      trainings = {key: x for key, x in trainings.items() if key not in made}
      if asked and trainings and not unsaved:
        raise signals.Agreed(*stop)
  return made


@contextlib.contextmanager
def _watched(trainings: dict[int, Training]) -> Iterator[Callable[[dict[int, Training], dict[int, dict]], None]]:
  """Calls `start` and `end` of the runs' callbacks; yields tell(trainings, lines), for a call after every epoch.

  The first run that is still in training also prints its progress. Only the first process calls callbacks.
  """
  current, shown = dict(trainings), progress()
  first = current[min(current)]
  _call(first, "start", {}, (shown,))
  with contextlib.ExitStack() as ends:
    ends.callback(_call, first, "end", {}, (shown,))
    for key, x in trainings.items():
      ends.callback(lambda key: key in current and _call(current[key], "end", {}), key)  # also after an exception
      _call(x, "start", {})

    def tell(going, lines):
      for key, line in lines.items():
        current[key] = going[key]
        _call(going[key], "validation", line)
        _call(going[key], "epoch", line)
      if lines:
        _call(going[min(lines)], "epoch", lines[min(lines)], (shown,))
      for key in [key for key in current if key not in going or _done(going[key])]:
        _call(current.pop(key), "end", {})

    yield tell


def _call(training, event, line, callbacks=None):
  """Calls an event of callbacks, by default those of the run, in the first process. Not every epoch is validated."""
  if not processes.is_first() or (event == "validation" and "validation" not in line):
    return
  for callback in training.ready.callbacks if callbacks is None else callbacks:
    if (function := getattr(callback, event)) is not None:
      function(_progress(training, line, event == "end"))


def _save(training, due):
  """Writes a checkpoint if it is due or the run is done, and the directory of `keep_every` at its epochs."""
  options, position = training.options, training.position
  if options.workdir is None:
    return
  if options.keep_every and position.epoch % options.keep_every == 0:
    best = table_sharding.resize(training.best, training.ready.shapes.params["networks"])
    processes.by_first(_keep, training, best)
  if _done(training) or due:
    whole = table_sharding.resize((training.state, training.best), _whole(training.ready, training.state.memory))
    processes.by_first(_checkpoint, options, training.info, position, *whole)


def _keep(training, best):
  """Writes WORKDIR/after/EPOCH, the run directory as if the run had ended at this epoch."""
  position = training.position
  made = run_directory.start_after(training.options.workdir, position.epoch)
  _checkpoint(training.options, training.info, position, {}, best, made)
  sealed.write_json_atomic(made / run_directory.RESULT, _result(training.ready, position))
  run_directory.seal(made)


def _progress(x, line, ended) -> Progress:
  position, workdir = x.position, x.options.workdir
  return Progress(None if workdir is None else os.fspath(workdir), x.info, x.options.epochs, position.epoch,
                  x.ready.monitor.names[0], position.best_epoch, position.best_value, position.seconds, line,
                  x.best if ended else x.state.params["networks"])


def _traced(options, number):
  """Traces the third epoch if `profile` is set: the first two also compile."""
  if not options.profile or number != 3 or not processes.is_first():
    return contextlib.nullcontext()
  return jax.profiler.trace(os.path.join(options.workdir, "profile"), create_perfetto_trace=True)


def _lists_are_due(training) -> bool:
  """Whether all lists are ranked again next. Ranked lists are not saved, so checkpoints are written only then."""
  return training.position.epoch % math.lcm(*(kd.lists.every for _, kd in training.ready.run.kds)) == 0


def _done(training):
  options, position = training.options, training.position
  return position.epoch >= options.epochs or (options.patience > 0 and position.stale >= options.patience)


def _epoch(trainings: dict[int, Training]) -> tuple[dict[int, Training], dict[int, dict], dict[int, InputError]]:
  """Trains and validates one epoch: (continuing runs, their lines of metrics.jsonl, errors of diverged runs)."""
  several = list(trainings.values())
  made = epoch.advance([(x.ready, x.draw, x.state) for x in several], [x.position.epoch for x in several])
  after = parallel.each(lambda x: _or_error(*x), list(zip(several, made, strict=True)))
  errors = {key: x for key, x in zip(trainings, after, strict=True) if isinstance(x, InputError)}
  going = {key: x for key, x in zip(trainings, after, strict=True) if not isinstance(x, InputError)}
  return {key: x for key, (x, _) in going.items()}, {key: line for key, (_, line) in going.items()}, errors


def _or_error(training, made):
  try:
    return _after_epoch(training, made)
  except InputError as error:
    options = training.options
    where = f"{options.workdir}: " if options.workdir is not None else ""
    kept = ". Its last checkpoint is kept" if where else ""
    return DivergedError(f"{where}epoch {training.position.epoch + 1}: {error}; a lower `learning_rate` or another "
                         f"weight of `kd` may help{kept}")


def _after_epoch(training, made):
  """(the run, its new line of metrics.jsonl). Raises InputError if a loss or a score is not finite."""
  options, ready, position = training.options, training.ready, training.position
  position = position._replace(epoch=position.epoch + 1, seconds=position.seconds + sum(made.seconds.values()))
  means = {name: float(np.mean([part[name] for part in made.losses])) for name in made.losses[0]}
  losses = {name: value for name, value in means.items() if "/" not in name}
  if not np.isfinite(list(losses.values())).all():
    raise InputError(f"a loss is not finite ({losses})")
  line, best = {"epoch": position.epoch, "loss": losses, "seconds": made.seconds}, training.best
  if scalars := {name: value for name, value in means.items() if "/" in name}:
    line["scalars"] = scalars
  if position.epoch % options.eval_every == 0 or position.epoch == options.epochs:
    line |= {split: _validate(ready, layout, made.state.params) for split, layout in training.layouts.items()}
    position, improved = model_selection.compare(ready.monitor, position, line["validation"])
    best = jax.tree.map(jnp.copy, made.state.params["networks"]) if improved else best
  if options.workdir is not None:
    processes.by_first(run_directory.append_metrics, options.workdir, line)
  return training._replace(state=made.state, best=best, position=position, history=[*training.history, line]), line


def _result(ready, position) -> dict[str, Any]:
  return {"epochs": position.epoch, "best_epoch": position.best_epoch, "monitor": str(ready.monitor),
          "validation": position.best, "seconds": position.seconds}


def _finish_training(x) -> Fitted:
  best = table_sharding.resize(x.best, x.ready.shapes.params["networks"])
  return _finish(x.ready, x.info, x.position, x.history, best, x.state.params["adapters"])


def _finish(ready, info, position, history, best, adapters) -> Fitted:
  """The fitted model. Writes result.json and the seal, the last files of a run."""
  result, workdir = _result(ready, position), ready.options.workdir
  if workdir is not None:
    processes.by_first(sealed.write_json_atomic, os.path.join(workdir, run_directory.RESULT), result)
    processes.by_first(run_directory.seal, workdir)
  module = dict(ready.run.networks)[STUDENT]
  if isinstance(module, table_sharding.SplitNetwork):
    module = module.module
  elif isinstance(module, windows.WindowedNetwork):
    module = module.full
  constants = {} if ready.dataset.stream is not None else ready.given.constants.get(STUDENT, {})
  params, adapters, constants = jax.tree.map(np.asarray, (best[STUDENT], adapters, constants))
  return Fitted(module, params, adapters, constants, ready.described, history, result, info,
                None if workdir is None else os.fspath(workdir))
