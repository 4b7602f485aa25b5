"""Tables of runs: a TOML file names the rows, finished runs are reused, unfinished ones go on.

  title, about             what the table shows, and its protocol
  flags                    flags of every run
  metrics                  the columns; cut-offs of `evaluate.CUTOFFS`
  seeds                    how many, unless --seeds says otherwise
  evaluate                 {mask_validation = false, history = "train", sampled = 0}
  teacher_row, student_row the rows between which the transfer ratio is measured
  [[row]]  row, flags      a run; `teacher = "row"` distils from that row's run of the same seed
           published       {"recall@10" = 0.0283}, and `source` of the table
"""

from __future__ import annotations

import itertools
import pathlib
import tomllib
from typing import Any

import numpy as np

from kd_jax import __version__, artifacts, assembly, cli, experiment, metrics, report, runs
from kd_jax.base import InputError

_FOLDER = pathlib.Path(__file__).parent.parent / "configs" / "tables"
_KEYS = {"title", "about", "source", "flags", "metrics", "seeds", "evaluate", "teacher_row", "student_row", "row"}
_ROW_KEYS = {"row", "flags", "teacher", "published", "note"}


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
  if unknown:
    raise InputError(f"{path}: unknown keys {', '.join(sorted(unknown))}")
  names = [row.get("row") for row in table["row"]]
  for row in table["row"]:
    if row.get("teacher", names[0]) not in names or names.count(row.get("row")) != 1:
      raise InputError(f"{path}: row {row.get('row')!r} is named twice or its teacher is no row")
    values = cli.parse(_definition(), _arguments(table, row, 0, "x", "x", []))
    assembly.metrics_cutoffs(values)


def _definition():
  return cli.define(cli.DATA, cli.TRAIN, workdir=("string", None, ""))


def _arguments(table, row, seed, workdir, runs_dir, own) -> list[str]:
  arguments = [*table["flags"], *row.get("flags", []), f"--seed={seed}", f"--workdir={workdir}", *own]
  if "teacher" in row:
    arguments.append(f"--teacher={run_dir(runs_dir, row['teacher'], seed)}")
  return arguments


def run_dir(runs_dir: str | pathlib.Path, row: str, seed: int) -> pathlib.Path:
  """Where a row's run of a seed is kept."""
  return pathlib.Path(runs_dir) / f"{row.replace(' ', '_')}-seed{seed}"


def reproduce(name: str, workdir: str, seeds: int | None, data_dir: str | None, cache_dir: str | None) -> dict:
  """Trains and evaluates what is missing and writes NAME.json, NAME.md and NAME.png into `workdir`."""
  table = load(name)
  seeds = seeds or table.get("seeds", 3)
  runs_dir = pathlib.Path(workdir) / "runs"
  own = [f"--{k}={v}" for k, v in (("data_dir", data_dir), ("cache_dir", cache_dir)) if v]
  ordered = sorted(table["row"], key=lambda row: "teacher" in row)  # teachers first
  reports = {row["row"]: [] for row in table["row"]}
  total, metric = seeds * len(ordered), table["metrics"][0]
  for number, (seed, row) in enumerate(itertools.product(range(seeds), ordered), 1):
    directory = run_dir(runs_dir, row["row"], seed)
    values = cli.parse(_definition(), _arguments(table, row, seed, directory, runs_dir, own))
    experiment.run_training(values)
    found = _evaluate(table, directory, values)
    reports[row["row"]].append(found)
    print(f"{number}/{total}  {row['row']}, seed {seed}: test {metric} {found['metrics'][metric]:.4f}, "
          f"{found['epochs']} epochs in {found['training_seconds']:.1f} s", flush=True)
  result = _result(table, reports, seeds)
  root = pathlib.Path(workdir)
  artifacts.write_json_atomic(root / f"{table['name']}.json", result)
  (root / f"{table['name']}.md").write_text(markdown(table, result))
  figure(result, root / f"{table['name']}.png")
  return result


def _evaluate(table, directory, values) -> dict[str, Any]:
  """test.json of a finished run, made once."""
  options = table.get("evaluate", {})
  stored = directory / runs.TEST
  if stored.exists() and stored.stat().st_mtime >= (directory / runs.RESULT).stat().st_mtime:
    return runs.read_json(stored)
  return report.evaluate_run(str(directory), data_dir=values.data_dir, cache_dir=values.cache_dir, **options)


def _result(table, reports, seeds) -> dict[str, Any]:
  rows = []
  for row in table["row"]:
    made = reports[row["row"]]
    found = {m: _summary([r["metrics"][m] for r in made], row.get("published", {}).get(m)) for m in table["metrics"]}
    rows.append({"row": row["row"], "model": made[0]["model"], "parameters": made[0]["parameters"],
                 "bytes": made[0]["bytes"], "metrics": found, "note": row.get("note"),
                 "epochs": [r["epochs"] for r in made],
                 "training_seconds": [round(r["training_seconds"], 2) for r in made]})
  _add_transfer(table, rows)
  first = next(iter(reports.values()))[0]
  return {"table": table["name"], "title": table["title"], "source": table.get("source"), "seeds": seeds,
          "data": first["data"], "synthetic": first["synthetic"], "candidates": first["candidates"],
          "history": first["history"], "users": first["users"], "kd_jax": __version__, "rows": rows}


def _summary(values, published) -> dict[str, Any]:
  std = float(np.std(values, ddof=1)) if len(values) > 1 else None
  summary = {"mean": float(np.mean(values)), "std": std, "values": values}
  return summary if published is None else summary | {"published": published}


def _add_transfer(table, rows):
  """The transfer ratio of every distilled row, from the means over seeds."""
  by_name = {row["row"]: row for row in rows}
  ends = [by_name.get(table.get(key)) for key in ("teacher_row", "student_row")]
  if None in ends:
    return
  distilled = [row["row"] for row in table["row"] if any(f.startswith("--kd=") for f in row.get("flags", []))]
  for row in rows:
    if row["row"] in distilled:
      row["transfer_ratio"] = {
          m: metrics.transfer_ratio(*(x["metrics"][m]["mean"] for x in (*ends, row))) for m in table["metrics"]}


def markdown(table: dict[str, Any], result: dict[str, Any]) -> str:
  """The table as Markdown: mean +- std (published), transfer ratio of the first metric, seconds."""
  names = list(table["metrics"])
  head = ["row", "parameters", *names, f"transfer ({names[0]})", "training s"]
  lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
  for row in result["rows"]:
    ratio = row.get("transfer_ratio", {}).get(names[0])
    cells = [row["row"], f"{row['parameters']:,}", *(_cell(row["metrics"][m]) for m in names),
             "" if ratio is None else f"{ratio:.2f}", f"{np.mean(row['training_seconds']):.1f}"]
    lines.append("| " + " | ".join(cells) + " |")
  synthetic = "SYNTHETIC DATA: says nothing about people. " if result["synthetic"] else ""
  about = " ".join(table.get("about", "").split())
  published = any("published" in x for row in result["rows"] for x in row["metrics"].values())
  history = "" if result["history"] == "train" else ", histories with validation items"
  note = (f"{synthetic}{result['seeds']} seeds, mean ± standard deviation"
          f"{', published value in brackets' if published else ''}; transfer is the share of the gap between student "
          f"and teacher that a row closes; test split, "
          f"{result['candidates']} as candidates{history}, {result['users']:,} users. Data: `{result['data']}`.")
  return "\n".join([f"# {table['title']}", "", about, "", *lines, "", note, ""])


def _cell(summary) -> str:
  std = "" if summary["std"] is None else f" ± {summary['std']:.4f}"
  published = f" ({summary['published']:.4f})" if "published" in summary else ""
  return f"{summary['mean']:.4f}{std}{published}"


def figure(result: dict[str, Any], path: pathlib.Path) -> None:
  """Bars of the first metric with standard deviations, and published values as crosses."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  metric = next(iter(result["rows"][0]["metrics"]))
  names = [row["row"] for row in result["rows"]]
  found = [row["metrics"][metric] for row in result["rows"]]
  drawing, axes = pyplot.subplots(figsize=(1.2 * len(names) + 1.5, 3.2), layout="constrained")
  axes.bar(names, [x["mean"] for x in found], yerr=[x["std"] or 0 for x in found], color="#7aa6c2", capsize=3)
  published = [(n, x["published"]) for n, x in zip(names, found, strict=True) if "published" in x]
  if published:
    axes.plot(*zip(*published, strict=True), "kx", label="published")
    axes.legend(frameon=False)
  axes.set_ylabel(metric)
  axes.spines[["top", "right"]].set_visible(False)
  drawing.savefig(path, dpi=120)
  pyplot.close(drawing)
