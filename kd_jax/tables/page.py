"""The Markdown page of a table: results, comparison with published values, and significance of differences."""

from __future__ import annotations

from typing import Any

import numpy as np


def markdown(table: dict[str, Any], result: dict[str, Any]) -> str:
  """The table as Markdown: mean +- std (published), transfer ratio of the first metric, seconds; then more sections."""
  names = list(table["metrics"])
  head = ["row", "parameters", *names, f"transfer ({names[0]})", "training s"]
  rows = []
  for row in result["rows"]:
    rows.append([row["row"], f"{row['parameters']:,}", *(_cell(row["metrics"][m]) for m in names),
                 _transfer(row, names[0]), f"{np.mean(row['training_seconds']):.1f}"])
  synthetic = "SYNTHETIC DATA: says nothing about people. " if result["synthetic"] else ""
  about = " ".join(table.get("about", "").split())
  published = any("published" in x for row in result["rows"] for x in row["metrics"].values())
  history = "" if result["history"] == "train" else ", histories with validation items"
  several = f"{result['seeds']} {'folds' if result['folds'] else 'seeds'}, mean ± standard deviation"
  note = (f"{synthetic}{several if result['seeds'] > 1 else 'One seed'}"
          f"{', published value in brackets' if published else ''}; transfer is the share of the gap between student "
          f"and teacher that a row closes; test split, "
          f"{result['candidates']} as candidates{history}, {result['users']:,} {result['evaluated']}"
          f"{_unknown(result)}{_cold(result)}. Data: `{result['data']}`.")
  reasons = dict.fromkeys(row.get("no_transfer", {}).get(names[0]) for row in result["rows"])
  notes = [f"- no transfer ratio in {names[0]}: {reason}" for reason in reasons if reason]
  notes += [f"- {row['row']}: {row['note']}" for row in result["rows"] if row["note"]]
  sections = [[f"# {table['title']}"], [about], _lines(head, rows), [note], notes, _verdicts(table, result),
              _curves(result), _groups(result), _agreement(result), _membership(result), _cost(result),
              _comparisons(result), [_made_by(result["made_by"])]]
  return "\n".join(line for section in sections if section for line in [*section, ""])


def _lines(head, rows) -> list[str]:
  return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def _cell(summary) -> str:
  published = f" ({summary['published']:.4f})" if "published" in summary else ""
  return f"{_mean(summary)}{published}"


def _mean(summary) -> str:
  if np.isnan(summary["mean"]):
    return "no value"
  return f"{summary['mean']:.4f}" + ("" if summary["std"] is None else f" ± {summary['std']:.4f}")


def _transfer(row, metric) -> str:
  if metric not in row.get("transfer_ratio", {}):
    return ""
  ratio = row["transfer_ratio"][metric]
  return "none" if ratio is None else f"{ratio:.2f}"


def _unknown(result) -> str:
  count = result["users_without_training"]
  return f", {count:,} of them without training interactions" if count else ""


def _cold(result) -> str:
  share = result["cold_test_share"]
  return f"; {share:.1%} of test interactions are on items without training" if share else ""


def _verdicts(table, result) -> list[str]:
  judged = [(row["row"], metric, x) for row in result["rows"] for metric, x in row["metrics"].items() if "verdict" in x]
  if not judged:
    return []
  rows = [[metric, row, f"{x['published']:.4f}", _mean(x), f"{x['difference']:+.4f}", f"{x['tolerance']:.4f}",
           x["verdict"]] for row, metric, x in judged]
  within = sum(x["verdict"] == "within" for _, _, x in judged)
  return ["## Against the published values", "", f"{table.get('source', '')}".strip(), "",
          *_lines(["metric", "row", "published", "ours", "difference", "tolerance", "verdict"], rows), "",
          f"{within} of {len(judged)} values are within the tolerance that was set beforehand."]


def _curves(result) -> list[str]:
  rows = [[metric, row["row"], str(x["epoch"]), f"{x['published']:.4f}", _mean(x)] for row in result["rows"]
          for metric, points in row["test_curve"].items() for x in points]
  return rows and ["## Beside published curves", "", *_lines(["metric", "row", "epochs", "published", "ours"], rows)]


def _groups(result) -> list[str]:
  names = list(dict.fromkeys(name for row in result["rows"] for name in row["groups"]))
  if not names:
    return []
  rows = [[f"{row['row']}:", *(_mean(row["groups"][n]) if n in row["groups"] else "" for n in names)]
          for row in result["rows"]]
  return ["## Groups of items", "", *_lines(["", *names], rows), "",
          "Only the group's held-out items count, for users that have some; all items compete. Popular are the most "
          "popular items that have half of all training interactions; cold ones have none."
          + (" Unknown users have no training interaction." if "recall@10(unknown)" in names else "")]


def _measured(result, kind) -> list[str]:
  """The table of the measurements `kind` of the rows that have them."""
  rows = [row for row in result["rows"] if row.get(kind)]
  names = list(rows[0][kind]) if rows else []
  return rows and _lines(["row", *names], [[row["row"], *(_mean(row[kind][name]) for name in names)] for row in rows])


def _agreement(result) -> list[str]:
  lines = _measured(result, "agreement")
  return lines and [
      "## Agreement with the teacher", "", *lines, "",
      "Of a distilled row with its own teacher, of a compressed row with the row that it is made from, of others "
      "with the teacher's row. follows_wrong is the share of the teacher's wrong items that the row lists, too."]


MEMBERSHIP_NOTE = (
    "Members are training interactions, non-members held-out ones of the same users; .5 is an attack that learns "
    "nothing. tpr is the share of members found with 1 % of false positives. scores: the attacker has all scores of "
    "the model; labels: a file of the best 500 items and scores of every user; masked_labels: the same without "
    "training items; answers: the best 10 without training items.")


def _membership(result) -> list[str]:
  lines = _measured(result, "membership")
  return lines and ["## Membership inference", "", *lines, "", MEMBERSHIP_NOTE]


COST_NOTE = (
    "Means over seeds. A request ranks all items and returns the best 10; p50, p95 and p99 are percentiles of its "
    "latency for 1 and for 256 users, on the machine that evaluated the rows. A compressed row is asked with its "
    "unpacked parameters: its latency and operations are those of the row that it is made from.")
COSTS = {"bytes_on_disk": ("bytes on disk", 1), "bytes_in_memory": ("in memory", 1),
          "flops": ("kFLOP a request", 1e3), "request_bytes": ("MB, request of 256", 1e6),
          **{f"latency_{count}_{p}": (f"{p} of {count}, ms", 1) for count in (1, 256) for p in ("p50", "p95", "p99")},
          "training_seconds": ("training s", 1), "training_seconds_with_others": ("with its teachers", 1)}


def _cost(result) -> list[str]:
  if not any(row.get("cost") for row in result["rows"]):
    return []
  rows = [[row["row"], *(amount(row["cost"][name]["mean"] / unit) for name, (_, unit) in COSTS.items())]
          for row in result["rows"]]
  return ["## Cost", "", *_lines(["row", *(name for name, _ in COSTS.values())], rows), "",
          COST_NOTE]


def amount(value: float) -> str:
  """A cost with three digits, or as a whole number."""
  return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _comparisons(result) -> list[str]:
  if not result["comparisons"]:
    return []
  metric = next(iter(result["comparisons"][0]["metrics"]))
  rows = []
  for entry in result["comparisons"]:
    x = entry["metrics"][metric]
    effect = "" if x["effect_size"] is None else f"{x['effect_size']:+.3f}"
    rows.append([" − ".join(entry["rows"]), f"{x['difference']:+.4f}", f"[{x['interval'][0]:+.4f}, "
                 f"{x['interval'][1]:+.4f}]", "" if x["std"] is None else f"{x['std']:.4f}", effect,
                 f"{x['t_test_holm']:.2g}", f"{x['randomisation_holm']:.2g}"])
  averaged = f"A user's values are averaged over the {result['seeds']} seeds first. " if result["seeds"] > 1 else ""
  head = ["rows", "difference", "95 % interval", "std over seeds", "effect size", "p (t)", "p (randomisation)"]
  return [f"## Differences in {metric}", "", *_lines(head, rows), "",
          f"{averaged}Users are the sample. Bootstrap interval over users; Cohen's d of paired differences; two-sided "
          "paired t-test and sign-flip randomisation test, p after Holm's correction over these rows. "
          "All metrics are in the JSON."]


def _made_by(made) -> str:
  versions = [f"{name} {' and '.join(found)}" for name, found in made["versions"].items()
              if name in ("kd_jax", "jax", "flax", "optax", "numpy")]
  commits = f" (commit {', '.join(made['commits'])})" if made["commits"] else ""
  return (f"Made by {versions[0]}{commits}, {', '.join(versions[1:])}, Python {' and '.join(made['python'])}, on "
          f"{' and '.join(made['devices'])}; training took {_time(made['seconds'])} in all.")


def _time(seconds) -> str:
  hours, minutes = divmod(round(seconds / 60), 60)
  return f"{seconds:.0f} s" if seconds < 600 else f"{hours} h {minutes} min" if hours else f"{minutes} min"
