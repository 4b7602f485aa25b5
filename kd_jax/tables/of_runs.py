"""A comparison of finished runs in the form of a table's JSON, and the lists of a few users by several runs."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from kd_jax import __version__, data
from kd_jax.base import Dataset, InputError
from kd_jax.data import index
from kd_jax.evaluation import metric_names, run_report, sealed_report
from kd_jax.evaluation.options import EvaluationOptions
from kd_jax.evaluation.sealed_report import Stored
from kd_jax.metrics.transfer import Measured, transfer_ratios
from kd_jax.ranking import rank
from kd_jax.serving import ranking
from kd_jax.storage import run_directory
from kd_jax.tables.html_page import Lists, Origin
from kd_jax.teachers import loading

_NORMAL = 1.96  # standard errors: a 95 % interval of a mean over many users
_USERS, _KNOWN, _LISTED = 3, 5, 10
_AGREEMENT = ("overlap@10", "rbo@10", "kendall@10", "follows_wrong@10")
METRICS = {"interactions": "ndcg@10,recall@10,coverage@10,novelty@10,diversity@10", "tags": "map,micro_f1,log_loss",
           "clicks": "auc,log_loss"}


class Asked(NamedTuple):
  """What a report of runs shows."""

  runs: Sequence[str]
  teacher: str | None = None
  student: str | None = None  # the plain student
  metrics: str = ""
  data_dir: str | None = None
  cache_dir: str | None = None
  allow_code: str | None = None


def result(asked: Asked) -> dict[str, Any]:
  """The comparison of the runs of `asked`; teacher and student stand first. Evaluates what is not stored yet.

  Intervals are over users. Raises InputError: a run is not finished, given twice, or on other data than the first.
  """
  runs = list(dict.fromkeys(run for run in (asked.teacher, asked.student, *asked.runs) if run))
  names = {run: pathlib.Path(run).name for run in runs}
  if not asked.runs:
    raise InputError("`runs`: name run directories, A,B,C")
  if len(set(names.values())) < len(runs):
    names = {run: run for run in runs}
  opened = {run: run_directory.read_finished(run) for run in runs}
  if other := [run for run in runs if opened[run].info["hashes"] != opened[runs[0]].info["hashes"]]:
    raise InputError(f"{other[0]}: trained on other data than {runs[0]}")
  kind = _kind_of_data(opened[runs[0]].info, asked)
  columns = metric_names.split(asked.metrics or METRICS[kind])
  stored = {run: _stored(run, asked, columns) for run in runs}
  first = stored[runs[0]].report
  if other := [run for run in runs if stored[run].report["users_sha256"] != first["users_sha256"]]:
    raise InputError(f"{other[0]}: evaluated on other users than {runs[0]}")
  rows = [_row(names[run], opened[run], stored[run], columns) for run in runs]
  ends = [names.get(run) for run in (asked.teacher, asked.student)]
  if asked.teacher and asked.student:
    _add_transfer(rows, {names[run]: x for run, x in stored.items()}, ends, columns)
  return {"title": f"Comparison of {len(runs)} runs", "seeds": 1, "folds": None, "rows": rows, "comparisons": [],
          **{key: first[key] for key in ("data", "synthetic", "candidates", "users", "evaluated")},
          "monitor": metric_names.split(opened[runs[0]].result["monitor"])[0], "teacher_row": ends[0],
          "student_row": ends[1], "higher_is_better": is_higher_better(columns[0]), "kd_jax": __version__}


def _kind_of_data(info, asked) -> str:
  dataset = data.load(info["data"], asked.data_dir, asked.cache_dir, memory=info.get("data_memory", 0.0),
                      expected=info["hashes"])
  return dataset.kind


def _stored(run, asked: Asked, columns) -> Stored:
  """The stored evaluation of a run; evaluates it if it lacks something."""
  options = EvaluationOptions(metrics=",".join(columns))
  found = sealed_report.read(run, "test")
  finished = run_directory.read_finished(run)
  wanted, streamed = sealed_report.identity(finished.seal, options), bool(finished.info.get("data_memory"))
  teacher = None if run == asked.teacher else asked.teacher
  if found is None or sealed_report.difference(found.report, wanted) or not set(columns) <= found.report[
      "metrics"].keys() or not (streamed or "cost" in found.report) or (
          teacher and found.report.get("teacher") != teacher):
    run_report.evaluate_run(run, teacher=teacher, cost=not streamed, data_dir=asked.data_dir, cache_dir=asked.cache_dir,
                            allow_code=asked.allow_code, options=options)
    found = sealed_report.read(run, "test")
  if found is None:
    raise InputError(f"{run}: its evaluation was removed while it was read")
  return found


def _row(name, run: run_directory.Finished, stored: Stored, columns) -> dict[str, Any]:
  report = stored.report
  groups = [name for name in report["metrics"] if name.startswith("recall@10(") and "sampled" not in name]
  kind = "compressed" if "compression" in run.info else "distilled" if run.flags.get("kd") else "trained"
  flat = flat_cost(report["cost"]) | {"training_seconds": report["training_seconds"]} if "cost" in report else {}
  return {"row": name, "kind": kind, "method": run.flags.get("kd") or None, "teachers": [], "model": report["model"],
          "parameters": report["parameters"], "bytes": report["bytes"], "note": None,
          "metrics": {m: _summary(stored, m) for m in columns}, "groups": {m: _summary(stored, m) for m in groups},
          "cost": {key: {"mean": value, "std": None, "values": [value]} for key, value in flat.items()},
          "agreement": {m: {"mean": value, "std": None, "values": [value]}
                        for m, value in report.get("agreement", {}).items() if m in _AGREEMENT}}


def flat_cost(cost: Mapping[str, Any]) -> dict[str, float]:
  """The cost of a report, with a name for every percentile: "latency_256_p95"."""
  latency = {f"latency_{count}_{p}": value for count, found in cost["latency_ms"].items() for p, value in found.items()}
  return {name: value for name, value in cost.items() if name != "latency_ms"} | latency


def _summary(stored: Stored, metric) -> dict[str, Any]:
  """The mean, with a normal 95 % interval over users if there are values of at least two."""
  value = stored.report["metrics"][metric]
  mean = math.nan if value is None else value
  found = {"mean": mean, "std": None, "values": [mean]}
  own = stored.values.get(metric)
  own = own[np.isfinite(own)] if own is not None else []
  if len(own) < 2:
    return found
  half = _NORMAL * float(np.std(own, ddof=1)) / math.sqrt(len(own))
  return found | {"interval": [mean - half, mean + half]}


def _add_transfer(rows, stored: Mapping[str, Stored], ends, columns):
  """The transfer ratio of every row but teacher and student."""
  by_name = {row["row"]: row for row in rows}
  for row in rows:
    if row["row"] in ends:
      continue
    measured = {}
    for metric in columns:
      means = [by_name[name]["metrics"][metric]["mean"] for name in (*ends, row["row"])]
      of_users = tuple(stored[name].values[metric] for name in ends if metric in stored[name].values)
      measured[metric] = Measured(*means, run_report.goodness(metric), of_users if len(of_users) == 2 else None)
    row |= transfer_ratios(measured)


def origins(asked: Asked, names: Sequence[str]) -> list[Origin]:
  """The command that repeats each run, and its seal."""
  runs = list(dict.fromkeys(run for run in (asked.teacher, asked.student, *asked.runs) if run))
  return [Origin(name, command(run), [run_directory.read_finished(run).seal])
          for name, run in zip(names, runs, strict=True)]


def command(run: str | os.PathLike) -> str:
  """The command that makes a run."""
  found = run_directory.read_finished(run)
  if "compression" in found.info:
    return f'python scripts/compress.py --run=RUN --compress="{found.info["compression"]["chain"]}" --workdir={run}'
  return f"python scripts/train.py --flagfile={run}/{run_directory.FLAGS} --workdir={run}"


def lists(runs: Mapping[str, str | os.PathLike], data_dir: str | None, cache_dir: str | None,
          titles: Mapping[str, str]) -> list[Lists]:
  """The best items of a few users by runs {row: directory}, with their `titles` {item id: title} or ids.

  The users are the first held-out ones in the order of priorities, the same for all runs. [] for labelled or streamed
  data.
  """
  info = run_directory.read_finished(next(iter(runs.values()))).info
  dataset = data.load(info["data"], data_dir, cache_dir, ("train", "validation", "test"), info.get("data_memory", 0.0),
                      expected=info["hashes"])
  if dataset.contexts is not None or dataset.stream is not None:
    return []
  order = index.priority(dataset.user_ids)
  users = sorted(set(dataset.test.users.tolist()), key=lambda user: order[user])[:_USERS]
  tops = {row: _top(run, dataset, users) for row, run in runs.items()}

  def title(item):
    return titles.get(str(dataset.item_ids[item]), str(dataset.item_ids[item]))

  found = []
  for place, user in enumerate(users):
    held = set(dataset.test.items[dataset.test.users == user].tolist())
    known = dataset.train.items[dataset.train.users == user][:_KNOWN]
    found.append(Lists(str(dataset.user_ids[user]), [title(i) for i in known], {
        row: [(title(i), i in held) for i in top[place]] for row, top in tops.items()}))
  return found


def _top(run, dataset: Dataset, users) -> list[list[int]]:
  """The best items of users by a run, without training items."""
  scores = np.array(rank.scorer(*loading.network(run, dataset))(jnp.asarray(users)))
  priority = index.priority(dataset.item_ids)
  for row, user in enumerate(users):
    scores[row, dataset.train.items[dataset.train.users == user]] = -np.inf
  return [ranking.best(row, priority, _LISTED).tolist() for row in scores]


def curves(runs: Mapping[str, str | os.PathLike], metric: str) -> dict[str, list[tuple[list[int], list[float]]]]:
  """{row: [(epochs, values)]} of the validation metric of runs {row: directory} that were trained in epochs."""
  found = {row: curve(run_directory.read_finished(run), metric) for row, run in runs.items()}
  return {row: [one] for row, one in found.items() if one[0]}


def curve(run: run_directory.Finished, metric: str) -> tuple[list[int], list[float]]:
  """(epochs, values) of a run's validation metric; empty if it was not trained in epochs."""
  lines = [x for x in run.history if np.isfinite(x.get("validation", {}).get(metric, math.nan))]
  return [x["epoch"] for x in lines], [x["validation"][metric] for x in lines]


def is_higher_better(metric: str) -> bool:
  """Whether a higher value of the metric is better."""
  goodness = run_report.goodness(metric)
  return bool(goodness(2.0) > goodness(1.0))
