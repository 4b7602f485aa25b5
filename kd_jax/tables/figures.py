"""The figures of a table: points with intervals, quality against bytes and latency, curves, groups, and worse teachers.

Every panel is a function that draws on axes. Colours are those of Okabe and Ito, which colour-blind readers tell apart.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", ":", "-.")
# {kind of a row: (colour, marker)}
_KINDS = {"trained": (COLORS[0], "o"), "distilled": (COLORS[1], "s"), "compressed": (COLORS[2], "^")}
_WIDTH, _PER_ROW = 7.5, 0.27  # inches
_MOST_NAMED = 14  # points with names beside them; of more, only those that no other row dominates have names
_MOST_CURVES = 12
Curves = dict[str, list[tuple[list[int], list[float]]]]  # {row: [(epochs, values) of every seed]}


class Panel(NamedTuple):
  """One panel: what it shows, its height in inches, the function that draws it on axes, and its numbers as a table."""

  title: str
  height: float
  draw: Callable[[Any], None]
  numbers: list[list[Any]]  # the head, then lines of texts and numbers


def draw(result: dict[str, Any], curves: Curves) -> bytes:
  """All panels for which `result`, a table's JSON, has data, below each other, as PNG.

  `curves` are of the validation metric `result["monitor"]`.
  """
  drawn = panels(result, curves)
  return _rendered(drawn, "png")


def svg(panel: Panel) -> str:
  """One panel as SVG."""
  return _rendered([panel], "svg").decode()


def _rendered(drawn: list[Panel], kind: str) -> bytes:
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  heights, content = [panel.height for panel in drawn], io.BytesIO()
  # Text of SVG as text, and names that do not change from call to call.
  with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": drawn[0].title, "font.size": 9}):
    drawing, axes = pyplot.subplots(len(drawn), figsize=(_WIDTH, sum(heights)), height_ratios=heights,
                                    layout="constrained", squeeze=False)
    for panel, own in zip(drawn, axes[:, 0], strict=True):
      panel.draw(own)
      own.spines[["top", "right"]].set_visible(False)
    drawing.savefig(content, format=kind, dpi=120, bbox_inches="tight",  # else labels can be cut off
                    metadata={"Date": None} if kind == "svg" else None)
    pyplot.close(drawing)
  return content.getvalue()


def panels(result: dict[str, Any], curves: Curves) -> list[Panel]:
  """The panels for which `result` has data."""
  metric, rows = next(iter(result["rows"][0]["metrics"])), result["rows"]
  by_row, mean = 1.2 + _PER_ROW * len(rows), {row["row"]: row["metrics"][metric]["mean"] for row in rows}
  found = [Panel(f"{metric} of every row", by_row, lambda axes: _points(axes, result, metric), [
               ["row", metric, "from", "to"], *([row["row"], *_ends(row["metrics"][metric])] for row in rows)]),
           Panel(f"{metric} against bytes", 4.2, lambda axes: _against(axes, result, metric, "bytes", bytes_of), [
               ["row", "bytes", metric], *([row["row"], bytes_of(row), mean[row["row"]]] for row in rows)])]
  if all(row.get("cost") for row in rows):
    found.append(Panel(f"{metric} against latency", 4.2, lambda axes: _against(
        axes, result, metric, "median latency of one user, ms", _latency), [
            ["row", "median ms", metric], *([row["row"], _latency(row), mean[row["row"]]] for row in rows)]))
  if all(row.get("membership") for row in rows):
    found.append(Panel(f"{metric} against membership inference", 4.2, lambda axes: _attacked(axes, result, metric), [
        ["row", "AUC of scores", metric], *([row["row"], _auc(row), mean[row["row"]]] for row in rows)]))
  if lines := _by_teacher(result, metric):
    found.append(Panel(f"{metric} of students against their teachers'", 4.2, lambda axes: _stability(
        axes, result, metric, lines), [["method", "teacher", "student"], *(
            [method, x, y["mean"]] for method, points in lines.items() for x, y in points)]))
  if curves:
    last = [(row, band(seeds)) for row, seeds in list(curves.items())[:_MOST_CURVES]]
    found.append(Panel(f"{result['monitor']} on validation, by epoch", 3.6, lambda axes: _curves(axes, result, curves),
                       [["row", "epochs", "last mean"], *([row, int(x[0][-1]), float(x[1][-1])] for row, x in last)]))
  grouped = [row for row in rows if "recall@10(popular)" in row["groups"]]
  if grouped:
    names = [f"recall@10({group})" for group in ("popular", "unpopular")]
    found.append(Panel("recall@10 on popular and unpopular items", by_row, lambda axes: _groups(axes, result), [
        ["row", *names], *([row["row"], *(row["groups"][name]["mean"] for name in names)] for row in grouped)]))
  return found


def _ends(summary) -> list[float | None]:
  """[mean, lower end, upper end] of the interval that is drawn."""
  below, above = _interval(summary) or [[None], [None]]
  mean = summary["mean"]
  return [mean, *(None if x is None else mean + sign * x for sign, x in ((-1, below[0]), (1, above[0])))]


def _kind(row) -> str:
  return row.get("kind", "trained")


def _points(axes, result, metric):
  """A point with its interval for every row, from the top; lines of the teacher and the student; published values."""
  rows = result["rows"]
  for place, row in enumerate(rows):
    color, marker = _KINDS[_kind(row)]
    axes.errorbar(row["metrics"][metric]["mean"], place, xerr=_interval(row["metrics"][metric]), fmt=marker,
                  color=color, capsize=3)
  _references(axes, result, metric, axes.axvline)
  published = [(x["published"], place) for place, row in enumerate(rows)
               if "published" in (x := row["metrics"][metric])]
  if published:
    axes.plot(*zip(*published, strict=True), "kx", label="published")
  _name_kinds(axes, rows)
  _rows_at_the_side(axes, [row["row"] for row in rows])
  _interval_named(axes.set_xlabel, result, metric)
  _legend(axes)


def _name_kinds(axes, rows):
  """Adds the kinds of rows to the legend, if there are several."""
  kinds = {_kind(row): None for row in rows}
  for kind in kinds if len(kinds) > 1 else ():
    axes.plot([], [], _KINDS[kind][1], color=_KINDS[kind][0], label=kind)


def _interval(summary) -> list[list[float]] | None:
  """Distances [[below], [above]] of the interval of a summary; None for a single value."""
  if "interval" in summary:
    return [[summary["mean"] - summary["interval"][0]], [summary["interval"][1] - summary["mean"]]]
  return None if summary["std"] is None else [[summary["std"]], [summary["std"]]]


def _interval_named(label, result, metric):
  users = "interval" in result["rows"][0]["metrics"][metric]
  what = "95 % interval over users" if users else "standard deviation over seeds"
  label(f"{metric}, {what}" if users or result["seeds"] > 1 else metric)


def _references(axes, result, metric, line):
  by_name = {row["row"]: row for row in result["rows"]}
  for key, style in (("teacher_row", "--"), ("student_row", ":")):
    if (row := by_name.get(result.get(key))) is not None:
      line(row["metrics"][metric]["mean"], color="#555555", linestyle=style, linewidth=1, label=row["row"], zorder=0)


def _rows_at_the_side(axes, names):
  axes.set_yticks(range(len(names)), names)
  axes.set_ylim(len(names) - 0.5, -0.5)
  axes.grid(axis="x", color="#dddddd", linewidth=0.6)
  axes.set_axisbelow(True)


def _legend(axes):
  if axes.get_legend_handles_labels()[1]:
    axes.legend(frameon=False, fontsize=8, ncols=5, loc="lower left", bbox_to_anchor=(0, 1))


def bytes_of(row: dict[str, Any]) -> float:
  """Bytes on disk of a row; where they are not measured, in memory."""
  return row["cost"]["bytes_on_disk"]["mean"] if row.get("cost") else row["bytes"]


def _latency(row) -> float:
  return row["cost"]["latency_1_p50"]["mean"]


def _against(axes, result, metric, label, cost_of, scale="log", less="is smaller"):
  """The metric against a cost, with a line through the rows that no other row dominates."""
  rows = [row for row in result["rows"] if np.isfinite(row["metrics"][metric]["mean"])]
  cost, value = np.array([cost_of(row) for row in rows]), np.array([row["metrics"][metric]["mean"] for row in rows])
  best = frontier(cost, value if result.get("higher_is_better", True) else -value)
  axes.plot(cost[best], value[best], color="#999999", linewidth=1, zorder=0, label=f"no row {less} and is better")
  for place, row in enumerate(rows):
    color, marker = _KINDS[_kind(row)]
    axes.errorbar(cost[place], value[place], yerr=_interval(row["metrics"][metric]), fmt=marker, color=color, capsize=2)
    if len(rows) <= _MOST_NAMED or place in best:
      above = place not in best or best.index(place) % 2 == 0  # neighbours on the line do not cover each other
      axes.annotate(row["row"], (cost[place], value[place]), xytext=(4, 5 if above else -11),
                    textcoords="offset points", fontsize=8)
  _name_kinds(axes, rows)
  axes.set(xscale=scale, xlabel=label)
  _interval_named(axes.set_ylabel, result, metric)
  axes.margins(x=0.15)
  _legend(axes)


def _auc(row) -> float:
  return row["membership"]["scores auc"]["mean"]


def _attacked(axes, result, metric):
  """The metric against the AUC of the attack on scores; .5 is an attack that learns nothing."""
  _against(axes, result, metric, "AUC of membership inference from scores", _auc, "linear", "leaks less")
  axes.axvline(0.5, color="#555555", linestyle=":", linewidth=1, zorder=0)


def frontier(cost: np.ndarray, value: np.ndarray) -> list[int]:
  """The indices of the points [n] to which no other is at least equal in both and better in one, by falling cost.

  A lower cost and a higher value are better.
  """
  def dominated(i):
    at_least = (cost <= cost[i]) & (value >= value[i])
    return np.any(at_least & ((cost < cost[i]) | (value > value[i])))

  return sorted((i for i in range(len(cost)) if not dominated(i)), key=lambda i: -cost[i])


def _by_teacher(result, metric) -> dict[str, list[tuple[float, Any]]]:
  """{method: [(mean of the teacher, summary of the student)]} of methods with at least three teachers in the table."""
  by_name, found = {row["row"]: row for row in result["rows"]}, {}
  for row in result["rows"]:
    teachers = row.get("teachers", [])
    if len(teachers) == 1 and teachers[0] in by_name:
      found.setdefault(row["method"], []).append((by_name[teachers[0]]["metrics"][metric]["mean"],
                                                  row["metrics"][metric]))
  return {method: sorted(points, key=lambda x: x[0]) for method, points in found.items() if len(points) > 2}


def _stability(axes, result, metric, lines):
  """The student's value against its teacher's, one line for each method."""
  for number, (method, points) in enumerate(lines.items()):
    spread = [x["std"] for _, x in points]
    axes.errorbar([x for x, _ in points], [x["mean"] for _, x in points], fmt="o" + _LINES[number // len(COLORS)],
                  yerr=None if None in spread else spread, color=COLORS[number % len(COLORS)], label=method, capsize=2,
                  markersize=4, linewidth=1)
  by_name = {row["row"]: row for row in result["rows"]}
  if (student := by_name.get(result.get("student_row"))) is not None:
    axes.axhline(student["metrics"][metric]["mean"], color="#555555", linestyle=":", linewidth=1, label=student["row"])
  axes.set(xlabel=f"{metric} of the teacher", ylabel=f"{metric} of the student")
  _legend(axes)


def _curves(axes, result, curves):
  """Validation metric by epoch: mean and standard deviation of the seeds that ran so long."""
  for number, (row, seeds) in enumerate(list(curves.items())[:_MOST_CURVES]):
    epochs, mean, std = band(seeds)
    color = COLORS[number % len(COLORS)]
    axes.plot(epochs, mean, color=color, linestyle=_LINES[number // len(COLORS)], label=row, linewidth=1)
    axes.fill_between(epochs, mean - std, mean + std, color=color, alpha=0.2, linewidth=0)
  axes.set(xlabel="epoch", ylabel=f"{result['monitor']} (validation)")
  axes.legend(frameon=False, fontsize=8, ncols=2)


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
  """Recall@10 on popular and on unpopular items, with published values."""
  rows = [row for row in result["rows"] if "recall@10(popular)" in row["groups"]]
  for number, group in enumerate(("popular", "unpopular")):
    name = f"recall@10({group})"
    for place, row in enumerate(rows):
      found = row["groups"][name]
      axes.errorbar(found["mean"], place, xerr=_interval(found), fmt="os"[number], color=COLORS[number], capsize=2,
                    label=None if place else group)
      if "published" in (told := row["metrics"].get(name, {})):
        axes.plot(told["published"], place, "x", color=COLORS[number])
  _rows_at_the_side(axes, [row["row"] for row in rows])
  axes.set_xlabel("recall@10 of a group; × is published" if any(
      "published" in row["metrics"].get(f"recall@10({group})", {}) for row in rows for group in (
          "popular", "unpopular")) else "recall@10 of a group")
  _legend(axes)
