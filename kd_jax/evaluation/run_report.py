"""The evaluation of a finished run: test metrics, model size, and the gain of distillation."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import data
from kd_jax.base import Dataset, InputError
from kd_jax.data import feature_files, index
from kd_jax.evaluation import metric_names, protocols, streaming
from kd_jax.evaluation.metric_names import LAST
from kd_jax.evaluation.options import EvaluationOptions
from kd_jax.metrics import significance
from kd_jax.metrics.transfer import overlap, relative_improvement, transfer_ratio
from kd_jax.ranking import rank
from kd_jax.storage import run_directory, sealed
from kd_jax.teachers import loading
from kd_jax.teachers.fitted import Fitted

_OVERLAP = 10  # k of teacher-student overlap@k
_VALUES = "values of users"
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
             split: str = "test", data_dir: str | None = None, cache_dir: str | None = None,
             **options: Any) -> Report:
  """Evaluates the best epoch of a run, chosen on validation, on the test (or validation) split.

  Runs are directories or results of `fit`; all must use the same data. `teacher` adds the compression ratio and
  overlap@10. `student`, the plain student, adds the transfer ratio of every metric; it needs `teacher`. `compare` adds
  paired tests of the differences from these runs. `options` are fields of `EvaluationOptions`.

  Writes no file; scripts/evaluate.py writes RUN/test.json. Raises InputError if a run is missing or damaged, its data
  has changed, or an option is invalid.
  """
  known = [field.name for field in dataclasses.fields(EvaluationOptions)]
  for name in options:
    if name not in known:
      raise InputError(f"evaluate has no argument {name!r}; its options are {', '.join(known)}")
  others = [compare] if isinstance(compare, str | os.PathLike | Fitted) else compare
  return _evaluate(run, teacher, student, others, split, data_dir, cache_dir, EvaluationOptions(**options))


def evaluate_run(run: str | os.PathLike, *, split: str = "test", teacher: str | None = None, student: str | None = None,
                 others: Sequence[str] = (), data_dir: str | None = None, cache_dir: str | None = None,
                 options: EvaluationOptions | None = None) -> dict[str, Any]:
  """`evaluate` for a run directory: writes RUN/test.json (or validation.json) and returns its content.

  Also writes the metric values of every user to RUN/test_values, see `user_values`. Raises InputError like `evaluate`.
  """
  found = _evaluate(run, teacher, student, others, split, data_dir, cache_dir, options or EvaluationOptions())
  _save_values(run, split, found.users, found.values)
  sealed.write_json_atomic(pathlib.Path(run) / f"{split}.json", found.details)
  return found.details


def _evaluate(run, teacher, student, others, split, data_dir, cache_dir, options) -> Report:
  _check(teacher, student, split, options)
  info, result = _info(run), _result(run)
  dataset = _dataset(run, info, split, data_dir, cache_dir)
  metrics = _chosen(options.metrics, dataset.kind)
  users, values = _values(run, dataset, split, options, metrics)

  made = {_key(run): values}

  def of(other):
    if _key(other) not in made:
      made[_key(other)] = _values(other, dataset, split, options, metrics)[1]
    return made[_key(other)]

  if others and not any(value.ndim for value in values.values()):
    raise InputError("`compare`: no metric of this data is a mean over users, as the tests need")
  found = protocols.means(values)
  details = {"run": _named(run, "in memory"), "data": info["data"], "synthetic": info["synthetic"], "split": split,
             "options": options.recorded(), "candidates": _candidates(dataset, split, options.mask_validation),
             "users": len(users), "evaluated": "users" if dataset.contexts is None else "contexts",
             "metrics": found | (_own_epochs(run, result["monitor"], metrics) if split == "test" else {}),
             "cold_test_share": dataset.report.get("audit", {}).get("cold_test_share"),
             "model": info["model"], "parameters": info["parameters"], "bytes": info["bytes"],
             "epochs": result["epochs"], "training_seconds": result["seconds"]}
  if teacher is not None:
    details |= _against_teacher(run, teacher, dataset, info)
  if teacher is not None and student is not None:
    ends = [protocols.means(of(r)) for r in (teacher, student)]
    details["transfer_ratio"] = {k: transfer_ratio(ends[0][k], ends[1][k], v) for k, v in found.items()}
    if "auc" in found:
      details["relative_improvement"] = relative_improvement(found["auc"], ends[1]["auc"])
  if others:
    details["differences"] = {_named(other, f"compare[{number}]"): _differences(values, of(other))
                              for number, other in enumerate(others)}
  return Report(details["metrics"], dataset.user_ids[users], values, details)


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


def _info(run) -> dict[str, Any]:
  return run.info if isinstance(run, Fitted) else run_directory.read_info(run)


def _result(run) -> dict[str, Any]:
  return run.result if isinstance(run, Fitted) else run_directory.read_json(
      pathlib.Path(run) / run_directory.RESULT)


def _key(run):
  """Equal for the same run: its evaluation is computed once."""
  return id(run) if isinstance(run, Fitted) else os.path.realpath(run)


def _dataset(run, info, split, data_dir, cache_dir) -> Dataset:
  """The data of a run, with all splits if they can be loaded. Raises InputError if it has changed since training."""
  if isinstance(run, Fitted) and run.dataset.test is not None:
    return feature_files.detach(run.dataset, info.get("features", []))
  try:
    dataset = data.load(info["data"], data_dir, cache_dir, ("train", "validation", "test"),
                        info.get("data_memory", 0.0))
  except InputError:
    if isinstance(run, Fitted) and split == "validation":  # data that was given as an object
      return feature_files.detach(run.dataset, info.get("features", []))
    raise
  if any(dataset.hashes.get(part) != value for part, value in info["hashes"].items()):
    where = run.workdir or "what was fitted" if isinstance(run, Fitted) else run
    raise InputError(f"`run={where}`: its data has changed since")
  return dataset


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

  return {name: significance.compare(value, other[name]) for name, value in own.items() if several(value)}


def _own_epochs(run, monitor, metrics) -> dict[str, float]:
  """For runs with `log_test`: test metrics of each cut-off of `monitor`, at its own best validation epoch."""
  lines, found = [line for line in _history(run) if "test" in line], {}
  for name in metric_names.split(monitor) if lines and monitor != LAST else ():
    choose, cutoff = max if _rises(name, metrics) else min, name.partition("@")[2]
    best = choose(lines, key=lambda line: line["validation"][name])
    for metric in (m for m in best["test"] if m == name or (cutoff and m.partition("@")[2] == cutoff)):
      found[f"{metric[:-1]}, own epoch)" if metric.endswith(")") else f"{metric}(own epoch)"] = best["test"][metric]
  return found


def _rises(name, metrics) -> bool:
  """Whether a higher value of a metric is better; True if its name cannot be parsed."""
  if name in metrics:
    return metrics[name].higher_is_better
  try:
    return metric_names.better(name, 1.0, 0.0)
  except ValueError:
    return True


def _history(run) -> list[dict[str, Any]]:
  if isinstance(run, Fitted):
    return run.history
  return run_directory.read_metrics(run) if (pathlib.Path(run) / run_directory.METRICS).exists() else []


def _save_values(run, split, ids, values):
  values = {name: value for name, value in values.items() if value.ndim}
  with sealed.writing(pathlib.Path(run) / f"{split}_values", _VALUES, {"metrics": sorted(values)}) as folder:
    np.savez_compressed(folder / "values.npz", user_ids=ids.astype(np.str_), **values)


def user_values(run: str | pathlib.Path, split: str, wanted: list[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """(ids of the evaluated users [V], {metric: [V] float64}) of an evaluated run, for the `wanted` metrics that exist.

  NaN if a user has no item in the group of a metric. Raises InputError if the run is not evaluated, or damaged.
  """
  folder = pathlib.Path(run) / f"{split}_values"
  metadata = sealed.read(folder, _VALUES)
  with np.load(folder / "values.npz", allow_pickle=False) as file:
    return file["user_ids"], {name: file[name] for name in wanted if name in metadata["metrics"]}


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


def _against_teacher(run, teacher, dataset, info) -> dict[str, Any]:
  ratio = {"compression_ratio": _info(teacher)["parameters"] / max(info["parameters"], 1)}
  if dataset.contexts is not None or dataset.stream is not None:
    return ratio
  seen = jax.tree.map(jnp.asarray, index.seen_by_users(dataset))
  lists = [np.asarray(rank.network_top_k(*loading.network(r, dataset), seen, k=_OVERLAP, exclude_seen=True).items)
           for r in (run, teacher)]
  return ratio | {f"overlap@{_OVERLAP}": float(overlap(*lists).mean())}
