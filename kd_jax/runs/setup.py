"""Builds a run from its options: data, networks, methods, teachers. All checks are here."""

from __future__ import annotations

import fnmatch
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from kd_jax import data, registry
from kd_jax.base import (
    KD,
    PEER,
    STUDENT,
    TEACHER,
    Array,
    Batch,
    Callback,
    Dataset,
    InputError,
    KDSum,
    Metric,
    Objective,
)
from kd_jax.data import feature_files, neighbours, sources, store, streams
from kd_jax.devices import parallel, table_sharding
from kd_jax.evaluation import metric_names, model_selection, protocols
from kd_jax.objectives import _embedding_l2
from kd_jax.runs import memory
from kd_jax.runs.options import FitOptions, teachers_of, text_of
from kd_jax.storage import run_directory
from kd_jax.teachers import loading, warm_start
from kd_jax.training import batches, graph, kd_targets, left_out, parameters, sequence_batches, step, windows


class Setup(NamedTuple):
  """A run that is ready for training."""

  options: FitOptions
  run: graph.Run
  given: graph.Given
  dataset: Dataset
  described: Dataset  # the same, with the feature vectors that the learners read from files
  teachers: list[loading.Teacher]
  features: list[dict[str, Any]]  # files of feature vectors of the learners, see `feature_files.attach`
  warm_start: warm_start.WarmStart | None
  planner: Callable[[Dataset], Callable[[int], Batch]]  # (data or a part) -> (epoch -> its batches), `batches.plan`
  negatives: int  # number drawn per interaction
  example: Batch  # a batch with the shapes of training, for initialisation
  monitor: model_selection.Monitor  # validation metrics, and which one chooses the best epoch
  shapes: graph.TrainState  # shapes of the initial state, with whole tables
  pool: Array | None  # [n] items from which negatives are drawn; None: all
  callbacks: tuple[Callback, ...]
  left_out: list[str]  # lines that count users, or items, of weight 0, see `left_out`


# Cached, so that equal options give the same object, and equal runs compile once.
@functools.cache
def _build(package: str, call: registry.Call) -> Any:
  return registry.build(package, call)


@functools.cache
def _weight(weight: float | registry.Call):
  return weight if isinstance(weight, float) else registry.build_schedule(weight)


def methods(kd: str | KD | KDSum) -> tuple[tuple[float | Callable, KD], ...]:
  """((weight, method), ...) from a text, a method or a sum. Raises InputError."""
  if isinstance(kd, str):
    return tuple((_weight(weight), _build("losses", call)) for weight, call in registry.parse_sum("losses", kd, "kd"))
  return (1.0 * kd).terms if isinstance(kd, KD) else kd.terms


def objective(loss: str | Objective, kind: str) -> Objective:
  """The base loss from a text or an object; "" is the default for the kind of data. Raises InputError."""
  if isinstance(loss, str):
    loss = loss or ("bpr" if kind == "interactions" else "bce")
    loss = _build("objectives", registry.parse("objectives", loss, "loss"))
  if not isinstance(loss, Objective):
    raise InputError(f"`loss`: an Objective is expected, not {type(loss).__name__}")
  if kind not in loss.on:
    fitting = [name for name in registry.names("objectives") if kind in _build("objectives", registry.Call(name)).on]
    raise InputError(f"`loss`: this base loss is for {' and '.join(loss.on)}; for {kind} choose from "
                     f"{', '.join(fitting)}")
  return loss


@functools.cache
def _optimizer(name, learning_rate, schedule, weight_decay, decayed, frozen, steps_per_epoch, epochs):
  """An optimiser by name; `steps_per_epoch` and `epochs` are None if the schedule does not need them."""
  rate = learning_rate
  if schedule:
    rate = registry.build("schedules", schedule, learning_rate=learning_rate, steps_per_epoch=steps_per_epoch,
                          epochs=epochs)
  mask = None if decayed == ("*",) else parameters.matching(decayed)
  made = registry.build("optimizers", name, learning_rate=rate, weight_decay=weight_decay, decayed=mask)
  return parameters.freeze(made, frozen)


def optimizer(options: FitOptions, steps_per_epoch: int) -> optax.GradientTransformation:
  """The optimiser of a run with `steps_per_epoch` steps per epoch. Raises InputError."""
  frozen = patterns(options.freeze)
  if not isinstance(options.optimizer, str):
    if options.schedule or options.weight_decay:
      raise InputError("`optimizer`: an object has its own schedule and weight decay; leave out `schedule` and "
                       "`weight_decay`")
    return parameters.freeze(options.optimizer, frozen)
  call = registry.parse("optimizers", options.optimizer, "optimizer")
  if options.weight_decay and not registry.takes("optimizers", call, "weight_decay"):
    raise InputError(f"`weight_decay={options.weight_decay}`: `optimizer={options.optimizer}` has no weight decay")
  if callable(options.schedule):
    mask = None if options.decayed == "*" else parameters.matching(patterns(options.decayed))
    made = registry.build("optimizers", call, learning_rate=options.schedule, weight_decay=options.weight_decay,
                          decayed=mask)
    return parameters.freeze(made, frozen)
  schedule = registry.parse("schedules", options.schedule, "schedule") if options.schedule else None
  horizon = (steps_per_epoch, options.epochs if has_horizon(options) else None) if schedule else (None, None)
  return _optimizer(call, options.learning_rate, schedule, options.weight_decay, patterns(options.decayed), frozen,
                    *horizon)


def has_horizon(options: FitOptions) -> bool:
  """Whether the learning rate depends on the maximum number of epochs; such a run cannot be extended."""
  if not options.schedule or not isinstance(options.schedule, str):
    return False
  return registry.takes("schedules", registry.parse("schedules", options.schedule, "schedule"), "epochs")


def patterns(text: str) -> tuple[str, ...]:
  """Splits a text of patterns at its commas."""
  return tuple(pattern.strip() for pattern in text.split(",") if pattern.strip())


def callbacks(options: FitOptions) -> tuple[Callback, ...]:
  """New callbacks for a run. Raises InputError."""
  given = options.callbacks if not isinstance(options.callbacks, str) else [options.callbacks]
  made = []
  for one in given:
    calls = [call for _, call in registry.parse_sum("callbacks", one, "callbacks")] if isinstance(one, str) else [one]
    made += [registry.build("callbacks", call) if isinstance(call, registry.Call) else call for call in calls]
  for one in made:
    if not isinstance(one, Callback):
      raise InputError(f"`callbacks`: a Callback is expected, not {type(one).__name__}")
  return tuple(made)


def finished(options: FitOptions) -> dict[str, Any] | None:
  """The content of result.json if the run has finished. Raises InputError if it is damaged, or if its teacher or
  `init_from` has changed since."""
  if options.workdir is None:
    return None
  run = run_directory.finished(options.workdir, options.epochs)
  if run is not None:
    _check_data(options, run.info["hashes"])
    feature_files.check_unchanged(run.info.get("features", []), options.workdir)
    loading.check_unchanged(run, options.workdir, "teacher", teachers_of(options))
    loading.check_unchanged(run, options.workdir, "init_from", [options.init_from] if options.init_from else [])
  return run and run.result


def _check_data(options, before):
  """Raises InputError if the data has other hashes than `before`. Data that is no longer there is not compared."""
  try:
    now = load(options).hashes if isinstance(options.data, Dataset) else data.hashes(
        options.data, options.data_dir, options.cache_dir)
  except sources.NoSourceError as error:
    print(f"{options.workdir}: its data cannot be compared with the data of now: {error}")
    return
  if other := sorted(part for part in now.keys() & before.keys() if now[part] != before[part]):
    raise InputError(f"`data={text_of(options.data)}`: has changed since the finished run in {options.workdir}: other "
                     f"{', '.join(other)}; choose another `workdir`")


def check(options: FitOptions) -> None:
  """Raises InputError for options that do not fit together; needs no data."""
  if options.mask_validation and not options.log_test:
    raise InputError("`mask_validation`: only test candidates have it; evaluate.py does, and training with `log_test`")
  if options.profile and options.epochs < 3:
    raise InputError(f"`profile`: a trace of the third epoch is asked for, with `epochs={options.epochs}`")
  for name in ("profile", "keep_every"):
    if getattr(options, name) and options.workdir is None:
      raise InputError(f"`{name}`: is written to the run's directory; give a `workdir`")
  distils = bool(options.kd.strip() if isinstance(options.kd, str) else options.kd)
  if distils != bool(teachers_of(options) or options.peer):
    raise InputError("`kd` needs `teacher=RUN_OR_DIR` (or `peer=MODEL`)" if distils else
                     "`teacher` or `peer` is given, but no `kd` to distil with")
  if options.keep_zeros and not options.init_from:
    raise InputError("`keep_zeros`: only `init_from` sets parameters to 0; name the pruned run")
  if not distils and not options.loss_weight:
    raise InputError("`loss_weight=0`: without `kd` nothing is left to learn from")
  if options.monitor.strip() != metric_names.LAST and not isinstance(options.metrics, dict):
    _check_monitor(options.monitor)


def _check_monitor(monitor):
  try:
    for name in metric_names.split(monitor):
      metric_names.check(name)
  except ValueError as error:
    raise InputError(f"`monitor`: {error}, or {metric_names.LAST} for the last epoch") from None


def prepare(options: FitOptions) -> Setup:
  """Loads data and teachers, and builds the run. Raises InputError before anything is compiled."""
  check(options)
  parallel.check(options.batch_size, options.parallel, options.shard_tables)
  kds, dataset = methods(options.kd), load(options)
  base, chosen = objective(options.loss, dataset.kind), monitor(options, dataset)
  described, features = _described(options, dataset)
  networks, edges = _learners(options, described)
  if base.of_products and all(module.inner_product for module in networks.values()):
    base = _of_products(base)
  if dataset.stream is not None:
    _check_streamed(options, networks, kds)
  constants = {name: loading.constants(module, described) for name, module in networks.items()}
  frozen, loaded = {}, []
  for number, source in enumerate(teachers_of(options)):
    name = TEACHER + (str(number) if number else "")
    loaded.append(loading.load(source, dataset, options.teacher_unknown_ids))
    if "coverage" in loaded[-1].provenance:
      print(f"teacher={source}: {loaded[-1].provenance['coverage']}")
    edges += [(learner, name) for learner in networks if learner in (STUDENT, PEER)]
    if loaded[-1].module is not None:
      networks[name] = loaded[-1].module
      frozen[name], constants[name] = loaded[-1].params, loaded[-1].constants
  learners = tuple(name for name in networks if name in (STUDENT, PEER))
  plan_of = functools.partial(
      planner, [networks[name] for name in learners], seed=options.seed, batch_size=options.batch_size,
      kd_per=options.kd_per, kds=kds, share=options.train_share,
      steps=streams.steps(dataset.stream, options.batch_size) if dataset.stream is not None else None)
  plan, negatives = plan_of(streams.part(dataset, 0) if dataset.stream is not None else dataset), (
      0 if base.all_items else options.negatives)
  memory.check_batch(options, 1 + negatives)
  example, steps = _example_batch(plan(1), negatives)
  parts = dataset.stream.parts if dataset.stream is not None else 1
  optimiser = optimizer(options, steps * parts)
  run = graph.Run(tuple(networks.items()), learners, tuple(edges), kds, base,
                  parameters.keep_zeros(optimiser) if options.keep_zeros else optimiser, options.reduction,
                  loss_weight=options.loss_weight, embedding_l2=options.embedding_l2)
  pool = _pool(options, dataset, negatives)
  left = _left_out(run, dataset, loaded, negatives, pool, chosen)
  near = jax.tree.map(jnp.asarray, neighbours.tables(run.kds, dataset))
  labels = None if dataset.contexts is None else jnp.asarray(protocols.label_matrix(dataset, "train"))
  given = graph.Given(frozen, jax.tree.map(jnp.asarray, constants), near, labels)
  # Only computes shapes: checks whether the methods fit the networks.
  shapes = jax.eval_shape(lambda given: step.init(jax.random.key(0), run, given, example), given)
  memory.check_state(options, shapes, None if base.all_items or dataset.contexts is not None else 1 + negatives)
  student = shapes.params["networks"][STUDENT]
  warm_start.check_frozen(patterns(options.freeze), student)
  _check_decayed(patterns(options.decayed), shapes.params)
  if options.embedding_l2:
    _check_embeddings(options, shapes.params["networks"], dataset)
  if dataset.stream is not None:
    run, given = windows.split(run, given, frozen | shapes.params["networks"], dataset)
  if options.shard_tables:  # tables are still on the host: no device must hold a whole one
    run, given = table_sharding.split(run, given, shapes.params["networks"])
  given = given._replace(params=jax.tree.map(jnp.asarray, given.params))
  return Setup(options, run, given, dataset, described, loaded, features, _warm_start(options, student, dataset),
               plan_of, negatives, example, chosen, shapes, pool, callbacks(options), left)


@functools.cache
def _of_products(base):
  return base._replace(loss=base.of_products)  # cached: equal runs need the same object


def load(options: FitOptions) -> Dataset:
  """Loads the data of a run; if the source is not there, the prepared copy that the run in `workdir` has seen.

  Raises InputError.
  """
  if isinstance(options.data, Dataset):
    dataset = options.data
    if dataset.stream is None:  # arrays may have been replaced since the data was loaded
      dataset = dataset._replace(hashes=dataset.hashes | store.hashes_of(dataset))
    if options.log_test and dataset.test is None:
      raise InputError("`log_test`: the data was loaded without its test split; load it with splits=('train', "
                       "'validation', 'test')")
    return dataset
  logged = ("train", "validation", "test") if options.log_test else ("train", "validation")
  load_it = functools.partial(data.load, options.data, options.data_dir, options.cache_dir, logged, options.data_memory)
  try:
    return load_it()
  except sources.NoSourceError:
    if options.workdir is None or not (pathlib.Path(options.workdir) / run_directory.INFO).exists():
      raise
    return load_it(expected=run_directory.read_info(options.workdir)["hashes"])


def monitor(options: FitOptions, dataset: Dataset) -> model_selection.Monitor:
  """The validation metrics of a run, and which of them chooses the best epoch. Raises InputError."""
  if options.data_memory and dataset.contexts is not None:
    raise InputError(f"`data_memory={options.data_memory}`: labelled data is not streamed")
  found = model_selection.monitor(options.monitor, dataset.kind, further(options.metrics, dataset.kind))
  metric_names.check_cutoffs("monitor", options.monitor, dataset.kind, dataset.num_items)
  if isinstance(options.metrics, str):
    metric_names.check_cutoffs("metrics", options.metrics, dataset.kind, dataset.num_items)
  metric_names.check_needs("metrics", found.metrics, dataset)
  if not (dataset.stream or len(dataset.validation.users)) and found.names != (metric_names.LAST,):
    raise InputError(f"`monitor={found}`: the data has no validation split; `monitor={metric_names.LAST}` takes the "
                     "last epoch")
  return found


def further(metrics: str | dict[str, Metric], kind: str) -> metric_names.Metrics:
  """{name: metric} of the option `metrics`, in addition to the default metrics. Raises InputError."""
  if not isinstance(metrics, str):
    return metrics
  names = metric_names.split(metrics)
  try:
    if sampled := [name for name in names if name and metric_names.read(name, kind).sampled]:
      raise ValueError(f"{sampled[0]!r}: only `monitor` and the option `sampled` of an evaluation sample candidates")
    return {name: metric_names.build(name, kind) for name in names}
  except ValueError as error:
    raise InputError(f"`metrics`: {error}") from None


def share(readies: list[Setup]) -> list[Setup]:
  """The same runs; arrays that are equal in all runs (e.g. computed from the data) become one shared array."""
  leaves, structures = zip(*(jax.tree.flatten(ready.given) for ready in readies), strict=True)
  if len(readies) == 1 or len(set(structures)) > 1:
    return readies
  one = [x[0] if all(np.array_equal(x[0], other) for other in x[1:]) else None for x in zip(*leaves, strict=True)]
  given = [structure.unflatten([own if x is None else x for own, x in zip(of_run, one, strict=True)])
           for of_run, structure in zip(leaves, structures, strict=True)]
  return [ready._replace(given=x) for ready, x in zip(readies, given, strict=True)]


def _check_decayed(decayed, params):
  """Raises InputError if one of the patterns of `decayed` matches no parameter, unless it is about adapters."""
  names = list(warm_start.named(params))
  for pattern in decayed:
    if not pattern.startswith("adapters") and not fnmatch.filter(names, pattern):
      raise InputError(f"`decayed={pattern}`: matches none of {', '.join(names)}")


def _check_embeddings(options, learners, dataset):
  """Raises InputError if `embedding_l2` is set for labelled data, or for a learner without both embedding tables."""
  if dataset.contexts is not None:
    raise InputError(f"`embedding_l2={options.embedding_l2}`: labelled data has no user, item and negatives")
  for argument, name in (("model", STUDENT), ("peer", PEER)):
    for table in _embedding_l2.TABLES:
      if name in learners and not hasattr(learners[name].get(table), "shape"):
        model = text_of(getattr(options, argument))
        raise InputError(f"`embedding_l2={options.embedding_l2}`: `{argument}={model}` has no "
                         f"table {table!r}; mf, lightgcn and neumf have both")


def _check_streamed(options, networks, kds):
  """Raises InputError for options that need all interactions in memory."""
  where = f"`data_memory={options.data_memory}`: the interactions are streamed: "
  if options.shard_tables or jax.process_count() > 1:
    raise InputError(f"{where}neither `shard_tables` nor several processes go with that")
  if hasattr(networks[STUDENT], "fit"):
    raise InputError(f"{where}`model={text_of(options.model)}` is computed from all at once")
  if any(kd.rows == "items" or kd.neighbours or kd.remember or kd.own_loss or kd.lists.every > 1 for _, kd in kds):
    raise InputError(f"{where}a method of `kd` ranks users for items, needs neighbours, or keeps something from epoch "
                     "to epoch")


def _warm_start(options, student, dataset) -> warm_start.WarmStart | None:
  if not options.init_from:
    return None
  found = warm_start.load(options.init_from, student, dataset, options.data_dir, options.cache_dir)
  for name, leaf in warm_start.named(student).items():
    print(f"init_from: {name} {list(leaf.shape)}: {found.report[name]}")
  return found


def _described(options, dataset) -> tuple[Dataset, list[dict[str, Any]]]:
  """(the data with the learners' feature vectors, a description of their files). Prints how many rows they cover."""
  arguments = {argument: side for side, (argument, _, _) in feature_files.SIDES.items()}
  models = [model for model in (options.model, options.peer) if model]
  for argument, side in arguments.items():
    if getattr(options, argument) and not any(_accepts(model, side) for model in models):
      raise InputError(f"`{argument}`: `model={text_of(options.model)}` has no use for it; two_tower() has")
  described, features = feature_files.attach(dataset, {argument: getattr(options, argument) for argument in arguments})
  for line in feature_files.describe(dataset, features):
    print(line)
  return described, features


def _accepts(model: str | nn.Module, argument: str) -> bool:
  return isinstance(model, str) and registry.accepts("models", model, argument)


def planner(learners: Sequence[Any], dataset: Dataset, *, seed: int, batch_size: int,
            kd_per: str, kds: tuple, steps: int | None = None, share: float = 1.0) -> Callable[[int], Batch]:
  """Returns plan(epoch): batches of contexts, of interactions, or of sequences if a learner reads sequences.

  `steps` is the fixed number of steps for a part of streamed data. `share` is that of the training interactions which
  batches have. Raises InputError if learners read sequences of different lengths, or sequences with a smaller share.
  """
  lengths = {module.length for module in learners if getattr(module, "reads_sequences", False)}
  if len(lengths) > 1:
    raise InputError(f"`peer`: student and peer read sequences of different lengths, {sorted(lengths)}")
  if share < 1 and (lengths or steps is not None):
    raise InputError(f"`train_share={share}`: neither for models of sequences nor for streamed data")
  if dataset.contexts is not None:
    contexts = dataset.contexts["train"]
    contexts = contexts if share == 1 else contexts[batches.choose(seed, len(contexts), share)]
    return lambda epoch: batches.plan_contexts(seed, epoch, contexts, batch_size)
  distilled = {"items" if kd.rows == "items" else "users" for _, kd in kds}
  if not lengths:
    chosen = None if share == 1 else batches.choose(seed, len(dataset.train.users), share)
    return lambda epoch: batches.plan(seed, epoch, dataset.train, batch_size, kd_per, distilled, steps, chosen)
  sequence_batches.rows_per_step(batch_size, *lengths)
  packing = sequence_batches.pack(dataset.train, *lengths)
  return lambda epoch: sequence_batches.plan(seed, epoch, dataset.train, packing, batch_size, kd_per, distilled)


def _learners(options, dataset) -> tuple[dict, list]:
  """(networks, edges): the student and, with `peer`, a second network; each then teaches the other."""
  networks = {STUDENT: loading.build_model(options.model, dataset)}
  if (options.kd or options.init_from or options.freeze) and hasattr(networks[STUDENT], "fit"):
    raise InputError(f"`model={text_of(options.model)}`: is computed, not trained: it takes no `kd`, `init_from` or "
                     "`freeze`")
  if not options.peer:
    return networks, []
  networks[PEER] = loading.build_model(options.peer, dataset)
  return networks, [(STUDENT, PEER), (PEER, STUDENT)]


def _left_out(run, dataset, loaded, negatives, pool, monitor) -> list[str]:
  """A line for everything that leaves out users, or items; prints them. Raises InputError if it leaves out all."""
  lines = [*_check_teachers(run, loaded, dataset), *kd_targets.check(run, dataset)]
  closed_form = hasattr(dict(run.networks)[STUDENT], "fit")
  if negatives and run.loss_weight and dataset.contexts is None and not closed_form:
    lines.append(left_out.by_base_loss(dataset, pool))
  lines.append(protocols.short_of_unknown(dataset, "validation", monitor.sampled))
  lines = [line for line in lines if line is not None]
  for line in lines:
    print(line)
  return lines


def _check_teachers(run, loaded, dataset) -> list[str]:
  """A line for every method that leaves out users whose stored list is too short.

  Raises InputError if the methods need more than the stored lists contain, or a live teacher.
  """
  stored = [t for t in loaded if t.stored is not None]
  if not stored:
    return []
  if len(loaded) > 1:
    raise InputError("`teacher`: soft labels of one teacher can be used, or several run directories")
  for _, kd in run.kds:
    if kd_targets.needs_live_teacher(kd):
      raise InputError("`kd`: the method asks the teacher for what its stored lists do not hold; give the teacher's "
                       "run directory instead of soft labels")
    listed = stored[0].stored.items.shape[1]
    if kd.lists.teacher > listed:
      raise InputError(f"`teacher`: its lists hold {listed} items, `kd` asks for {kd.lists.teacher}; write them "
                       f"again with `top_k={kd.lists.teacher}`")
    if stored[0].exclude_seen not in (None, kd.lists.exclude_seen):
      word = "without" if kd.lists.exclude_seen else "with"
      raise InputError(f"`teacher`: `kd` asks for lists {word} training items; write the soft labels again with "
                       f"`exclude_seen={kd.lists.exclude_seen}`")
    if kd.teacher_scores and not stored[0].scored:
      raise InputError("`kd`: the method needs the teacher's scores, its file has lists without confidences")
  lines = (_check_lengths(stored[0].stored, kd.lists, dataset) for _, kd in run.kds)
  return [line for line in dict.fromkeys(lines) if line is not None]


def _check_lengths(stored, lists, dataset) -> str | None:
  """Users with a too short stored list are not distilled. Raises InputError if this is true for all users."""
  enough = kd_targets.stored_lists(stored, dataset, lists)[1]
  what = f"lists of {lists.teacher} items{' that are not in training' if lists.exclude_seen else ''}"
  if not enough.any():
    raise InputError(f"`teacher`: `kd` asks for {what}; no user has one. Fewer in `kd`, or longer lists, may help")
  return None if enough.all() else (f"teacher: {enough.sum():,} of {len(enough):,} users have {what}; the others are "
                                    "not distilled")


def _pool(options, dataset, negatives) -> Array | None:
  if negatives > dataset.num_items:
    raise InputError(f"`negatives={negatives}`: the data has {dataset.num_items} items")
  if options.negatives_from == "all":
    return None
  if dataset.contexts is not None or not negatives:
    raise InputError(f"`negatives_from={options.negatives_from}`: none are drawn for `loss=cross_entropy`, nor for "
                     "labelled data")
  streamed = dataset.popularity is not None
  return jnp.asarray(np.flatnonzero(dataset.popularity) if streamed else np.unique(dataset.train.items))


def _example_batch(plan, negatives) -> tuple[Batch, int]:
  """(a batch with the shapes of the plan's batches, number of batches in the plan)."""
  first = {k: jnp.asarray(v[0]) for k, v in plan.items()}
  steps = len(plan["weight"])
  if first.pop("rows", None) is None:  # contexts of labelled data
    return first, steps
  rows = jnp.zeros(first["weight"].shape, jnp.int32)
  items = jnp.zeros((*rows.shape, 1 + negatives), jnp.int32)
  return first | {"users": rows, "items": items, "items_weight": jnp.ones(items.shape)}, steps
