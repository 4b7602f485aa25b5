"""A table of size, cold start, memory and latency of several runs, in every form in which they can answer."""

from __future__ import annotations

import os
import pathlib
import platform
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from kd_jax.base import InputError
from kd_jax.serving import export, layout, timing
from kd_jax.storage import run_directory, sealed

FORMS = ("jit", "stablehlo", "onnx", "npz", "int8", "index")
_PACKAGES = ("jax", "onnxruntime", "numpy", "faiss-cpu")


class _Form(NamedTuple):
  """A row of the table."""

  run: str
  form: str
  format: str  # of the export; "jit": none
  export: str
  approximate: bool = False


def write(runs: Sequence[str], out: str | os.PathLike, *, forms: Sequence[str] = FORMS,
          batches: Sequence[int] = (1, 16, 256), seconds: float = 3.0, k: int = 10, data_dir: str | None = None,
          cache_dir: str | None = None) -> Iterator[str]:
  """Exports the runs to OUT/exports, times each form in a process of its own, and writes OUT/latency.md, .json, .png.

  `forms`: "jit" is the training code's network; "int8" adds every format among them (npz, if there is none) with tables
  in int8; "index" is NumPy with the approximate index. Forms that a model does not have are left out. Yields the lines
  of the table.
  Raises InputError: there is no such run or form.
  """
  if wrong := [name for name in forms if name not in FORMS]:
    raise InputError(f"`forms={wrong[0]}`: choose from {', '.join(FORMS)}")
  rows: list[dict[str, Any]] = []
  yield from _head(batches)
  for run in runs:
    for form in _forms(run, pathlib.Path(out) / "exports", forms, data_dir, cache_dir):
      settings = timing.Settings(0.0, form.format, form.export, run, form.approximate, list(batches), seconds, k,
                                 data_dir, cache_dir)
      rows.append({"run": run, "form": form.form, "bytes": _bytes(form), **timing.apart(settings)})
      yield _line(rows[-1])
  sealed.write_json_atomic(pathlib.Path(out) / "latency.json", {"machine": machine(), "k": k, "rows": rows})
  text = "\n".join([*_head(batches), *map(_line, rows)]) + "\n"
  sealed.write_atomic(pathlib.Path(out) / "latency.md", text.encode())
  _figure(rows, pathlib.Path(out) / "latency.png")


def machine() -> dict[str, Any]:
  """What the measurements depend on."""
  return {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0],
          "packages": {name: run_directory.version(name) for name in _PACKAGES}}


def _forms(run, folder, wanted, data_dir, cache_dir) -> Iterator[_Form]:
  """Exports a run in the ways that are needed, and that its model has."""
  def exported(name, formats, **options):
    path = os.fspath(folder / f"{pathlib.Path(run).name}-{name}")
    list(export.export_run(run, path, formats=",".join(formats), data_dir=data_dir, cache_dir=cache_dir, **options))
    return path

  formats = [name for name in layout.FORMATS if name in wanted]
  whole = exported("whole", ["stablehlo"])
  of_vectors = sealed.manifest(whole, layout.KIND)["metadata"]["inputs"] == layout.QUERY
  if "jit" in wanted:
    yield _Form(run, "jit", "jit", whole)
  if not of_vectors:
    yield from (_Form(run, name, name, whole) for name in formats if name == "stablehlo")
    return
  if formats:
    whole = exported("whole", formats)
    yield from (_Form(run, name, name, whole) for name in formats)
  if "int8" in wanted:
    formats = formats or ["npz"]
    small = exported("int8", formats, compress="int8()")
    yield from (_Form(run, f"int8 {name}", name, small) for name in formats)
  if "index" in wanted:
    yield _Form(run, "index", "npz", exported("index", ["npz"], approximately="hnsw"), True)


def _bytes(form) -> int:
  """Of the weights and what reads them."""
  files = sealed.manifest(form.export, layout.KIND)["files"]
  own = {layout.PROGRAMS.get(form.format)} | ({layout.INDEX} if form.approximate else set())
  return sum(file["bytes"] for name, file in files.items() if name.startswith("weights/") or name in own)


def _head(batches) -> list[str]:
  names = ["run", "form", "MB", "cold start s", "memory MB"]
  names += [f"{b} user{'s' * (b > 1)}: p50 / p95 / p99 ms (users/s)" for b in batches]
  return [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]


def _line(row) -> str:
  cells = [pathlib.Path(row["run"]).name, row["form"], f"{row['bytes'] / 1e6:.2f}", f"{row['cold_start']:.2f}",
           f"{row['memory']:.0f}"]
  cells += [f"{x['p50']:.3f} / {x['p95']:.3f} / {x['p99']:.3f} ({x['per_second']:,.0f})"
            for x in row["batches"].values()]
  return f"| {' | '.join(cells)} |"


def _figure(rows, path) -> None:
  """p50, and a line to p99: a row for each form of a run, with its size, and a panel for each batch size."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot, ticker

  batches, places = list(rows[0]["batches"]), np.arange(len(rows))
  figure, panels = pyplot.subplots(1, len(batches), figsize=(3 + 3 * len(batches), 1.2 + 0.25 * len(rows)), sharey=True,
                                   layout="constrained", squeeze=False)
  for batch, axes in zip(batches, panels[0], strict=True):
    for run in dict.fromkeys(row["run"] for row in rows):
      own = places[[row["run"] == run for row in rows]]
      middle, above = (np.array([rows[place]["batches"][batch][p] for place in own]) for p in ("p50", "p99"))
      axes.errorbar(middle, own, xerr=[0 * middle, above - middle], fmt="o", capsize=3)
    axes.set(xscale="log", xlabel="ms: p50, to p99", title=f"{batch} user{'s' * (batch != '1')} a call")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(ticker.LogFormatter(minor_thresholds=(1, 0.5)))  # labels within a decade
    axes.grid(axis="x", alpha=0.4)
  panels[0][0].set_yticks(places, [f"{pathlib.Path(row['run']).name}, {row['form']}, {row['bytes'] / 1e6:.2f} MB"
                                   for row in rows])
  panels[0][0].invert_yaxis()
  figure.savefig(path, dpi=120)
  pyplot.close(figure)
