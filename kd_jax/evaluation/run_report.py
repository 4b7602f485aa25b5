"""What a finished run is worth: metrics on test, size, and what distillation gained."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import data
from kd_jax.base import InputError
from kd_jax.data import index
from kd_jax.evaluation import model_selection, protocols, streaming
from kd_jax.metrics import label_metrics, ranked, significance
from kd_jax.ranking import rank
from kd_jax.storage import run_directory, sealed
from kd_jax.teachers import loading

_OVERLAP = 10  # k of teacher-student overlap@k
_VALUES = "values of users"


def evaluate_run(run: str, *, split: str = "test", mask_validation: bool = False,
                 history: str = "train", sampled: int = 0, sampled_seed: int = 0,
                 teacher: str | None = None, student: str | None = None, others: Sequence[str] = (),
                 data_dir: str | None = None, cache_dir: str | None = None) -> dict[str, Any]:
  """Evaluates the best epoch of a run, chosen on validation, and writes RUN/test.json (or validation.json).

  Every metric's value of every user goes to RUN/test_values, see `user_values`.
  With `teacher`, a run on the same data: compression ratio and, of data that is not streamed, overlap@10. With
  `student` too, the plain student: the transfer ratio of every metric, and the relative improvement of its AUC. With
  `others`, runs on the same data: whether the run differs from them, `significance.compare` of every metric of users,
  whose p is of that one test.
  Raises InputError.
  """
  if student and not teacher:
    raise InputError("--student needs --teacher: the transfer ratio is measured between them")
  info, result = run_directory.read_info(run), run_directory.read_json(pathlib.Path(run) / run_directory.RESULT)
  dataset = data.load(info["data"], data_dir, cache_dir, ("train", "validation", "test"), info.get("data_memory", 0.0))
  if dataset.hashes != info["hashes"]:
    raise InputError(f"--run={run}: its data has changed since")
  if history != "train" and split != "test":
    raise InputError(f"--history={history}: only on the test split")
  chosen = options(mask_validation, history, sampled, sampled_seed)
  users, values = _metrics(run, dataset, split, **chosen)
  of = functools.cache(lambda other: _metrics(other, dataset, split, **chosen)[1])
  if others and not any(value.ndim for value in values.values()):
    raise InputError("--compare: no metric of this data is a mean over users, as the tests need")
  found = protocols.means(values)
  report = {"run": str(run), "data": info["data"], "synthetic": info["synthetic"], "split": split, "options": chosen,
            "candidates": _candidates(dataset, split, mask_validation), "users": len(users),
            "evaluated": "users" if dataset.contexts is None else "contexts",
            "metrics": found | (_own_epochs(run, result["monitor"]) if split == "test" else {}),
            "cold_test_share": dataset.report["audit"].get("cold_test_share"),
            "model": info["model"], "parameters": info["parameters"], "bytes": info["bytes"],
            "epochs": result["epochs"], "training_seconds": result["seconds"]}
  if teacher:
    report |= _against_teacher(run, teacher, dataset, info)
  if teacher and student:
    ends = [protocols.means(of(r)) for r in (teacher, student)]
    report["transfer_ratio"] = {k: ranked.transfer_ratio(ends[0][k], ends[1][k], v) for k, v in found.items()}
    if "auc" in found:
      report["relative_improvement"] = label_metrics.relative_improvement(found["auc"], ends[1]["auc"])
  if others:
    report["differences"] = {r: _differences(values, of(r)) for r in others}
  _save_values(run, split, dataset.user_ids[users], values)
  sealed.write_json_atomic(pathlib.Path(run) / f"{split}.json", report)
  return report


def _differences(own, other) -> dict[str, dict[str, Any]]:
  """Of every metric that two users at least have a value of."""
  several = lambda value: value.ndim and np.count_nonzero(np.isfinite(value)) > 1
  return {name: significance.compare(value, other[name]) for name, value in own.items() if several(value)}


def _own_epochs(run, monitor) -> dict[str, float]:
  """Test metrics where every cut-off of --monitor has the epoch that is best by its own metric, with --log_test."""
  log, found = pathlib.Path(run) / run_directory.METRICS, {}
  lines = [line for line in run_directory.read_metrics(run) if "test" in line] if log.exists() else []
  for name in model_selection.names(monitor) if lines and monitor != model_selection.LAST else ():
    best, cutoff = max(lines, key=lambda line: line["validation"][name]), name.partition("@")[2]
    for metric in (m for m in best["test"] if m.partition("@")[2] == cutoff):
      found[f"{metric[:-1]}, own epoch)" if metric.endswith(")") else f"{metric}(own epoch)"] = best["test"][metric]
  return found


def options(mask_validation: bool = False, history: str = "train", sampled: int = 0,
            sampled_seed: int = 0) -> dict[str, Any]:
  """What of a protocol is chosen when evaluating, as test.json records it."""
  return {"mask_validation": mask_validation, "history": history, "sampled": sampled, "sampled_seed": sampled_seed}


def _save_values(run, split, ids, values):
  values = {name: value for name, value in values.items() if value.ndim}
  with sealed.writing(pathlib.Path(run) / f"{split}_values", _VALUES, {"metrics": sorted(values)}) as folder:
    np.savez_compressed(folder / "values.npz", user_ids=ids.astype(np.str_), **values)


def user_values(run: str | pathlib.Path, split: str, wanted: list[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """(ids of the evaluated users [V], {metric: [V] float64}) of an evaluated run, those of `wanted` that there are.

  NaN where a user has no item of a metric's group. Raises InputError: not evaluated, or damaged.
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


def _metrics(run, dataset, split, mask_validation, history, sampled, sampled_seed):
  """(evaluated users [V], {metric: [V]})."""
  if dataset.stream is not None:
    return streaming.measure(*loading.windowed_network(run, dataset), streaming.Protocol(
        dataset, split, mask_validation, sampled, sampled_seed))
  module, variables = loading.network(run, protocols.with_history(dataset, history))
  return protocols.measure(module, variables, protocols.layout(dataset, split, mask_validation, sampled, sampled_seed))


def _against_teacher(run, teacher, dataset, info) -> dict[str, Any]:
  ratio = {"compression_ratio": run_directory.read_info(teacher)["parameters"] / max(info["parameters"], 1)}
  if dataset.contexts is not None or dataset.stream is not None:
    return ratio
  seen = jax.tree.map(jnp.asarray, index.seen_by_users(dataset))
  lists = [np.asarray(rank.network_top_k(*loading.network(r, dataset), seen, k=_OVERLAP, exclude_seen=True).items)
           for r in (run, teacher)]
  return ratio | {f"overlap@{_OVERLAP}": float(ranked.overlap(*lists).mean())}
