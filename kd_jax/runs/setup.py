"""From flags to a run made ready: data, networks, methods, teachers. Everything is checked here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from kd_jax import data, registry
from kd_jax.base import PEER, STUDENT, TEACHER, Array, Batch, Dataset, InputError
from kd_jax.data import feature_files, neighbours, streams
from kd_jax.devices import parallel, table_sharding
from kd_jax.evaluation import model_selection, protocols
from kd_jax.objectives import tasks
from kd_jax.storage import run_directory
from kd_jax.teachers import loading, warm_start
from kd_jax.training import batches, graph, kd_targets, optimizers, sequence_batches, step, windows


class Setup(NamedTuple):
  """A run made ready: what is static, what is fixed, and the data."""

  run: graph.Run
  given: graph.Given
  dataset: Dataset
  teachers: list[loading.Teacher]
  features: list[dict[str, Any]]  # files of vectors that the learners see, see `vectors.attach`
  warm_start: warm_start.WarmStart | None
  planner: Callable[[Dataset], Callable[[int], Batch]]  # of data, or a part: the batches of an epoch, `batches.plan`
  example: Batch  # a batch of the shapes of training, to initialise with
  monitor: str  # validation metric that chooses the best epoch
  shapes: graph.TrainState  # of the state at the start, with whole tables
  pool: Array | None  # [n] items that negatives are drawn from; None: all


@functools.cache
def _kd(call: registry.Call):
  return registry.build("losses", call)  # once, so that equal runs are equal and compile once


@functools.cache
def _weight(weight: float | registry.Call):
  return weight if isinstance(weight, float) else registry.build_schedule(weight)


_optimizer = functools.cache(optimizers.make)


def finished(values: flags.FlagValues) -> dict[str, Any] | None:
  """`runs.finished`. Raises InputError if what that run learned from is something else now."""
  result = run_directory.finished(values.workdir, values)
  if result is not None:
    loading.check_unchanged(values.workdir, "teacher", values.teacher.split(",") if values.teacher else [])
    loading.check_unchanged(values.workdir, "init_from", [values.init_from] if values.init_from else [])
  return result


def check(values: flags.FlagValues) -> None:
  """Raises InputError for flags that do not go together, whatever the data are."""
  model_selection.needs(values.monitor)
  if values.mask_validation and not values.log_test:
    raise InputError("--mask_validation: only test candidates have it; evaluate.py does, and training with --log_test")
  if values.profile and values.epochs < 3:
    raise InputError(f"--profile: a trace of the third epoch is asked for, with --epochs={values.epochs}")
  distils = bool(values.kd.strip())
  if distils != bool(values.teacher or values.peer):
    raise InputError("--kd needs --teacher=RUN_OR_DIR (or --peer=MODEL)" if distils else
                     "--teacher or --peer is given, but no --kd to distil with")
  if not distils and not values.loss_weight:
    raise InputError("--loss_weight=0: without --kd nothing is left to learn from")


def setup(values: flags.FlagValues) -> Setup:
  """Loads data and teachers and builds the run. Raises InputError before anything is compiled."""
  check(values)
  parallel.check(values.batch_size, values.parallel, values.shard_tables)
  kds = tuple((_weight(weight), _kd(call)) for weight, call in registry.parse_sum("losses", values.kd, "kd"))
  dataset, loss, monitor = _load(values)
  streamed = dataset.stream is not None
  described, features = _described(values, dataset)
  networks, edges = _learners(values, described)
  if all(module.inner_product for module in networks.values()):
    loss = tasks.OF_PRODUCTS.get(loss, loss)
  if streamed:
    windows.check(values, described, networks, kds)
  constants = {name: loading.constants(module, described) for name, module in networks.items()}
  params, loaded = {}, []
  for number, path in enumerate(values.teacher.split(",") if values.teacher else []):
    name = TEACHER + (str(number) if number else "")
    loaded.append(loading.load(path, dataset, values.teacher_unknown_ids))
    if "coverage" in loaded[-1].provenance:
      print(f"--teacher={path}: {loaded[-1].provenance['coverage']}")
    edges += [(learner, name) for learner in networks if learner in (STUDENT, PEER)]
    if loaded[-1].module is not None:
      networks[name] = loaded[-1].module
      params[name], constants[name] = loaded[-1].params, loaded[-1].constants
  learners = tuple(n for n in networks if n in (STUDENT, PEER))
  run = graph.Run(tuple(networks.items()), learners, tuple(edges), kds, loss,
                  _optimizer(values.optimizer, values.learning_rate, values.weight_decay, _frozen(values)),
                  values.reduction, loss in tasks.ALL_ITEMS, loss_weight=values.loss_weight,
                  embedding_l2=values.embedding_l2)
  _check_teachers(run, loaded, dataset)
  kd_targets.check(run, dataset)
  near = jax.tree.map(jnp.asarray, neighbours.tables(run.kds, dataset))
  labels = None if dataset.contexts is None else jnp.asarray(protocols.label_matrix(dataset, "train"))
  given = graph.Given(params, jax.tree.map(jnp.asarray, constants), near, labels)
  plan_of = functools.partial(
      planner, [networks[name] for name in learners], seed=values.seed, batch_size=values.batch_size,
      kd_per=values.kd_per, kds=kds, steps=streams.steps(dataset.stream, values.batch_size) if streamed else None)
  example = _example_batch(values, plan_of(streams.part(dataset, 0) if streamed else dataset))
  # Finds out whether the methods fit the networks.
  shapes = jax.eval_shape(lambda given: step.init(jax.random.key(0), run, given, example), given)
  student = shapes.params["networks"][STUDENT]
  warm_start.check_frozen(_frozen(values), student)
  if values.embedding_l2:
    _check_embeddings(values, shapes.params["networks"], dataset)
  if streamed:
    run, given = windows.split(run, given, params | shapes.params["networks"], dataset)
  if values.shard_tables:  # from the host: no device holds a whole table
    run, given = table_sharding.split(run, given, shapes.params["networks"])
  given = given._replace(params=jax.tree.map(jnp.asarray, given.params))
  return Setup(run, given, dataset, loaded, features, _warm_start(values, student, dataset), plan_of, example, monitor,
               shapes, _pool(values, dataset))


def _load(values) -> tuple[Dataset, Callable, str]:
  """(the data, the base loss, what is monitored)."""
  logged = ("train", "validation", "test") if values.log_test else ("train", "validation")
  dataset = data.load(values.data, values.data_dir, values.cache_dir, logged, values.data_memory)
  loss, monitor = tasks.choose(dataset, values.loss, values.monitor)
  if values.data_memory and dataset.contexts is not None:
    raise InputError(f"--data_memory={values.data_memory}: labelled data is not streamed")
  if not (dataset.stream or len(dataset.validation.users)) and monitor != model_selection.LAST:
    raise InputError(f"--monitor={monitor}: the data has no validation split; --monitor={model_selection.LAST} takes the "
                     "last epoch")
  return dataset, loss, monitor


def share(readies: list[Setup]) -> list[Setup]:
  """The same; arrays that are equal in all runs, as those made of the data are, become one."""
  leaves, structures = zip(*(jax.tree.flatten(ready.given) for ready in readies), strict=True)
  if len(readies) == 1 or len(set(structures)) > 1:
    return readies
  one = [x[0] if all(np.array_equal(x[0], other) for other in x[1:]) else None for x in zip(*leaves, strict=True)]
  given = [structure.unflatten([own if x is None else x for own, x in zip(of_run, one, strict=True)])
           for of_run, structure in zip(leaves, structures, strict=True)]
  return [ready._replace(given=x) for ready, x in zip(readies, given, strict=True)]


def _frozen(values) -> tuple[str, ...]:
  return tuple(pattern.strip() for pattern in values.freeze.split(",") if pattern.strip())


def _check_embeddings(values, learners, dataset):
  """--embedding_l2 is for learners with both tables, and for interactions."""
  if dataset.contexts is not None:
    raise InputError(f"--embedding_l2={values.embedding_l2}: labelled data has no user, item and negatives")
  for flag, name in (("model", STUDENT), ("peer", PEER)):
    for table in tasks.EMBEDDINGS:
      if name in learners and not hasattr(learners[name].get(table), "shape"):
        raise InputError(f"--embedding_l2={values.embedding_l2}: --{flag}={values[flag].value} has no table {table!r}; "
                         "mf, lightgcn and neumf have both")


def _warm_start(values, student, dataset) -> warm_start.WarmStart | None:
  if not values.init_from:
    return None
  found = warm_start.load(values.init_from, student, dataset, values.data_dir, values.cache_dir)
  for name, leaf in warm_start.named(student).items():
    print(f"--init_from: {name} {list(leaf.shape)}: {found.report[name]}")
  return found


def _described(values, dataset) -> tuple[Dataset, list[dict[str, Any]]]:
  """The data with the vectors of the learners' files, and what these were. Prints how many rows they cover."""
  flags_of = {flag: side for side, (flag, _, _) in feature_files.SIDES.items()}
  models = [model for model in (values.model, values.peer) if model]
  for flag, side in flags_of.items():
    if values[flag].value and not any(registry.accepts("models", model, side) for model in models):
      raise InputError(f"--{flag}: --model={values.model} has no use for it; two_tower() has")
  described, features = feature_files.attach(dataset, {flag: values[flag].value for flag in flags_of})
  for line in feature_files.describe(dataset, features):
    print(line)
  return described, features


def planner(learners: Sequence[Any], dataset: Dataset, *, seed: int, batch_size: int,
            kd_per: str, kds: tuple, steps: int | None = None) -> Callable[[int], Batch]:
  """The plan of an epoch: of contexts, or of single interactions, or of sequences if a learner reads such.

  `steps` is for parts of data.
  """
  lengths = {module.length for module in learners if getattr(module, "reads_sequences", False)}
  if len(lengths) > 1:
    raise InputError(f"--peer: student and peer read sequences of different lengths, {sorted(lengths)}")
  if dataset.contexts is not None:
    return lambda epoch: batches.plan_contexts(seed, epoch, dataset.contexts["train"], batch_size)
  distilled = {"items" if kd.rows == "items" else "users" for _, kd in kds}
  if not lengths:
    return lambda epoch: batches.plan(seed, epoch, dataset.train, batch_size, kd_per, distilled, steps)
  sequence_batches.rows_per_step(batch_size, *lengths)
  packing = sequence_batches.pack(dataset.train, *lengths)
  return lambda epoch: sequence_batches.plan(seed, epoch, dataset.train, packing, batch_size, kd_per, distilled)


def _learners(values, dataset) -> tuple[dict, list]:
  """The student, and with --peer a second network that learns with it and from it."""
  networks = {STUDENT: loading.build_module(values.model, dataset)}
  if (values.kd or values.init_from or values.freeze) and hasattr(networks[STUDENT], "fit"):
    raise InputError(f"--model={values.model}: is computed, not trained: it takes no --kd, --init_from or --freeze")
  if not values.peer:
    return networks, []
  networks[PEER] = loading.build_module(values.peer, dataset)
  return networks, [(STUDENT, PEER), (PEER, STUDENT)]


def _check_teachers(run, loaded, dataset):
  """Stored lists must be of the right kind and long enough; what they do not hold needs a live teacher."""
  stored = [t for t in loaded if t.stored is not None]
  if not stored:
    return
  if len(loaded) > 1:
    raise InputError("--teacher: soft labels of one teacher can be used, or several run directories")
  for _, kd in run.kds:
    if kd_targets.needs_live_teacher(kd):
      raise InputError("--kd: the method asks the teacher for what its stored lists do not hold; give the teacher's "
                       "run directory instead of soft labels")
    listed = stored[0].stored.items.shape[1]
    if kd.lists.teacher > listed:
      raise InputError(f"--teacher: its lists hold {listed} items, --kd asks for {kd.lists.teacher}; write them "
                       f"again with --top_k={kd.lists.teacher}")
    if stored[0].exclude_seen not in (None, kd.lists.exclude_seen):
      word = "without" if kd.lists.exclude_seen else "with"
      raise InputError(f"--teacher: --kd asks for lists {word} training items; write the soft labels again with "
                       f"--exclude_seen={kd.lists.exclude_seen}")
    if kd.teacher_scores and not stored[0].scored:
      raise InputError("--kd: the method needs the teacher's scores, its file has lists without confidences")
    _check_lengths(stored[0].stored, kd.lists, dataset)


def _check_lengths(stored, lists, dataset):
  """Users of whom a stored list says too little are left out of distillation."""
  enough = kd_targets.stored_lists(stored, dataset, lists)[1]
  what = f"lists of {lists.teacher} items{' that are not in training' if lists.exclude_seen else ''}"
  if not enough.any():
    raise InputError(f"--teacher: --kd asks for {what}; no user has one. Fewer in --kd, or longer lists, may help")
  if not enough.all():
    print(f"--teacher: {enough.sum():,} of {len(enough):,} users have {what}; the others are not distilled")


def negatives(values: flags.FlagValues) -> int:
  """How many are drawn for each interaction: none where the loss is of all items."""
  return 0 if tasks.INTERACTIONS.losses.get(values.loss) in tasks.ALL_ITEMS else values.negatives


def _pool(values, dataset) -> Array | None:
  if values.negatives_from == "all":
    return None
  if dataset.contexts is not None or not negatives(values):
    raise InputError(f"--negatives_from={values.negatives_from}: none are drawn for --loss=cross_entropy, nor for "
                     "labelled data")
  streamed = dataset.popularity is not None
  return jnp.asarray(np.flatnonzero(dataset.popularity) if streamed else np.unique(dataset.train.items))


def _example_batch(values, plan) -> Batch:
  first = {k: jnp.asarray(v[0]) for k, v in plan(1).items()}
  if first.pop("rows", None) is None:  # contexts of labelled data
    return first
  rows = jnp.zeros(first["weight"].shape, jnp.int32)
  items = jnp.zeros((*rows.shape, 1 + negatives(values)), jnp.int32)
  return first | {"users": rows, "items": items, "items_weight": jnp.ones(items.shape)}
