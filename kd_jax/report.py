"""What a finished run is worth: metrics on test, size, and what distillation gained."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import artifacts, data, evaluate, metrics, ranking, runs, teachers
from kd_jax.base import InputError

_OVERLAP = 10  # k of teacher-student overlap@k


def evaluate_run(run: str, *, split: str = "test", mask_validation: bool = False,
                 history: str = "train", sampled: int = 0, sampled_seed: int = 0,
                 teacher: str | None = None, student: str | None = None,
                 data_dir: str | None = None, cache_dir: str | None = None) -> dict[str, Any]:
  """Evaluates the best epoch of a run, chosen on validation, and writes RUN/test.json (or validation.json).

  With `teacher`, a run on the same data: compression ratio and overlap@10. With `student` too, the plain
  student: the transfer ratio of every metric. Raises InputError.
  """
  if student and not teacher:
    raise InputError("--student needs --teacher: the transfer ratio is measured between them")
  info, result = runs.read_info(run), runs.read_json(pathlib.Path(run) / runs.RESULT)
  dataset = data.load(info["data"], data_dir, cache_dir, splits=("train", "validation", "test"))
  if dataset.hashes != info["hashes"]:
    raise InputError(f"--run={run}: its data has changed since")
  if history != "train" and split != "test":
    raise InputError(f"--history={history}: only on the test split")
  measure = lambda r: _metrics(r, dataset, split, mask_validation, history, sampled, sampled_seed)
  found = measure(run)
  report = {"run": str(run), "data": info["data"], "synthetic": info["synthetic"], "split": split,
            "candidates": _candidates(split, mask_validation), "history": history,
            "users": found.pop("users"), "metrics": found,
            "model": info["model"], "parameters": info["parameters"], "bytes": info["bytes"],
            "epochs": result["epochs"], "training_seconds": result["seconds"]}
  if teacher:
    report |= _against_teacher(run, teacher, dataset, info)
  if teacher and student:
    other = [measure(r) for r in (teacher, student)]
    report["transfer_ratio"] = {k: metrics.transfer_ratio(other[0][k], other[1][k], v) for k, v in found.items()}
  artifacts.write_json_atomic(pathlib.Path(run) / f"{split}.json", report)
  return report


def _candidates(split, mask_validation) -> str:
  masked = "training and validation" if mask_validation and split == "test" else "training"
  return f"all items but the user's {masked} items"


def _metrics(run, dataset, split, mask_validation, history, sampled, sampled_seed) -> dict[str, float]:
  module, variables = teachers.network(run, evaluate.with_history(dataset, history))
  users, values = evaluate.full_ranking(module, variables, evaluate.layout(dataset, split, mask_validation))
  found = {"users": len(users)} | evaluate.means(values)
  if sampled:
    held = getattr(dataset, split)
    candidates = evaluate.sampled_candidates(dataset, held, sampled, sampled_seed)
    found |= evaluate.means(evaluate.sampled_ranking(module, variables, held, candidates))
  return found


def _against_teacher(run, teacher, dataset, info) -> dict[str, Any]:
  seen = jax.tree.map(jnp.asarray, ranking.seen_of(
      dataset.train.users, dataset.train.items, dataset.num_users, dataset.num_items))
  lists = [np.asarray(ranking.network_top_k(*teachers.network(r, dataset), seen, k=_OVERLAP, exclude_seen=True).items)
           for r in (run, teacher)]
  return {"compression_ratio": runs.read_info(teacher)["parameters"] / max(info["parameters"], 1),
          f"overlap@{_OVERLAP}": float(metrics.overlap(*lists).mean())}
