"""Makes tables of runs: a TOML file lists the rows. Finished runs are reused, unfinished runs are resumed."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
from typing import Any

import numpy as np

from kd_jax import __version__, cli, data, registry
from kd_jax.base import InputError
from kd_jax.evaluation import membership, metric_names, run_report, sealed_report
from kd_jax.evaluation.sealed_report import Stored
from kd_jax.metrics import significance
from kd_jax.metrics.transfer import Measured, transfer_ratios
from kd_jax.runs import compress, jobs, loop, sweep
from kd_jax.runs.options import FitOptions
from kd_jax.storage import run_directory, sealed
from kd_jax.storage.run_directory import Finished
from kd_jax.tables import figures, html_page, of_runs, page, verdict
from kd_jax.tables.toml_file import (
    NAMES_ROWS,
    arguments,
    choose,
    directories,
    in_order,
    load,
    others,
    run_dir,
    with_pairs,
)

_GROUPS = ("warm", "cold", "popular", "unpopular", "known", "unknown", "active", "inactive")


def _fold(given, folds) -> list[str]:
  """The arguments, with the data set replaced by one fold; the seed is the number of the fold. Raises InputError."""
  options = cli.parse_fit(given)
  call = registry.parse("data", options.data, "data").changed(folds=folds, fold=options.seed)
  registry.parse("data", str(call), "folds")  # raises if the data set has no folds
  return [*given, f"--data={call}"]


def reproduce(name: str, workdir: str, seeds: int | None, data_dir: str | None, cache_dir: str | None,
              folds: int | None = None, rows: list[str] | None = None, together: bool = False,
              at_a_time: int = 1, pairs: str = "", allow_code: str | None = None) -> dict:
  """Trains and evaluates missing runs, and writes NAME.json, .md, .png and .html into `workdir`. Returns the JSON.

  `seeds` is the number of seeds. `folds`: k-fold cross-validation with k seeds; seed s tests on fold s. `rows`: only
  these rows and the rows that they learn from. `together` trains all seeds of a row at once, with the same results.
  `at_a_time`: number of runs at the same time, in separate processes. `pairs`: pairs of rows to compare, instead of
  those in the table. `allow_code`: see `FitOptions`. Raises InputError for a comma in `workdir`, or if a run diverges
  or lacks a metric; then no table is written. If a run diverges, the other seeds of its row are still finished.
  """
  jobs.check(at_a_time)
  if "," in str(workdir):
    raise InputError(f"`workdir={workdir}`: no comma: rows name their teachers by paths with commas between them")
  table = choose(load(name), rows) if rows else load(name)
  table = with_pairs(table, pairs) if pairs else table
  seeds = folds or seeds or table.get("seeds", 3)
  runs_dir = pathlib.Path(workdir) / "runs"
  own = [f"--{k}={v}" for k, v in (("data_dir", data_dir), ("cache_dir", cache_dir), ("allow_code", allow_code)) if v]
  ordered = in_order(name, table["row"])  # teachers first
  reports, metric, number = {row["row"]: {} for row in table["row"]}, table["metrics"][0], itertools.count(1)
  every = [tuple(range(seeds))] if together else [(seed,) for seed in range(seeds)]
  calls = {(row["row"], at_once): (table, row, at_once, runs_dir, own, folds)
           for at_once, row in itertools.product(every, ordered)}
  for (row, at_once), made in _done(calls, at_a_time):
    for seed, found in zip(at_once, made, strict=True):
      if missing := [m for m in table["metrics"] if m not in found["metrics"]]:
        raise InputError(f"{name}: metrics: {', '.join(missing)} is none of row {row!r}; there are: "
                         f"{', '.join(sorted(found['metrics']))}")
      reports[row][seed] = found
      print(f"{next(number)}/{seeds * len(ordered)}  {row}, seed {seed}: test {metric} {_number(found, metric):.4f}, "
            f"{found['epochs']} epochs in {found['training_seconds']:.1f} s", flush=True)
  reports = {row: [found for _, found in sorted(made.items())] for row, made in reports.items()}
  runs, stored = _sealed(reports, runs_dir)
  values = _values_of_users(table, stored)
  result = _result(table, reports, seeds)
  _add_transfer(table, reports, result["rows"], values)
  for row, made in zip(table["row"], result["rows"], strict=True):
    made["test_curve"] = _beside_published(row, runs[row["row"]])
  monitor = runs[ordered[0]["row"]][0].result["monitor"]
  monitor = table["metrics"][0] if monitor == metric_names.LAST else metric_names.split(monitor)[0]
  result |= {"comparisons": _compare(table, reports, values), "monitor": monitor, "folds": folds,
             "made_by": _made_by([run for row in ordered for run in runs[row["row"]]])}
  root, curves = pathlib.Path(workdir), _curves(table, runs, monitor)
  sealed.write_json_atomic(root / f"{table['name']}.json", result)
  sealed.write_atomic(root / f"{table['name']}.md", page.markdown(table, result).encode())
  sealed.write_atomic(root / f"{table['name']}.png", figures.draw(result, curves))
  shown = {row: run_dir(runs_dir, row, 0) for row in _shown(result)}
  whole = html_page.write(table["title"], table.get("about", ""), result, curves, _origins(name, workdir, runs),
                          of_runs.lists(shown, data_dir, cache_dir, {}))
  sealed.write_atomic(root / f"{table['name']}.html", whole.encode())
  return result


def _shown(result) -> list[str]:
  """The rows whose lists the page shows: teacher, plain student, and the best distilled and compressed rows."""
  best = [verdict.best(result, kind) for kind in ("distilled", "compressed")]
  named = [result["teacher_row"], result["student_row"], *(row and row["row"] for row in best)]
  return list(dict.fromkeys(row for row in named if row)) or [result["rows"][0]["row"]]


def _origins(name, workdir, runs) -> list[html_page.Origin]:
  command = f"python scripts/reproduce.py --table={name} --workdir={workdir}"
  return [html_page.Origin(row, f'{command} --rows="{row}"', [run.seal for run in made]) for row, made in runs.items()]


def _done(calls, at_a_time):
  """Yields ((row, seeds), reports) of every call of `_made`, in order, or as processes finish."""
  if at_a_time == 1:
    return ((key, _made(*call)) for key, call in calls.items())
  learns_from = {(row, at_once): {(other, at_once) for key in NAMES_ROWS for other in others(call[1], key)}
                 for (row, at_once), call in calls.items()}
  for options in {options.data: options for call in calls.values() for options in _options(*call)}.values():
    data.load(options.data, options.data_dir, options.cache_dir)  # prepare data once; this also prints its terms of use
  return jobs.run(at_a_time, _made, calls, learns_from)


def _options(table, row, at_once, runs_dir, own, folds) -> list[FitOptions]:
  """The options of a row's runs; of a compressed row, those of the runs that it is made from, in its directories."""
  trained = _trained(table, row)
  given = [arguments(table, trained, seed, run_dir(runs_dir, row["row"], seed), runs_dir, own) for seed in at_once]
  return [cli.parse_fit(_fold(x, folds) if folds else x) for x in given]


def _made(table, *of_row) -> list[dict[str, Any]]:
  """The reports of a row's runs. Unfinished runs are trained together first."""
  runs_of, (row, at_once, runs_dir, *_) = _options(table, *of_row), of_row
  if "of" in row:
    for seed, options in zip(at_once, runs_of, strict=True):
      (source,) = directories(row, "of", runs_dir, seed)
      compress.compress_run(source, row["compress"], options.workdir, options.data_dir, options.cache_dir,
                            options.allow_code)
  else:
    sweep.check(loop.train_many(runs_of))
  return [_evaluate(table, pathlib.Path(options.workdir), options, _compared_with(table, row, runs_dir, seed))
          for seed, options in zip(at_once, runs_of, strict=True)]


def _trained(table, row) -> dict[str, Any]:
  """The row itself; of a compressed row, the row whose runs were trained."""
  by_name = {one["row"]: one for one in table["row"]}
  while "of" in row:
    row = by_name[others(row, "of")[0]]
  return row


def _compared_with(table, row, runs_dir, seed) -> str | None:
  """The run whose lists a row's run is compared with, if the table asks for `agreement`."""
  if not table.get("agreement") or row["row"] == table.get("teacher_row"):
    return None
  named = [*directories(row, "of", runs_dir, seed), *directories(row, "teacher", runs_dir, seed)]
  whole = [run_dir(runs_dir, table["teacher_row"], seed)] if "teacher_row" in table else []
  return str([*named, *whole][0]) if named or whole else None


def _evaluate(table, directory, of_run, teacher) -> dict[str, Any]:
  """The stored report of a finished run; evaluates the run unless the report is of this training and these options."""
  columns = dict.fromkeys(map(metric_names.computed, table["metrics"]))
  options = dataclasses.replace(table["evaluate"], metrics=",".join(columns))
  wanted = sealed_report.identity(run_directory.read_finished(directory).seal, options)
  stored = sealed_report.read(directory, "test")
  if stored is not None and not sealed_report.difference(stored.report, wanted):
    if columns.keys() <= stored.report["metrics"].keys() and _has(stored.report, table, teacher):
      sealed_report.copy(directory, "test", stored.report)  # in case that a kill left an older one
      return stored.report
  measured = {name: table.get(name, False) for name in ("cost", "attack")}
  return run_report.evaluate_run(str(directory), teacher=teacher, **measured, data_dir=of_run.data_dir,
                                 cache_dir=of_run.cache_dir, allow_code=of_run.allow_code, options=options)


def _has(report, table, teacher) -> bool:
  """Whether a report has cost, membership and the agreement with the teacher's run of now, if the table asks for them.
  """
  if (table.get("cost") and "cost" not in report) or (table.get("attack") and "membership" not in report):
    return False
  return teacher is None or (report.get("teacher") == teacher and "agreement" in report and
                             report["others"].get(teacher) == run_directory.read_finished(teacher).seal)


def _sealed(reports, runs_dir) -> tuple[dict[str, list[Finished]], dict[str, list[Stored]]]:
  """The runs and the stored evaluations of every row, one per seed. Raises InputError if one is not of `reports`."""
  runs: dict[str, list[Finished]] = {row: [] for row in reports}
  stored: dict[str, list[Stored]] = {row: [] for row in reports}
  for row, made in reports.items():
    for seed, report in enumerate(made):
      directory = run_dir(runs_dir, row, seed)
      run, found = run_directory.read_finished(directory), sealed_report.read(directory, "test")
      if found is None or found.report != report or run.seal != report["seal"]:
        raise InputError(f"{directory}: was changed while the table was made; start the command again")
      runs[row].append(run)
      stored[row].append(found)
  return runs, stored


def _result(table, reports, seeds) -> dict[str, Any]:
  rows = []
  for row in table["row"]:
    made = reports[row["row"]]
    found = {m: _summary([_number(r, m) for r in made]) for m in table["metrics"]}
    for metric, published in row.get("published", {}).items():
      found[metric] |= _judge(found[metric], published, row.get("tolerance", table.get("tolerance")))
    groups = [name for name in (f"recall@10({group})" for group in _GROUPS) if name in made[0]["metrics"]]
    named = row.get("teacher", [])  # "row@50" is no row of the table
    rows.append({"row": row["row"], "kind": _kind(row), "method": _method(row),
                 "teachers": [named] if isinstance(named, str) else named, "model": made[0]["model"],
                 "parameters": made[0]["parameters"],
                 "bytes": made[0]["bytes"], "metrics": found, "note": row.get("note"),
                 "agreement": _agreement(table, made), "cost": _cost(table, row, reports),
                 "membership": _membership(table, made),
                 "groups": {name: _summary([_number(r, name) for r in made]) for name in groups},
                 "epochs": [r["epochs"] for r in made],
                 "training_seconds": [round(r["training_seconds"], 2) for r in made]})
  first = next(iter(reports.values()))[0]
  return {"table": table["name"], "title": table["title"], "source": table.get("source"), "seeds": seeds,
          "data": first["data"], "synthetic": first["synthetic"], "cold_test_share": first["cold_test_share"],
          "candidates": first["candidates"], "history": first["options"]["history"], "users": first["users"],
          "evaluated": first["evaluated"], "users_without_training": first["users_without_training"],
          "teacher_row": table.get("teacher_row"), "student_row": table.get("student_row"),
          "higher_is_better": of_runs.is_higher_better(table["metrics"][0]), "kd_jax": __version__, "rows": rows}


def _kind(row) -> str:
  return "compressed" if "of" in row else "distilled" if _method(row) else "trained"


def _method(row) -> str | None:
  """What a row distils by; None for a row that does not."""
  return next((flag.removeprefix("--kd=") for flag in row.get("flags", []) if flag.startswith("--kd=")), None)


def _agreement(table, made) -> dict[str, Any]:
  """Summaries of the agreement with the teacher; {} for a row that has none."""
  named = [name for name in table.get("agreement", ()) if all(name in report.get("agreement", {}) for report in made)]
  return {name: _summary([report["agreement"][name] for report in made]) for name in named}


def _membership(table, made) -> dict[str, Any]:
  """Summaries of "scores auc", "scores tpr" ... of every attack; {} if the table does not ask for attacks."""
  if not table.get("attack"):
    return {}
  return {f"{attack} {rate}": _summary([_finite(report["membership"][attack][rate]) for report in made])
          for attack in membership.ATTACKS for rate in ("auc", "tpr")}


def _cost(table, row, reports) -> dict[str, Any]:
  """Summaries of the cost of a row, and of its training; {} if the table does not ask for it."""
  if not table.get("cost"):
    return {}
  found = [of_runs.flat_cost(report["cost"]) for report in reports[row["row"]]]
  return {name: _summary([one[name] for one in found]) for name in found[0]} | {
      "training_seconds": _summary([report["training_seconds"] for report in reports[row["row"]]]),
      "training_seconds_with_others": _summary(_seconds_of_all(table, row, reports))}


def _seconds_of_all(table, row, reports) -> list[float]:
  """Training time of a row's runs and of all runs that they learn from, start from or are made of, by seed."""
  by_name, needed, waiting = {one["row"]: one for one in table["row"]}, set(), [row["row"]]
  while waiting:
    needed.add(name := waiting.pop())
    waiting += [other for key in NAMES_ROWS for other in others(by_name[name], key) if other not in needed]
  trained = [name for name in needed if "of" not in by_name[name]]
  return [sum(reports[name][seed]["training_seconds"] for name in trained) for seed in range(len(reports[row["row"]]))]


def _number(report, metric) -> float:
  return _finite(report["metrics"][metric])


def _finite(value) -> float:
  """A value of a stored report; NaN for null, which stands for it there."""
  return math.nan if value is None else value


def _summary(values) -> dict[str, Any]:
  std = float(np.std(values, ddof=1)) if len(values) > 1 else None
  return {"mean": float(np.mean(values)), "std": std, "values": values}


def _judge(summary, published, tolerance) -> dict[str, Any]:
  """The difference from a published value and, with a tolerance, the verdict: within, above or below."""
  difference = summary["mean"] - published
  found = {"published": published, "difference": difference}
  if tolerance is None:
    return found
  allowed = max(tolerance.get("absolute", 0.0), tolerance.get("relative", 0.0) * abs(published),
                tolerance.get("stds", 0.0) * (summary["std"] or 0.0))
  verdict = "within" if abs(difference) <= allowed else "above" if difference > 0 else "below"
  return found | {"tolerance": allowed, "verdict": verdict}


def _values_of_users(table, stored) -> dict[str, dict[str, np.ndarray]]:
  """{row: {metric: [S, V]}} of the metrics that have values of users in every run."""
  columns = [m for m in table["metrics"] if all(m in found.values for made in stored.values() for found in made)]
  return {row: {m: np.stack([found.values[m] for found in made]) for m in columns} if _same_users(made) else {}
          for row, made in stored.items()}


def _same_users(made) -> bool:
  """Whether all evaluations are of the same users in the same order. Folds are not."""
  return len({found.report["users_sha256"] for found in made}) == 1


def _compare(table, reports, values) -> list[dict[str, Any]]:
  """Paired tests between rows, on the metrics that have values of users."""
  kept = [metric for metric in table["metrics"] if all(metric in of_row for of_row in values.values())]
  pairs = _pairs(table, reports) if kept else []
  for pair in pairs:
    _check_paired(table, reports, *pair)
  return significance.compare_rows(values, pairs, kept)


def _check_paired(table, reports, row, other):
  """Raises InputError if two rows were evaluated on different users."""
  if reports[row][0]["users_sha256"] != reports[other][0]["users_sha256"]:
    raise InputError(f"{table['name']}: rows {row!r} and {other!r} were evaluated on different users and cannot be "
                     "compared")


def _pairs(table, reports) -> list[tuple[str, str]]:
  """The pairs of rows to compare, see `compare` in toml_file.py."""
  if "compare" in table:
    return [tuple(pair) for pair in table["compare"]]
  distilled, student = _distilled(table), table.get("student_row")
  pairs = [(row, student) for row in distilled if student]
  if distilled:
    first = table["metrics"][0]
    means = [run_report.goodness(first)(np.mean([_number(r, first) for r in reports[row]])) for row in distilled]
    best = distilled[int(np.argmax(np.nan_to_num(means, nan=-np.inf)))]
    pairs += [(best, row) for row in reports if row not in (best, student)]
  return pairs


def _between(table) -> list[str]:
  """The rows that have a transfer ratio: distilled ones, and compressed ones of others than the plain student."""
  compressed = [row["row"] for row in table["row"] if "of" in row and _trained(table, row)["row"] != table.get(
      "student_row")]
  return _distilled(table) + compressed


def _distilled(table) -> list[str]:
  return [row["row"] for row in table["row"] if _method(row)]


def _curves(table, runs, metric) -> dict[str, list[tuple[list[int], list[float]]]]:
  """{row: [(epochs, validation values) for every seed]} for rows that are trained in epochs."""
  found = {row["row"]: [of_runs.curve(run, metric) for run in runs[row["row"]]] for row in table["row"]}
  return {row: curves for row, curves in found.items() if all(epochs for epochs, _ in curves)}


def _beside_published(row, runs) -> dict[str, list[dict[str, Any]]]:
  """{metric: [{epoch, published, mean, std, values}]} for the points of a published curve that the runs reached."""
  found = {}
  for metric, points in row.get("published_curve", {}).items():
    lines = [{x["epoch"]: x["test"][metric] for x in run.history if "test" in x} for run in runs]
    reached = [(epoch, value, [own[epoch] for own in lines if epoch in own]) for epoch, value in points]
    found[metric] = [{"epoch": e, "published": value} | _summary(values) for e, value, values in reached if values]
  return found


def _made_by(runs) -> dict[str, Any]:
  """The distinct commits, versions and devices of runs, and their total training time in seconds."""
  infos = [run.info for run in runs]

  def distinct(values):
    return sorted({value for value in values if value})

  packages = {name: distinct(info["versions"][name] for info in infos) for name in infos[0]["versions"]}
  return {"commits": distinct(info.get("commit") for info in infos), "versions": packages,
          "python": distinct(info["python"] for info in infos), "devices": distinct(info["devices"] for info in infos),
          "seconds": sum(run.result["seconds"] for run in runs)}


def _add_transfer(table, reports, rows, values):
  """The transfer ratio of every distilled row, from the means over seeds; values of users are averaged over seeds."""
  by_name = {row["row"]: row for row in rows}
  ends = [table.get(key) for key in ("teacher_row", "student_row")]
  if not by_name.keys() >= set(ends):
    return
  _check_paired(table, reports, *ends)

  def measured(row, metric):
    means = [found["metrics"][metric]["mean"] for found in (*(by_name[end] for end in ends), row)]
    of_users = [values[end][metric].mean(axis=0) for end in ends if metric in values[end]]
    return Measured(*means, run_report.goodness(metric), tuple(of_users) or None)

  for row in rows:
    if row["row"] in _between(table):
      row |= transfer_ratios({metric: measured(row, metric) for metric in table["metrics"]})
