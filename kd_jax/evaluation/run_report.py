"""The evaluation of a finished run: test metrics, model size, and the gain of distillation."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from kd_jax import data, registry
from kd_jax.base import Dataset, InputError
from kd_jax.data import feature_files
from kd_jax.evaluation import agreement, membership, metric_names, protocols, sealed_report, streaming
from kd_jax.evaluation import cost as costs
from kd_jax.evaluation.metric_names import LAST
from kd_jax.evaluation.options import EvaluationOptions
from kd_jax.metrics import significance
from kd_jax.metrics.transfer import Measured, relative_improvement, transfer_ratios
from kd_jax.storage import run_directory, sealed
from kd_jax.teachers import loading
from kd_jax.teachers.fitted import Fitted

_OVERLAP = "overlap@10"  # also beside the other values of `agreement`
Run: TypeAlias = str | os.PathLike | Fitted  # a run directory, or what `fit` returned


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
  """The evaluation of a run; `report["ndcg@10"]` is a metric."""

  metrics: dict[str, float]  # means over users
  users: np.ndarray  # ids of the evaluated users (contexts) [V]
  values: dict[str, np.ndarray]  # {metric: [V]}, NaN if a user has no item in the group of the metric
  details: dict[str, Any]  # the content of test.json: protocol, sizes, compression, overlap, transfer, differences

  def __getitem__(self, name: str) -> float:
    return self.metrics[name]


def evaluate(run: Run, *, teacher: Run | None = None, student: Run | None = None, compare: Sequence[Run] = (),
             split: str = "test", cost: bool = False, attack: bool = False, data_dir: str | None = None,
             cache_dir: str | None = None, allow_code: str | os.PathLike | None = None, **options: Any) -> Report:
  """Evaluates the best epoch of a run, chosen on validation, on the test (or validation) split.

  Runs are directories or results of `fit`; all must use the same data. `teacher` adds the compression ratio and the
  agreement of the lists, see `agreement.measure`. `student`, the plain student, adds the transfer ratio of every
  metric; it needs `teacher`. `compare` adds paired tests of the differences from these runs. `cost` adds bytes, latency
  and operations of a request, see `cost.measure`. `attack` adds membership inference, see `membership.measure`.
  `allow_code` is the directory of a module of yours that makes the
  model or the data of a run: its code is executed. `options` are fields of `EvaluationOptions`.

  Writes no file; scripts/evaluate.py writes RUN/test.json. Raises InputError if a run is not finished or damaged, its
  data has changed, or an option is invalid.
  """
  registry.allow_code(allow_code)
  known = [field.name for field in dataclasses.fields(EvaluationOptions)]
  for name in options:
    if name not in known:
      raise InputError(f"evaluate has no argument {name!r}; its options are {', '.join(known)}")
  others = [compare] if isinstance(compare, str | os.PathLike | Fitted) else compare
  return _evaluate(run, teacher, student, others, split, cost, attack, data_dir, cache_dir,
                   EvaluationOptions(**options))


def evaluate_run(run: str | os.PathLike, *, split: str = "test", teacher: str | None = None, student: str | None = None,
                 others: Sequence[str] = (), cost: bool = False, attack: bool = False, data_dir: str | None = None,
                 cache_dir: str | None = None, allow_code: str | None = None,
                 options: EvaluationOptions | None = None) -> dict[str, Any]:
  """`evaluate` for a run directory: stores the report, see `sealed_report.write`, and returns it.

  Earlier results of the same run with the same options are kept beside the new ones. Raises InputError like `evaluate`.
  """
  registry.allow_code(allow_code)
  sealed_report.read(run, split)  # if an earlier evaluation is damaged, this says so before the work
  found = _evaluate(run, teacher, student, others, split, cost, attack, data_dir, cache_dir,
                    options or EvaluationOptions())
  if run_directory.read_finished(run).seal != found.details["seal"]:
    raise InputError(f"{run}: was changed during its evaluation; evaluate it again")
  of_users = {name: value for name, value in found.values.items() if value.ndim}
  return sealed_report.write(run, split, sealed_report.Stored(found.details, found.users, of_users))


class _Opened(NamedTuple):
  """What an evaluation reads of a run beside its parameters."""

  info: dict[str, Any]
  result: dict[str, Any]
  history: list[dict[str, Any]]
  seal: str | None  # None: a model in memory


def _evaluate(run, teacher, student, others, split, cost, attack, data_dir, cache_dir, options) -> Report:
  _check(teacher, student, split, options)
  named = {_named(other, f"compare[{number}]"): other for number, other in enumerate(others)}
  opened = {_key(each): _open(each) for each in (run, teacher, student, *others) if each is not None}
  own = opened[_key(run)]
  dataset = _dataset(run, own.info, split, data_dir, cache_dir)
  metrics = _chosen(options.metrics, dataset.kind)
  if isinstance(options.metrics, str):
    metric_names.check_cutoffs("metrics", options.metrics, dataset.kind, dataset.num_items)
  metric_names.check_needs("metrics", metrics, dataset)
  short = protocols.short_of_unknown(dataset, split, options.sampled)
  users, values = _values(run, dataset, split, options, metrics)

  made = {_key(run): (users, values)}

  def of(other):
    if _key(other) not in made:
      made[_key(other)] = _values(other, dataset, split, options, metrics)
    if not np.array_equal(made[_key(other)][0], users):  # the tests are paired
      raise InputError(f"{_named(other, 'a compared run')}: evaluated on other users than {_named(run, 'the run')}")
    return made[_key(other)][1]

  if others and not any(value.ndim for value in values.values()):
    raise InputError("`compare`: no metric of this data is a mean over users, as the tests need")
  found = protocols.means(values)
  means = found | (_own_epochs(own, metrics) if split == "test" else {})
  details = _protocol(run, own, dataset, split, options, users) | {"left_out": short, "metrics": means}
  ends = {name: _named(each, f"`{name}`") for name, each in (("teacher", teacher), ("student", student))
          if each is not None}
  if cost:
    details["cost"] = costs.measure(own.info, *loading.network(run, dataset), dataset)
  if attack:
    details["membership"] = membership.measure(*loading.network(run, dataset), dataset, split)
  if teacher is not None:
    details |= _against_teacher(run, teacher, dataset, split, own.info, opened[_key(teacher)].info)
  if teacher is not None and student is not None:
    details |= _transfer(of(teacher), of(student), found, metrics)
  details["differences"] = {name: _differences(values, of(other)) for name, other in named.items()}
  compared = named | {ends[name]: each for name, each in (("teacher", teacher), ("student", student)) if name in ends}
  details |= ends | {"others": {name: opened[_key(other)].seal for name, other in compared.items()}}
  return Report(means, dataset.user_ids[users], values, sealed.finite(details))


def _protocol(run, own, dataset, split, options, users) -> dict[str, Any]:
  """The fields of a report that say what was evaluated, and how."""
  labelled = dataset.contexts is not None
  return {"run": _named(run, "in memory"), **sealed_report.identity(own.seal, options), "data": own.info["data"],
          "synthetic": own.info["synthetic"], "split": split,
          "candidates": _candidates(dataset, split, options.mask_validation),
          "users": len(users), "users_sha256": sealed.hash_array(dataset.user_ids[users].astype(np.str_)),
          "evaluated": "contexts" if labelled else "users",
          "users_without_training": None if labelled else protocols.count_unknown(dataset, users),
          "cold_test_share": dataset.report.get("audit", {}).get("cold_test_share"),
          "model": own.info["model"], "parameters": own.info["parameters"], "bytes": own.info["bytes"],
          "epochs": own.result["epochs"], "training_seconds": own.result["seconds"]}


def _check(teacher, student, split, options):
  if student is not None and teacher is None:
    raise InputError("`student` needs `teacher`: the transfer ratio is measured between them")
  if split not in ("validation", "test"):
    raise InputError(f"`split={split}`: choose from validation, test")
  if options.history != "train" and split != "test":
    raise InputError(f"`history={options.history}`: only on the test split")


def _named(run, otherwise) -> str:
  """The directory of a run; `otherwise` for a run without one."""
  return (run.workdir or otherwise) if isinstance(run, Fitted) else os.fspath(run)


def _open(run) -> _Opened:
  """Raises InputError if a run directory is damaged, or its training is not finished."""
  if isinstance(run, Fitted):
    return _Opened(run.info, run.result, run.history, None)
  found = run_directory.read_finished(run)
  return _Opened(found.info, found.result, found.history, found.seal)


def _key(run):
  """Equal for the same run: its evaluation is computed once."""
  return id(run) if isinstance(run, Fitted) else os.path.realpath(run)


def _dataset(run, info, split, data_dir, cache_dir) -> Dataset:
  """The data of a run, with all splits if they can be loaded. Raises InputError if it has changed since training."""
  if isinstance(run, Fitted) and run.dataset.test is not None:
    return feature_files.detach(run.dataset, info.get("features", []))
  try:
    return data.load(info["data"], data_dir, cache_dir, ("train", "validation", "test"), info.get("data_memory", 0.0),
                     expected=info["hashes"])
  except InputError:
    if isinstance(run, Fitted) and split == "validation":  # data that was given as an object
      return feature_files.detach(run.dataset, info.get("features", []))
    raise


def _chosen(metrics, kind) -> metric_names.Metrics:
  try:
    if isinstance(metrics, str):
      if sampled := [name for name in metric_names.split(metrics) if name and metric_names.read(name, kind).sampled]:
        raise ValueError(f"{sampled[0]!r}: the option `sampled` gives every metric for sampled candidates")
    return metric_names.usual(kind) | metrics if not isinstance(metrics, str) else metric_names.chosen(
        metric_names.split(metrics), kind)
  except ValueError as error:
    raise InputError(f"`metrics`: {error}") from None


def _differences(own, other) -> dict[str, dict[str, Any]]:
  """Paired tests for every metric with values of at least two users."""
  def several(value):
    return value.ndim and np.count_nonzero(np.isfinite(value)) > 1

  return significance.compare_all({name: value for name, value in own.items() if several(value)}, other)


def _transfer(teacher, student, distilled, metrics) -> dict[str, Any]:
  """Transfer ratios from values of users of teacher and student, {metric: [V] or []}, and means of the run."""
  ends = protocols.means(teacher), protocols.means(student)
  found: dict[str, Any] = transfer_ratios({
      name: Measured(ends[0][name], ends[1][name], value, goodness(name, metrics),
                     (teacher[name], student[name]) if teacher[name].ndim else None)
      for name, value in distilled.items()})
  if "auc" in distilled:
    found["relative_improvement"] = relative_improvement(distilled["auc"], ends[1]["auc"])
  return found


def goodness(column: str, metrics: metric_names.Metrics | None = None) -> Callable[[Any], Any]:
  """The function that maps values of a column to numbers of which the higher one is better.

  Of a metric that neither `metrics` nor its name tells, a higher value counts as better.
  """
  name = metric_names.computed(column)
  try:
    metric = metrics[name] if metrics and name in metrics else metric_names.of_column(name)
  except ValueError:
    return np.asarray
  return functools.partial(metric_names.goodness, metric)


def _own_epochs(opened, metrics) -> dict[str, float]:
  """For runs with `log_test`: test metrics of each cut-off of `monitor`, at its own best validation epoch."""
  lines, found, monitor = [line for line in opened.history if "test" in line], {}, opened.result["monitor"]
  for name in metric_names.split(monitor) if lines and monitor != LAST else ():
    values = [goodness(name, metrics)(line["validation"][name]) for line in lines]
    best, cutoff = lines[int(np.argmax(np.nan_to_num(values, nan=-np.inf)))], name.partition("@")[2]
    for metric in (m for m in best["test"] if m == name or (cutoff and m.partition("@")[2] == cutoff)):
      found[f"{metric[:-1]}, own epoch)" if metric.endswith(")") else f"{metric}(own epoch)"] = best["test"][metric]
  return found


def _candidates(dataset, split, mask_validation) -> str:
  if dataset.contexts is not None:
    return f"{dataset.num_items} labels"
  masked = "training and validation" if mask_validation and split == "test" else "training"
  return f"all items but the user's {masked} items"


def _values(run, dataset, split, options, metrics):
  """(evaluated users [V], {metric: [V]})."""
  if dataset.stream is not None:
    return streaming.measure(*loading.windowed_network(run, dataset), streaming.Protocol(
        dataset, split, options.mask_validation, options.sampled, options.sampled_seed), metrics)
  module, variables = loading.network(run, protocols.with_history(dataset, options.history))
  layout = protocols.layout(dataset, split, options.mask_validation, options.sampled, options.sampled_seed)
  return protocols.measure(module, variables, layout, metrics)


def _against_teacher(run, teacher, dataset, split, info, info_of_teacher) -> dict[str, Any]:
  ratio = {"compression_ratio": info_of_teacher["parameters"] / max(info["parameters"], 1)}
  if dataset.contexts is not None or dataset.stream is not None:
    return ratio
  found = agreement.measure(loading.network(run, dataset), loading.network(teacher, dataset), dataset, split)
  return ratio | {"agreement": found} | {name: found[name] for name in (_OVERLAP,) if name in found}
