"""A hyperparameter search on validation: trials are runs like any other, and Optuna draws and records them.

The study is in WORKDIR/study.db, a database of Optuna (SQLite), and each trial is a run in WORKDIR/trial_NNNN. The
values of a trial are drawn from the seed, its number and the trials before it, and stored before it starts: a search
that was killed goes on with the same trials. Several processes can search in one directory. No trial reads the test
split.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import os
import pathlib
import sqlite3
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from kd_jax.base import Callback, InputError, Progress
from kd_jax.evaluation import metric_names
from kd_jax.runs import loop, setup
from kd_jax.runs.options import FitOptions, fit_options, texts
from kd_jax.storage import run_directory, sealed
from kd_jax.tuning import space as spaces
from kd_jax.tuning.options import SearchOptions

RECORD = "search.json"
_STUDY, _LOCK, _NAME = "study.db", ".search_lock", "search"
_WAIT = 60  # seconds for the database of another process
_SHOWN = 5  # trials
_LEAST = 4  # complete trials, of which importances can be told


class Trial(NamedTuple):
  """One trial of a search."""

  number: int
  state: str  # "complete", "pruned", "diverged" or "running"
  values: dict[str, str]  # of the space, as texts
  value: float | None  # of the monitored validation metric, at its best epoch
  workdir: str


class Found(NamedTuple):
  """The result of a search."""

  metric: str
  best: Trial
  options: FitOptions  # of the best trial; its `workdir` is the run
  trials: list[Trial]
  importances: dict[str, float]  # {name: share}; {} of too few trials


class _PrunedError(Exception):
  """The pruner ends the trial."""


def search(data: Any = None, *, workdir: str | os.PathLike, how: SearchOptions | None = None,
           options: FitOptions | None = None, **arguments: Any) -> Found:
  """Searches the best values on validation; `arguments` are those of `fit`, and `how` says what is searched.

  The first trial has the values of the arguments themselves, if they are in the space. A call with the same directory
  goes on where the last one ended; one with more trials extends it. Raises InputError: a name that is not searched, a
  distribution beyond its bounds, a directory of another search, no trial that ended well.
  """
  arguments = arguments if data is None else {"data": data, **arguments}
  given, how = fit_options(options, **arguments, workdir=os.fspath(workdir)), how or SearchOptions()
  run(given, how)
  return found(given, how)


def run(options: FitOptions, how: SearchOptions) -> None:
  """Starts or continues trials until there are `how.trials`, or others are training the last ones."""
  space, began = check(options, how), time.monotonic()
  dataset = setup.load(options)
  with _quiet():
    study = _opened(options, how, dataset)
    while not how.seconds or time.monotonic() - began < how.seconds:
      with contextlib.ExitStack() as held:
        taken = _taken(study, options, how, space, held)
        if taken is None:
          return
        _train(study, *taken)


def check(options: FitOptions, how: SearchOptions) -> dict[str, spaces.Distribution]:
  """The space of a search. Raises InputError, before anything is written."""
  if not options.workdir:
    raise InputError("`workdir` is needed: the directory of the search")
  if options.log_test:
    raise InputError("`log_test`: a search reads no test data; evaluate its best run afterwards")
  if _metric(options) == metric_names.LAST:
    raise InputError("`monitor=epoch`: a search needs a validation metric")
  try:
    import optuna  # noqa: F401
  except ModuleNotFoundError:
    raise InputError('a search needs Optuna: pip install "kd_jax[search]"') from None
  return spaces.of(options, how.space)


def found(options: FitOptions, how: SearchOptions) -> Found:
  """What a search has found so far; also writes it to WORKDIR/search.json. Raises InputError if no trial ended well."""
  space = spaces.of(options, how.space)
  with _quiet():
    study = _opened(options, how)
    trials = [_trial(x, options, space) for x in study.get_trials(deepcopy=False) if "fixed_params" in x.system_attrs]
    importances = _importances(study)
  metric = study.user_attrs["metric"]
  good = complete(metric, trials)
  if not good:
    raise InputError(f"{options.workdir}: no trial has ended well: {len(trials)} were started")
  best = good[0]
  sealed.write_json_atomic(pathlib.Path(options.workdir) / RECORD, {
      "metric": metric, **_identity(options, how), "space": {name: _said(x) for name, x in space.items()},
      "best": best.number, "trials": [x._asdict() for x in trials], "importances": importances})
  return Found(metric, best, dataclasses.replace(spaces.changed(options, best.values), workdir=best.workdir), trials,
               importances)


def complete(metric: str, trials: Sequence[Trial]) -> list[Trial]:
  """The trials that ended well, the best first."""
  return sorted((x for x in trials if x.state == "complete"), key=lambda x: (-goodness(metric, x.value), x.number))


def goodness(metric: str, value: float) -> float:
  """A value of the monitored metric as a number of which the higher one is better; Optuna sees these alone."""
  return metric_names.goodness(metric_names.of_column(metric), value)


def _said(distribution) -> str:
  if distribution.choices:
    return "|".join(distribution.choices)
  return f"{distribution.kind}({', '.join(distribution.ends)})"


def _metric(options) -> str:
  return metric_names.split(options.monitor)[0] if options.monitor else ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Without Optuna's notes on single trials and its warnings of experimental parts."""
  import optuna

  before = optuna.logging.get_verbosity()
  optuna.logging.set_verbosity(optuna.logging.ERROR)
  try:
    with warnings.catch_warnings():
      for kind in (optuna.exceptions.ExperimentalWarning, UserWarning):  # of importances of trials that are all alike
        warnings.simplefilter("ignore", kind)
      yield
  finally:
    optuna.logging.set_verbosity(before)


def _identity(options, how) -> dict[str, Any]:
  """What must be the same in all calls of a search: all but the number of trials and the time."""
  return {"options": texts(options), "space": how.space, "sampler": how.sampler, "sampler_seed": how.sampler_seed,
          "pruner": how.pruner}


def _opened(options, how, dataset=None):
  """The study of the directory; it is made at the first call, with the data. Raises InputError for another search's."""
  import optuna
  from sqlalchemy import exc, pool

  folder = pathlib.Path(options.workdir)
  with sealed.reporting(folder):
    folder.mkdir(parents=True, exist_ok=True)
  try:
    with _locked(folder):
      # Not by a URL: Optuna and SQLAlchemy read some characters of a path as their own.
      connect = functools.partial(sqlite3.connect, folder / _STUDY, timeout=_WAIT)
      storage = optuna.storages.RDBStorage("sqlite://", {"creator": connect, "poolclass": pool.NullPool})
      if dataset is not None and not optuna.get_all_study_names(storage):
        metric = setup.monitor(options, dataset).names[0]
        study = optuna.create_study(storage=storage, study_name=_NAME, direction="maximize")
        study.set_user_attr("metric", metric)
        study.set_user_attr("data", dataset.hashes)
      study = optuna.load_study(storage=storage, study_name=_NAME, pruner=_pruner(how))
      mine, stored = _identity(options, how), study.user_attrs
      if "search" not in stored:
        study.set_user_attr("search", mine)
  except (exc.SQLAlchemyError, RuntimeError, KeyError) as error:
    raise InputError(f"{folder / _STUDY}: {' '.join(str(error).split())[:200]}") from None
  for name, value in mine.items() if "search" in stored else ():
    if stored["search"].get(name) != value:
      raise InputError(f"{folder}: is a search with another `{_difference(name, stored['search'].get(name), value)}`; "
                       "choose another directory")
  if dataset is not None and stored.get("data", dataset.hashes) != dataset.hashes:
    raise InputError(f"{folder}: is a search on other data: {dataset.name} has changed since; choose another directory")
  return study


def _difference(name, stored, value) -> str:
  if name != "options":
    return name
  return next(x for x in sorted(stored.keys() | value.keys()) if stored.get(x) != value.get(x))


def _pruner(how):
  from optuna import pruners

  return {"none": pruners.NopPruner, "median": pruners.MedianPruner, "hyperband": pruners.HyperbandPruner}[how.pruner]()


def _sampler(how, number):
  """The sampler of one trial: from the seed and its number, so that it does not matter which process draws."""
  from optuna import samplers

  seed = (how.sampler_seed * 1_000_003 + number) % 2**32
  if how.sampler == "random":
    return samplers.RandomSampler(seed=seed)
  return samplers.TPESampler(seed=seed, constant_liar=True)


def _distributions(space) -> dict[str, Any]:
  from optuna import distributions

  def one(x):
    if x.kind == "choice":
      return distributions.CategoricalDistribution(x.choices)
    if "integer" in x.kind:
      return distributions.IntDistribution(x.low, x.high, log=x.kind == "log_integer")
    return distributions.FloatDistribution(x.low, x.high, log=x.kind == "log")

  return {name: one(x) for name, x in space.items()}


@contextlib.contextmanager
def _locked(folder) -> Iterator[None]:
  """One process at a time draws trials; others wait."""
  with open(folder / _LOCK, "a") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _taken(study, options, how, space, held):
  """(trial of Optuna, options of its run) of the next trial, locked until `held` ends; None if there is none.

  A trial whose process has ended is taken first: its lock is free.
  """
  import optuna

  folder, distributions = pathlib.Path(options.workdir), _distributions(space)
  with _locked(folder):
    trials = study.get_trials(deepcopy=False)
    for x in trials:
      if x.state == optuna.trial.TrialState.RUNNING and _lock(folder, x.number, held):
        return _again(study, x, distributions), _options(options, space, x)
    if not any(x.state == optuna.trial.TrialState.WAITING for x in trials):
      if len(trials) >= how.trials:
        return None
      study.enqueue_trial(_drawn(study, trials, options, how, space, distributions))
    trial = study.ask(distributions)
    _lock(folder, trial.number, held)
    return trial, _options(options, space, study.get_trials(deepcopy=False)[trial.number])


def _drawn(study, trials, options, how, space, distributions) -> dict[str, Any]:
  """The values of a new trial, drawn without a trace in the database, which would show a kill between two values."""
  import optuna

  first = _present(options, space) if not trials else None
  if first is not None:
    return first
  memory = optuna.create_study(directions=study.directions, sampler=_sampler(how, len(trials)))
  memory.add_trials([x for x in trials if x.params.keys() == space.keys()])
  return memory.ask(distributions).params


def _present(options, space) -> dict[str, Any] | None:
  """The values that the options have themselves; None if one is not in the space."""
  values = {name: one.drawn(spaces.present(options, name)) for name, one in space.items()}
  return None if None in values.values() else values


def _again(study, frozen, distributions):
  """The trial of an ended process; values that it had not stored yet are those that were drawn for it."""
  import optuna

  trial = optuna.Trial(study, frozen._trial_id)
  for name, distribution in distributions.items():
    trial._suggest(name, distribution)
  return trial


def _lock(folder, number, held) -> bool:
  """Locks a trial until `held` ends; False if a process that lives has it."""
  file = held.enter_context(open(folder / f".trial_{number:04d}_lock", "a"))
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  return True


def _values(space, frozen) -> dict[str, str]:
  return {name: space[name].text(value) for name, value in frozen.system_attrs["fixed_params"].items()}


def _workdir(options, number) -> str:
  return str(pathlib.Path(options.workdir) / f"trial_{number:04d}")


def _options(options, space, frozen) -> FitOptions:
  return dataclasses.replace(spaces.changed(options, _values(space, frozen)), workdir=_workdir(options, frozen.number))


def _train(study, trial, options) -> None:
  """Trains a trial, or finishes it, and tells its value."""
  import optuna

  if not isinstance(study.pruner, optuna.pruners.NopPruner):
    options = dataclasses.replace(options, callbacks=[*setup.callbacks(options), _pruning(study, trial)])
  try:
    result = loop.train(options)
  except _PrunedError:
    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
  except loop.DivergedError:
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
  else:
    metric = study.user_attrs["metric"]
    trial.set_user_attr("value", result["validation"][metric])
    study.tell(trial, goodness(metric, result["validation"][metric]))


def _pruning(study, trial) -> Callback:
  """Reports every validation to the pruner, and ends the trial when it says so."""
  metric, told = study.user_attrs["metric"], set(study.get_trials(deepcopy=False)[trial.number].intermediate_values)

  def validation(progress: Progress):
    if progress.epoch not in told:
      trial.report(goodness(metric, progress.line["validation"][metric]), progress.epoch)
    if trial.should_prune():
      raise _PrunedError

  return Callback(validation=validation)


_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "diverged", "RUNNING": "running", "WAITING": "running"}


def _trial(frozen, options, space) -> Trial:
  return Trial(frozen.number, _STATES[frozen.state.name], _values(space, frozen),
               frozen.user_attrs["value"] if frozen.state.name == "COMPLETE" else None,
               _workdir(options, frozen.number))


def _importances(study) -> dict[str, float]:
  """{name: share of the importance}, by PED-ANOVA (Watanabe, Bansal, Hutter, IJCAI 2023); {} of too few trials.

  It says which values decide whether a trial is among the better ones.
  """
  import optuna

  if len(study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])) < _LEAST:
    return {}
  return optuna.importance.get_param_importances(study, evaluator=optuna.importance.PedAnovaImportanceEvaluator())


def summary(found: Found) -> list[str]:
  """Lines for a person: the trials, best first, and the command that repeats the best one."""
  lines = [f"{found.metric} {x.value:.4f}  trial {x.number}  {_words(x)}"
           for x in complete(found.metric, found.trials)[:_SHOWN]]
  other = {state: sum(x.state == state for x in found.trials) for state in _STATES.values()}
  counted = ", ".join(f"{count} {state}" for state, count in other.items() if count)
  flags = f"{found.best.workdir}/{run_directory.FLAGS}"
  return [*lines, f"{len(found.trials)} trials: {counted}; all values: {pathlib.Path(flags).parents[1] / RECORD}",
          f"best: python scripts/train.py --flagfile={flags} --workdir=RUN"]


def _words(trial) -> str:
  return " ".join(f"{name}={value}" for name, value in trial.values.items())
