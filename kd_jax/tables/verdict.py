"""What was lost and gained, in three sentences from the numbers of a table."""

from __future__ import annotations

from typing import Any

from kd_jax.tables import figures

_ALIKE = 1.1  # so many times the bytes count as the same size


def sentences(result: dict[str, Any]) -> list[str]:
  """Three sentences: teacher and plain student; the best distilled row; the best compressed row of no more bytes.

  Each says also that something is missing, or that distillation loses.
  """
  metric = next(iter(result["rows"][0]["metrics"]))
  by_name = {row["row"]: row for row in result["rows"]}
  teacher, student = (by_name.get(result.get(key)) for key in ("teacher_row", "student_row"))
  distilled = best(result, "distilled")
  return [_ends(metric, teacher, student), _distilled(metric, teacher, student, distilled),
          _compressed(result, metric, distilled or student)]


def best(result: dict[str, Any], kind: str) -> dict[str, Any] | None:
  """The best row of a kind by the table's first metric; None if there is no such row.

  If there are rows of the kind with at most 1.1 times the bytes of the plain student, it is the best of these.
  """
  metric = next(iter(result["rows"][0]["metrics"]))
  rows = [row for row in result["rows"] if row.get("kind") == kind]
  student = next((row for row in result["rows"] if row["row"] == result.get("student_row")), None)
  small = [row for row in rows if student is not None and _fits(row, student)]
  return _best(result, metric, small or rows)


def _fits(row, other) -> bool:
  return figures.bytes_of(row) <= _ALIKE * figures.bytes_of(other)


def _best(result, metric, rows):
  sign = 1 if result.get("higher_is_better", True) else -1
  return max(rows, key=lambda row: sign * row["metrics"][metric]["mean"], default=None)


def _value(row, metric) -> str:
  return f"{row['metrics'][metric]['mean']:.4f}"


def _share(row, other) -> str:
  return f"{figures.bytes_of(row) / figures.bytes_of(other):.2g} of the bytes"


def _ends(metric, teacher, student) -> str:
  if teacher is None or student is None:
    return "There is no teacher with a plain student here, so nothing is said of a gap between them."
  lost = student["metrics"][metric]["mean"] - teacher["metrics"][metric]["mean"]
  return (f"The teacher, {teacher['row']}, has {metric} {_value(teacher, metric)}; the plain student, "
          f"{student['row']}, has {_value(student, metric)} ({lost:+.4f}) with {_share(student, teacher)}.")


def _distilled(metric, teacher, student, row) -> str:
  if row is None:
    return "No row is distilled."
  ratio = row.get("transfer_ratio", {}).get(metric)
  closes = f", and closes {ratio:.0%} of the gap between them" if ratio is not None else ""
  than = ""
  if student is not None:
    than = f" ({row['metrics'][metric]['mean'] - student['metrics'][metric]['mean']:+.4f} against the plain student)"
  size = f" with {_share(row, teacher)}" if teacher is not None else ""
  return f"The best distilled row, {row['row']}, has {_value(row, metric)}{than}{size}{closes}."


def _compressed(result, metric, small) -> str:
  rows = [row for row in result["rows"] if row.get("kind") == "compressed" and row is not small]
  if not rows:
    return "No row is compressed in another way."
  if small is None:
    found = _best(result, metric, rows)
    return f"The best compressed row, {found['row']}, has {_value(found, metric)}."
  alike = [row for row in rows if _fits(row, small)]
  found = _best(result, metric, alike)
  if found is None:
    found = _best(result, metric, rows)
    larger = figures.bytes_of(found) / figures.bytes_of(small)
    return (f"No compressed row has at most {_ALIKE} times the bytes of {small['row']}; the best of all, "
            f"{found['row']}, has {_value(found, metric)} with {larger:.2g} times its bytes.")
  sign = 1 if result.get("higher_is_better", True) else -1
  difference = found["metrics"][metric]["mean"] - small["metrics"][metric]["mean"]
  word = "loses to" if sign * difference > 0 else "is better than"
  return (f"Of the compressed rows with at most {_ALIKE} times the bytes of {small['row']}, the best is {found['row']} "
          f"with {_value(found, metric)}: {small['row']} {word} it by {abs(difference):.4f}"
          f"{_tested(result, metric, small, found)}.")


def _tested(result, metric, a, b) -> str:
  """The corrected p of the comparison of two rows, if the table has it."""
  for entry in result.get("comparisons", ()):
    if {*entry["rows"]} == {a["row"], b["row"]} and metric in entry["metrics"]:
      return f" (p {entry['metrics'][metric]['t_test_holm']:.2g} over users, corrected)"
  return " (not tested)"
