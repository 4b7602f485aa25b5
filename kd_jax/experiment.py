"""One run, from flags to a finished run directory: the same loop for teachers and students."""

from __future__ import annotations

import functools
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
  batches,
  checkpoint,
  data,
  evaluate,
  lookup,
  metrics,
  parallel,
  progress,
  resample,
  runs,
  tasks,
  teachers,
  train,
)
from kd_jax.base import Dataset, InputError
from kd_jax.data import store

_SAVE_SECONDS = 30  # between checkpoints; a kill loses no more than this


class Setup(NamedTuple):
  """A run made ready: what is static, what is fixed, and the data."""

  run: train.Run
  given: train.Given
  dataset: Dataset
  teachers: list[teachers.Teacher]


class Position(NamedTuple):
  """Where a run stands, beside its state. Plain numbers: it is saved as JSON."""

  epoch: int = 0  # epochs done
  best_epoch: int = 0
  best_value: float = -math.inf
  best: dict[str, float] | None = None  # validation metrics of the best epoch
  stale: int = 0  # validations without improvement
  seconds: float = 0.0


def cache_compilations(cache_dir: str | None) -> None:
  """Keeps compiled programs on disk, so that a second run starts at once."""
  jax.config.update("jax_compilation_cache_dir", str(store.cache_folder(cache_dir) / "compiled"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@functools.cache
def _kd(call: lookup.Call):
  return lookup.build("losses", call)  # once, so that equal runs are equal and compile once


@functools.cache
def _weight(weight: float | lookup.Call):
  return weight if isinstance(weight, float) else lookup.build_schedule(weight)


_optimizer = functools.cache(train.make_optimizer)


def setup(values: flags.FlagValues, splits=("train", "validation")) -> Setup:
  """Loads data and teachers and builds the run. Raises InputError before anything is compiled."""
  metrics_cutoffs(values)
  kds = tuple((_weight(weight), _kd(call)) for weight, call in lookup.parse_sum("losses", values.kd, "kd"))
  if bool(kds) != bool(values.teacher or values.peer):
    raise InputError("--kd needs --teacher=RUN_OR_DIR (or --peer=MODEL)" if kds else
                     "--teacher or --peer is given, but no --kd to distil with")
  dataset = data.load(values.data, values.data_dir, values.cache_dir, splits=splits)
  networks, edges = _learners(values, dataset)
  params, loaded = {}, []
  for number, path in enumerate(values.teacher.split(",") if values.teacher else []):
    name = train.TEACHER + (str(number) if number else "")
    loaded.append(teachers.load(path, dataset))
    edges += [(learner, name) for learner in networks if learner in (train.STUDENT, train.PEER)]
    if loaded[-1].module is not None:
      networks[name] = loaded[-1].module
      params[name] = jax.tree.map(jnp.asarray, loaded[-1].params)
  learners = tuple(n for n in networks if n in (train.STUDENT, train.PEER))
  run = train.Run(tuple(networks.items()), learners, tuple(edges), kds, tasks.LOSSES[values.loss],
                  _optimizer(values.optimizer, values.learning_rate, values.weight_decay), values.reduction)
  _check_teachers(run, loaded)
  resample.check(run, dataset)
  constants = {name: jax.tree.map(jnp.asarray, m.constants(dataset)) for name, m in networks.items()
               if hasattr(m, "constants")}
  ready = Setup(run, train.Given(params, constants), dataset, loaded)
  jax.eval_shape(lambda: train.init(jax.random.key(0), run, ready.given, _batch(values)))  # methods fit the networks
  return ready


def _learners(values, dataset) -> tuple[dict, list]:
  """The student, and with --peer a second network that learns with it and from it."""
  networks = {train.STUDENT: teachers.build_module(values.model, dataset)}
  if values.kd and hasattr(networks[train.STUDENT], "fit"):
    raise InputError(f"--model={values.model}: has no parameters to distil into")
  if not values.peer:
    return networks, []
  networks[train.PEER] = teachers.build_module(values.peer, dataset)
  return networks, [(train.STUDENT, train.PEER), (train.PEER, train.STUDENT)]


def metrics_cutoffs(values) -> tuple[int, ...]:
  """The cut-offs of --monitor and the usual ones. Raises InputError for an unknown metric."""
  try:
    _, k = metrics.parse(values.monitor)
  except ValueError as error:
    raise InputError(f"--monitor: {error}") from None
  return tuple(sorted({*evaluate.CUTOFFS, k}))


def _check_teachers(run, loaded):
  """Stored lists must be of the right kind and long enough; what they do not hold needs a live teacher."""
  stored = [t for t in loaded if t.stored is not None]
  if not stored:
    return
  if len(loaded) > 1:
    raise InputError("--teacher: soft labels of one teacher can be used, or several run directories")
  for _, kd in run.kds:
    if resample.needs_live_teacher(kd):
      raise InputError("--kd: the method asks the teacher for what its stored lists do not hold; give the teacher's "
                       "run directory instead of soft labels")
    listed = stored[0].stored.items.shape[1]
    if kd.lists.teacher > listed:
      raise InputError(f"--teacher: its lists hold {listed} items, --kd asks for {kd.lists.teacher}; write them "
                       f"again with --top_k={kd.lists.teacher}")
    if kd.lists.exclude_seen != stored[0].exclude_seen:
      word = "without" if kd.lists.exclude_seen else "with"
      raise InputError(f"--teacher: --kd asks for lists {word} training items; write the soft labels again with "
                       f"--exclude_seen={kd.lists.exclude_seen}")


def run_training(values: flags.FlagValues) -> dict[str, Any]:
  """Trains, or goes on, or finds the run finished; returns the content of result.json."""
  cache_compilations(values.cache_dir)
  ready = setup(values)
  os.makedirs(values.workdir, exist_ok=True)
  with artifacts.lock(values.workdir):
    runs.start(values.workdir, values)
    runs.write_info(values.workdir, _info(values, ready))
    if hasattr(dict(ready.run.networks)[train.STUDENT], "fit"):
      return _fit(values, ready)
    return _train(values, ready)


def _info(values, ready) -> dict[str, Any]:
  shapes = jax.eval_shape(lambda: train.init(jax.random.key(0), ready.run, ready.given, _batch(values)))
  sizes = [math.prod(x.shape) for x in jax.tree.leaves(shapes.params["networks"][train.STUDENT])]
  return {
      "model": values.model, "peer": values.peer, "data": ready.dataset.name, "synthetic": ready.dataset.synthetic,
      "hashes": ready.dataset.hashes, "num_users": ready.dataset.num_users, "num_items": ready.dataset.num_items,
      "parameters": sum(sizes), "bytes": 4 * sum(sizes), "teacher": [t.provenance for t in ready.teachers],
      "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}"}


def _batch(values):
  """A batch of the shapes of training, to initialise with."""
  rows, items = jnp.zeros(values.batch_size, jnp.int32), jnp.zeros((values.batch_size, 1 + values.negatives), jnp.int32)
  weight = jnp.ones(values.batch_size)
  return {"users": rows, "items": items, "weight": weight, "items_weight": jnp.ones(items.shape), "kd_users": rows,
          "kd_users_weight": weight, "kd_items": rows, "kd_items_weight": weight}


def _fit(values, ready) -> dict[str, Any]:
  """A baseline in closed form: no epochs."""
  start = time.perf_counter()
  params = {train.STUDENT: dict(ready.run.networks)[train.STUDENT].fit(ready.dataset)}
  values_of = _validate(values, ready, evaluate.layout(ready.dataset, "validation"), {"networks": params})
  position = Position(0, 0, values_of[values.monitor], values_of, 0, time.perf_counter() - start)
  checkpoint.save(values.workdir, 0, {}, params, position._asdict())
  return _finish(values, position)


def _validate(values, ready, layout, params) -> dict[str, float]:
  module, variables = dict(ready.run.networks)[train.STUDENT], train.variables(ready.given, params, train.STUDENT)
  _, per_user = evaluate.full_ranking(module, variables, layout, metrics_cutoffs(values))
  return evaluate.means(per_user)


def _train(values, ready) -> dict[str, Any]:
  root = jax.random.key(values.seed)
  state = train.init(jax.random.fold_in(root, 0), ready.run, ready.given, _batch(values))
  state = state._replace(memory=resample.initial_memory(ready.run, ready.dataset))
  best, position = jax.tree.map(jnp.copy, state.params["networks"]), Position()
  if checkpoint.latest(values.workdir) is not None:
    _, state, best, saved = checkpoint.restore(values.workdir, state, best)
    position = Position(**saved)
  runs.truncate_metrics(values.workdir, position.epoch)
  if _done(values, position):
    return _finish(values, position)
  epoch = _epoch_function(values, ready, jax.random.fold_in(root, 1))
  layout = evaluate.layout(ready.dataset, "validation")
  # Lists that live for several epochs are not saved: a checkpoint waits until they are due anyway.
  whole = math.lcm(*(kd.lists.every for _, kd in ready.run.kds))
  saved_at = time.perf_counter()
  with progress.reporting(values.epochs, position.epoch) as report, _stopping() as stop:
    while not _done(values, position):
      state, losses, seconds = epoch(state, position.epoch + 1)
      position = position._replace(epoch=position.epoch + 1, seconds=position.seconds + sum(seconds.values()))
      line = {"epoch": position.epoch, "loss": losses, "seconds": seconds}
      if position.epoch % values.eval_every == 0 or position.epoch == values.epochs:
        line["validation"] = _validate(values, ready, layout, state.params)
        position, improved = _compare(values, position, line["validation"])
        best = jax.tree.map(jnp.copy, state.params["networks"]) if improved else best
      runs.append_metrics(values.workdir, line)
      report(line, values.monitor, position)
      due = stop or time.perf_counter() - saved_at > _SAVE_SECONDS
      if _done(values, position) or (due and position.epoch % whole == 0):
        checkpoint.save(values.workdir, position.epoch, state, best, position._asdict())
        saved_at = time.perf_counter()
        if stop and not _done(values, position):
          raise KeyboardInterrupt
  return _finish(values, position)


def _done(values, position):
  return position.epoch >= values.epochs or (values.patience > 0 and position.stale >= values.patience)


def _compare(values, position, validation) -> tuple[Position, bool]:
  value = validation[values.monitor]
  if value > position.best_value:
    return position._replace(best_epoch=position.epoch, best_value=value, best=validation, stale=0), True
  return position._replace(stale=position.stale + 1), False


def _epoch_function(values, ready, rng):
  """epoch(state, number from 1) -> (state, losses, seconds); a function of seed, number and state alone."""
  run, given, dataset = ready.run, ready.given, ready.dataset
  users, items = batches.to_device(dataset.train, dataset.num_users, dataset.num_items)
  sources = resample.prepare(run, dataset, given, ready.teachers and ready.teachers[0].stored)
  compiled = parallel.compile_epoch(run, values.parallel, values.batch_size)
  lists = None

  def epoch(state, number):
    nonlocal lists
    start = time.perf_counter()
    batch_rng, sample_rng, step_rng = jax.random.split(jax.random.fold_in(rng, number), 3)
    plan = batches.plan(values.seed, number, dataset.train, values.batch_size, values.kd_per)
    batch = batches.draw(batch_rng, plan, users, items, sources.seen["users"], negatives=values.negatives,
                         num_items=dataset.num_items, kd_per=values.kd_per)
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


class _stopping:  # noqa: N801 (a context manager, used as a function)
  """SIGTERM and SIGINT end the run after the epoch, saved; a second one ends it at once."""

  def __enter__(self):
    self.asked = []
    self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}
    return self.asked

  def _ask(self, number, frame):
    if self.asked:
      raise KeyboardInterrupt
    self.asked.append(number)

  def __exit__(self, *error):
    for number, handler in self.before.items():
      signal.signal(number, handler)


def _finish(values, position) -> dict[str, Any]:
  result = {"epochs": position.epoch, "best_epoch": position.best_epoch, "monitor": values.monitor,
            "validation": position.best, "seconds": position.seconds}
  artifacts.write_json_atomic(os.path.join(values.workdir, runs.RESULT), result)
  return result
