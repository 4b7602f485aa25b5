"""Tables of runs: a TOML file names the rows, finished runs are reused, unfinished ones go on.

  title, about             what the table shows, and its protocol
  flags                    flags of every run
  metrics                  the columns; cut-offs of `evaluate.CUTOFFS`
  seeds                    how many, unless --seeds says otherwise
  evaluate                 {mask_validation = false, history = "train", sampled = 0}
  teacher_row, student_row the rows between which the transfer ratio is measured
  compare                  [["row", "other row"], ...] to test for significance; default: every distilled row with
                           student_row, and the best distilled row with every other
  tolerance                {absolute = 0.012, relative = 0.1, stds = 2}: the largest of these is how far from a
                           published value ours may be, in units, in shares of it, in our std over seeds
  [[row]]  row, flags      a run; `teacher = "row"` (or a list) distils from that row's run of the same seed,
                           "row@50" from what it was after 50 epochs (--keep_every), or its end if it ended before;
                           `init_from = "row"` starts from its parameters
           published       {"recall@10" = 0.0283}, and `source` of the table; a row may have its own `tolerance`
           published_curve {"recall@50" = [[1, 0.0374], [11, 0.1255]]}, test values after so many epochs; --log_test
"""

from __future__ import annotations

import itertools
import pathlib
import tomllib
from typing import Any

import numpy as np

from kd_jax import (
    __version__,
    artifacts,
    cli,
    data,
    experiment,
    figures,
    jobs,
    lookup,
    metrics,
    monitoring,
    report,
    runs,
    significance,
    sweep,
    table_page,
)
from kd_jax.base import InputError

_FOLDER = pathlib.Path(__file__).parent.parent / "configs" / "tables"
_KEYS = {"title", "about", "source", "flags", "metrics", "seeds", "evaluate", "teacher_row", "student_row", "compare",
         "tolerance", "row"}
_FROM_ROWS = ("teacher", "init_from")  # flags that name other rows
_ROW_KEYS = {"row", "flags", *_FROM_ROWS, "published", "published_curve", "tolerance", "note"}
_TOLERANCES = {"absolute", "relative", "stds"}
_GROUPS = ("warm", "cold", "popular", "unpopular")


def load(name: str) -> dict[str, Any]:
  """A table by name (configs/tables/NAME.toml) or path. Raises InputError naming file and key."""
  path = pathlib.Path(name) if name.endswith(".toml") else _FOLDER / f"{name}.toml"
  if not path.is_file():
    known = ", ".join(sorted(p.stem for p in _FOLDER.glob("*.toml")))
    raise InputError(f"--table={name}: no such table; there are: {known}")
  try:
    table = tomllib.loads(path.read_text())
  except tomllib.TOMLDecodeError as error:
    raise InputError(f"{path}: {error}") from None
  _check(path, table)
  return table | {"name": path.stem}


def _check(path, table):
  for key in ("title", "flags", "metrics", "row"):
    if key not in table:
      raise InputError(f"{path}: {key} is missing")
  unknown = set(table) - _KEYS
  for row in table["row"]:
    unknown |= set(row) - _ROW_KEYS
  for part in (table, *table["row"]):
    unknown |= set(part.get("tolerance", {})) - _TOLERANCES
  if unknown:
    raise InputError(f"{path}: unknown keys {', '.join(sorted(unknown))}")
  names, parsed = [row.get("row") for row in table["row"]], {}
  for row in table["row"]:
    if other := set(row.get("published", {})) - set(table["metrics"]):
      raise InputError(f"{path}: row {row.get('row')!r}: published {', '.join(sorted(other))} is none of the metrics")
    if set(",@") & set(str(row.get("row"))):
      raise InputError(f"{path}: row {row['row']!r}: no commas, which separate rows, and no @, before epochs")
    others = {other for flag in _FROM_ROWS for other in _others(row, flag)}
    if not others <= set(names) or names.count(row.get("row")) != 1:
      raise InputError(f"{path}: row {row.get('row')!r} is named twice or its {' or '.join(_FROM_ROWS)} is no row")
    parsed[row["row"]] = values = cli.parse(_definition(), _arguments(table, row, 0, "x", "x", []))
    monitoring.needs(values.monitor)
    if "published_curve" in row and not values.log_test:
      raise InputError(f"{path}: row {row['row']!r}: published_curve needs --log_test")
  _check_kept(path, table, parsed)
  mentioned = [table[key] for key in ("teacher_row", "student_row") if key in table]
  missing = {*mentioned, *(row for pair in table.get("compare", []) for row in pair)} - set(names)
  if missing or any(len(pair) != 2 for pair in table.get("compare", [])):
    raise InputError(f"{path}: compare, teacher_row and student_row name rows (compare: pairs of them), not "
                     f"{', '.join(map(repr, sorted(missing)))}")


def _check_kept(path, table, parsed):
  """What a row was after some epochs has to be kept."""
  for row in table["row"]:
    for other, epoch in (named for flag in _FROM_ROWS for named in _named(row, flag)):
      every = parsed[other].keep_every
      if epoch and (not every or epoch % every):
        raise InputError(f"{path}: row {row['row']!r}: {other}@{epoch} needs a --keep_every of row {other!r} that "
                         f"divides {epoch}")


def _others(row, flag) -> list[str]:
  """The rows that a row names: none, one or a list."""
  return [name for name, _ in _named(row, flag)]


def _named(row, flag) -> list[tuple[str, int]]:
  """(row, epoch after which, 0 for its end) of what a row names. Raises InputError."""
  found = []
  for other in [row[flag]] if isinstance(row.get(flag), str) else row.get(flag, []):
    name, at, epoch = other.partition("@")
    if at and not (epoch.isdigit() and int(epoch)):
      raise InputError(f"row {row.get('row')!r}: {flag} {other!r}: after @ comes a number of epochs")
    found.append((name, int(epoch or 0)))
  return found


def _directory(runs_dir, row, epoch, seed) -> pathlib.Path:
  """Where a row's run of a seed is, as it was after `epoch` if it went on for longer."""
  whole = run_dir(runs_dir, row, seed)
  return kept if epoch and (kept := runs.after(whole, epoch)).exists() else whole


def choose(table: dict[str, Any], rows: list[str]) -> dict[str, Any]:
  """The table with only these rows and those that they learn from. Raises InputError if there is no such row."""
  by_name = {row["row"]: row for row in table["row"]}
  if unknown := [row for row in rows if row not in by_name]:
    raise InputError(f"--rows={','.join(rows)}: no row {', '.join(map(repr, unknown))} in {table['name']}; "
                     f"there are: {', '.join(by_name)}")
  kept, waiting = set(), list(rows)
  while waiting:
    kept.add(row := waiting.pop())
    waiting += [other for flag in _FROM_ROWS for other in _others(by_name[row], flag)]
  chosen = {key: value for key, value in table.items() if key not in ("teacher_row", "student_row") or value in kept}
  if "compare" in table:
    chosen["compare"] = [pair for pair in table["compare"] if kept.issuperset(pair)]
  return chosen | {"row": [row for row in table["row"] if row["row"] in kept]}


def _definition():
  return cli.define(cli.DATA, cli.TRAIN, workdir=("string", None, ""))


def _arguments(table, row, seed, workdir, runs_dir, own) -> list[str]:
  arguments = [*table["flags"], *row.get("flags", []), f"--seed={seed}", f"--workdir={workdir}", *own]
  named = {flag: [_directory(runs_dir, *other, seed) for other in _named(row, flag)] for flag in _FROM_ROWS}
  return arguments + [f"--{flag}={','.join(map(str, found))}" for flag, found in named.items() if found]


def _fold(arguments, folds) -> list[str]:
  """The arguments with the data set of one fold: the seed says which. Raises InputError."""
  values = cli.parse(_definition(), arguments)
  call = lookup.parse("data", values.data, "data").changed(folds=folds, fold=values.seed)
  lookup.parse("data", str(call), "folds")  # does the data set have folds?
  return [*arguments, f"--data={call}"]


def run_dir(runs_dir: str | pathlib.Path, row: str, seed: int) -> pathlib.Path:
  """Where a row's run of a seed is kept."""
  return pathlib.Path(runs_dir) / f"{row.replace(' ', '_')}-seed{seed}"


def reproduce(name: str, workdir: str, seeds: int | None, data_dir: str | None, cache_dir: str | None,
              folds: int | None = None, rows: list[str] | None = None, together: bool = False,
              at_a_time: int = 1) -> dict:
  """Trains and evaluates what is missing and writes NAME.json, NAME.md and NAME.png into `workdir`.

  With `folds`, k-fold cross-validation: as many seeds, and seed s tests on fold s. With `rows`, only these and the
  rows that they learn from. Seed after seed, or with `together` all seeds of a row at once, with the same numbers;
  so many runs `at_a_time`, in processes of their own.
  Raises InputError if a run diverges, before there is a table without it; the other seeds of its row are finished.
  """
  jobs.check(at_a_time)
  table = choose(load(name), rows) if rows else load(name)
  seeds = folds or seeds or table.get("seeds", 3)
  runs_dir = pathlib.Path(workdir) / "runs"
  own = [f"--{k}={v}" for k, v in (("data_dir", data_dir), ("cache_dir", cache_dir)) if v]
  ordered = sorted(table["row"], key=lambda row: any(flag in row for flag in _FROM_ROWS))  # teachers first
  reports, metric, number = {row["row"]: {} for row in table["row"]}, table["metrics"][0], itertools.count(1)
  every = [tuple(range(seeds))] if together else [(seed,) for seed in range(seeds)]
  calls = {(row["row"], at_once): (table, row, at_once, runs_dir, own, folds)
           for at_once, row in itertools.product(every, ordered)}
  for (row, at_once), made in _done(calls, at_a_time):
    for seed, found in zip(at_once, made, strict=True):
      reports[row][seed] = found
      print(f"{next(number)}/{seeds * len(ordered)}  {row}, seed {seed}: test {metric} {found['metrics'][metric]:.4f}, "
            f"{found['epochs']} epochs in {found['training_seconds']:.1f} s", flush=True)
  reports = {row: [found for _, found in sorted(made.items())] for row, made in reports.items()}
  monitor = runs.read_json(run_dir(runs_dir, ordered[0]["row"], 0) / runs.RESULT)["monitor"]
  monitor = table["metrics"][0] if monitor == monitoring.LAST else monitoring.names(monitor)[0]
  result = _result(table, reports, seeds)
  for row, made in zip(table["row"], result["rows"], strict=True):
    made["test_curve"] = _beside_published(row, [run_dir(runs_dir, row["row"], seed) for seed in range(seeds)])
  result |= {"comparisons": _compare(table, reports, runs_dir), "monitor": monitor, "folds": folds,
             "made_by": _made_by([run_dir(runs_dir, row["row"], seed) for row in ordered for seed in range(seeds)])}
  root = pathlib.Path(workdir)
  artifacts.write_json_atomic(root / f"{table['name']}.json", result)
  (root / f"{table['name']}.md").write_text(table_page.markdown(table, result))
  figures.draw(result, _curves(table, seeds, runs_dir, monitor), root / f"{table['name']}.png")
  return result


def _done(calls, at_a_time):
  """((row, seeds), reports) of every call of `_made`, in their order, or as processes finish them."""
  if at_a_time == 1:
    return ((key, _made(*call)) for key, call in calls.items())
  learns_from = {(row, at_once): {(other, at_once) for flag in _FROM_ROWS for other in _others(call[1], flag)}
                 for (row, at_once), call in calls.items()}
  for values in {values.data: values for call in calls.values() for values in _values(*call)}.values():
    data.load(values.data, values.data_dir, values.cache_dir)  # once, and terms of use are read where it is said
  return jobs.run(at_a_time, _made, calls, learns_from)


def _values(table, row, at_once, runs_dir, own, folds):
  """The flags of a row's runs."""
  arguments = [_arguments(table, row, seed, run_dir(runs_dir, row["row"], seed), runs_dir, own) for seed in at_once]
  return [cli.parse(_definition(), _fold(x, folds) if folds else x) for x in arguments]


def _made(table, *of_row) -> list[dict[str, Any]]:
  """test.json of a row's runs, which are trained at once where they are not finished."""
  runs_of = _values(table, *of_row)
  sweep.check(experiment.run_together(runs_of))
  return [_evaluate(table, pathlib.Path(values.workdir), values) for values in runs_of]


def _evaluate(table, directory, values) -> dict[str, Any]:
  """test.json of a finished run, made once."""
  stored, options = directory / runs.TEST, table.get("evaluate", {})
  if stored.exists() and stored.stat().st_mtime >= (directory / runs.RESULT).stat().st_mtime:
    found = runs.read_json(stored)
    if found.get("options") == report.options(**options):
      return found
  return report.evaluate_run(str(directory), data_dir=values.data_dir, cache_dir=values.cache_dir, **options)


def _result(table, reports, seeds) -> dict[str, Any]:
  rows = []
  for row in table["row"]:
    made = reports[row["row"]]
    found = {m: _summary([r["metrics"][m] for r in made]) for m in table["metrics"]}
    for metric, published in row.get("published", {}).items():
      found[metric] |= _judge(found[metric], published, row.get("tolerance", table.get("tolerance")))
    groups = [name for name in (f"recall@10({group})" for group in _GROUPS) if name in made[0]["metrics"]]
    rows.append({"row": row["row"], "model": made[0]["model"], "parameters": made[0]["parameters"],
                 "bytes": made[0]["bytes"], "metrics": found, "note": row.get("note"),
                 "groups": {name: _summary([r["metrics"][name] for r in made]) for name in groups},
                 "epochs": [r["epochs"] for r in made],
                 "training_seconds": [round(r["training_seconds"], 2) for r in made]})
  _add_transfer(table, rows)
  first = next(iter(reports.values()))[0]
  return {"table": table["name"], "title": table["title"], "source": table.get("source"), "seeds": seeds,
          "data": first["data"], "synthetic": first["synthetic"], "cold_test_share": first["cold_test_share"],
          "candidates": first["candidates"], "history": first["options"]["history"], "users": first["users"],
          "evaluated": first["evaluated"],
          "kd_jax": __version__, "rows": rows}


def _summary(values) -> dict[str, Any]:
  std = float(np.std(values, ddof=1)) if len(values) > 1 else None
  return {"mean": float(np.mean(values)), "std": std, "values": values}


def _judge(summary, published, tolerance) -> dict[str, Any]:
  """The difference from a published value, and with a tolerance the verdict: within, above or below it."""
  difference = summary["mean"] - published
  found = {"published": published, "difference": difference}
  if tolerance is None:
    return found
  allowed = max(tolerance.get("absolute", 0.0), tolerance.get("relative", 0.0) * abs(published),
                tolerance.get("stds", 0.0) * (summary["std"] or 0.0))
  verdict = "within" if abs(difference) <= allowed else "above" if difference > 0 else "below"
  return found | {"tolerance": allowed, "verdict": verdict}


def _compare(table, reports, runs_dir) -> list[dict[str, Any]]:
  """Significance tests between rows; none where runs were evaluated on different users."""
  values, users, kept = {}, set(), table["metrics"]
  for row, made in reports.items():
    found = [report.user_values(run_dir(runs_dir, row, seed), "test", table["metrics"]) for seed in range(len(made))]
    users |= {tuple(ids.tolist()) for ids, _ in found}
    kept = [m for m in kept if all(m in v for _, v in found)]  # some metrics are not of one epoch, or not of users
    if len(users) > 1:
      return []
    values[row] = {m: np.stack([v[m] for _, v in found]) for m in kept}
  return significance.compare_rows(values, _pairs(table, reports), kept) if kept else []


def _pairs(table, reports) -> list[tuple[str, str]]:
  """The pairs of rows to compare, see `compare` above."""
  if "compare" in table:
    return [tuple(pair) for pair in table["compare"]]
  distilled, student = _distilled(table), table.get("student_row")
  pairs = [(row, student) for row in distilled if student]
  if distilled:
    best = max(distilled, key=lambda row: np.mean([r["metrics"][table["metrics"][0]] for r in reports[row]]))
    pairs += [(best, row) for row in reports if row not in (best, student)]
  return pairs


def _distilled(table) -> list[str]:
  return [row["row"] for row in table["row"] if any(flag.startswith("--kd=") for flag in row.get("flags", []))]


def _curves(table, seeds, runs_dir, metric) -> dict[str, list[tuple[list[int], list[float]]]]:
  """{row: [(epochs, validation values) of every seed]} of the rows that have epochs."""
  found = {}
  for row in table["row"]:
    logs = [run_dir(runs_dir, row["row"], seed) / runs.METRICS for seed in range(seeds)]
    if all(log.exists() for log in logs):
      lines = [[x for x in runs.read_metrics(log.parent) if metric in x.get("validation", {})] for log in logs]
      if all(lines):
        found[row["row"]] = [([x["epoch"] for x in of], [x["validation"][metric] for x in of]) for of in lines]
  return found


def _beside_published(row, directories) -> dict[str, list[dict[str, Any]]]:
  """{metric: [{epoch, published, mean, std, values}]} of the points of a published curve that runs reached."""
  found = {}
  for metric, points in row.get("published_curve", {}).items():
    lines = [{x["epoch"]: x["test"][metric] for x in runs.read_metrics(d) if "test" in x} for d in directories]
    reached = [(epoch, value, [own[epoch] for own in lines if epoch in own]) for epoch, value in points]
    found[metric] = [{"epoch": e, "published": value} | _summary(values) for e, value, values in reached if values]
  return found


def _made_by(directories) -> dict[str, Any]:
  """What runs were made by: commits, versions and devices, each as often as they differ; seconds of training."""
  infos = [runs.read_info(directory) for directory in directories]
  distinct = lambda values: sorted({value for value in values if value})
  packages = {name: distinct(info["versions"][name] for info in infos) for name in infos[0]["versions"]}
  return {"commits": distinct(info.get("commit") for info in infos), "versions": packages,
          "python": distinct(info["python"] for info in infos), "devices": distinct(info["devices"] for info in infos),
          "seconds": sum(runs.read_json(directory / runs.RESULT)["seconds"] for directory in directories)}


def _add_transfer(table, rows):
  """The transfer ratio of every distilled row, from the means over seeds."""
  by_name = {row["row"]: row for row in rows}
  ends = [by_name.get(table.get(key)) for key in ("teacher_row", "student_row")]
  if None in ends:
    return
  for row in rows:
    if row["row"] in _distilled(table):
      row["transfer_ratio"] = {
          m: metrics.transfer_ratio(*(x["metrics"][m]["mean"] for x in (*ends, row))) for m in table["metrics"]}
