"""The figure of a table: metric per row, against model size, over epochs, and by popularity of items."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

COLORS = ("#7aa6c2", "#d08770", "#8fbc8f", "#b48ead", "#c9a13b", "#6f6f6f", "#4c72b0", "#a0522d")

_TILT = 20  # degrees, rotation of the row names


def draw(result: dict[str, Any], curves: dict[str, list[tuple[list[int], list[float]]]]) -> bytes:
  """The figure as PNG, with the panels for which `result`, a table's JSON, has data.

  `curves` is {row: [(epochs, values) of every seed]} of the validation metric `result["monitor"]`.
  """
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  groups = [row for row in result["rows"] if "recall@10(popular)" in row["groups"]]
  panels = [_bars, _sizes, *([lambda a, r: _curves(a, r, curves)] if curves else []), *([_groups] if groups else [])]
  width = max(4.0, 1.1 * len(result["rows"]) + 1)
  drawing, axes = pyplot.subplots(len(panels), figsize=(width, 3.2 * len(panels)), layout="constrained")
  for panel, own in zip(panels, axes, strict=True):
    panel(own, result)
    own.spines[["top", "right"]].set_visible(False)
  content = io.BytesIO()
  drawing.savefig(content, format="png", dpi=120, bbox_inches="tight")  # else labels can be cut off
  pyplot.close(drawing)
  return content.getvalue()


def _first(result) -> tuple[str, list[dict]]:
  """The table's first metric and every row's summary of it."""
  metric = next(iter(result["rows"][0]["metrics"]))
  return metric, [row["metrics"][metric] for row in result["rows"]]


def _spread(found) -> list[float] | None:
  """Standard deviations of summaries; None for a single seed."""
  return None if found[0]["std"] is None else [x["std"] for x in found]


def _bars(axes, result):
  """Bars of the first metric with standard deviations, and published values as crosses."""
  metric, found = _first(result)
  names = [row["row"] for row in result["rows"]]
  axes.bar(names, [x["mean"] for x in found], yerr=_spread(found), color=COLORS[0], capsize=3)
  published = [(n, x["published"]) for n, x in zip(names, found, strict=True) if "published" in x]
  if published:
    axes.plot(*zip(*published, strict=True), "kx", label="published")
    axes.legend(frameon=False)
  axes.set_ylabel(metric)
  axes.tick_params(axis="x", rotation=_TILT)


def _sizes(axes, result):
  """The first metric against the number of parameters."""
  metric, found = _first(result)
  for number, (row, x) in enumerate(zip(result["rows"], found, strict=True)):
    axes.errorbar(row["parameters"], x["mean"], yerr=_spread([x]), fmt="o", color=COLORS[number % len(COLORS)])
    axes.annotate(row["row"], (row["parameters"], x["mean"]), xytext=(5, 3), textcoords="offset points", fontsize=8)
  axes.set(xscale="log", xlabel="parameters", ylabel=metric)
  axes.margins(x=0.2)


def _curves(axes, result, curves):
  """Validation metric by epoch: mean and standard deviation of the seeds that ran so long."""
  for number, (row, seeds) in enumerate(curves.items()):
    epochs, mean, std = band(seeds)
    color = COLORS[number % len(COLORS)]
    axes.plot(epochs, mean, color=color, label=row, linewidth=1)
    axes.fill_between(epochs, mean - std, mean + std, color=color, alpha=0.2, linewidth=0)
  axes.set(xlabel="epoch", ylabel=f"{result['monitor']} (validation)")
  axes.legend(frameon=False, fontsize=8)


def band(seeds: list[tuple[list[int], list[float]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(epochs, mean, standard deviation) of curves of different lengths, [n] each; the deviation of one value is 0."""
  epochs = np.unique(np.concatenate([e for e, _ in seeds]))
  values = np.full((len(seeds), len(epochs)), np.nan)
  for line, (own, found) in zip(values, seeds, strict=True):
    line[np.searchsorted(epochs, own)] = found
  count = np.sum(~np.isnan(values), axis=0)
  mean = np.nanmean(values, axis=0)
  return epochs, mean, np.sqrt(np.nansum((values - mean) ** 2, axis=0) / np.maximum(count - 1, 1))


def _groups(axes, result):
  """Recall@10 on popular and on unpopular items."""
  rows = [row for row in result["rows"] if "recall@10(popular)" in row["groups"]]
  for number, group in enumerate(("popular", "unpopular")):
    found = [row["groups"][f"recall@10({group})"] for row in rows]
    axes.bar(np.arange(len(rows)) + 0.4 * number, [x["mean"] for x in found], 0.4, yerr=_spread(found),
             color=COLORS[number], capsize=2, label=group)
  axes.set_xticks(np.arange(len(rows)) + 0.2, [row["row"] for row in rows])
  axes.set_ylabel("recall@10 of a group")
  axes.tick_params(axis="x", rotation=_TILT)
  axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))  # above the panel, which the bars fill
