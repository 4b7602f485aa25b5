"""The gain of distillation, and the overlap of two models' lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from kd_jax.metrics import significance

_LEVEL = 0.05  # of the paired t-test that tells teacher and student apart


class Measured(NamedTuple):
  """One metric of the teacher, the plain student and the distilled student."""

  teacher: float
  student: float
  distilled: float
  goodness: Callable[[Any], Any]  # maps values of the metric to numbers of which the higher one is better
  of_users: tuple[np.ndarray, np.ndarray] | None = None  # values of teacher and student for the same users, [V] each


def transfer_ratio(x: Measured) -> tuple[float | None, str | None]:
  """(the share of the gap between student and teacher that distillation closes, None), or (None, why there is none).

  The ratio is (distilled - student) / (teacher - student). There is one only if the teacher is better than the student,
  and if a paired t-test over users tells them apart (two-sided p < .05). Without values of users the sign decides.
  """
  for name in ("teacher", "student", "distilled"):
    if not np.isfinite(getattr(x, name)):
      return None, f"the {'run' if name == 'distilled' else name} has no value"
  teacher, student, distilled = (x.goodness(value) for value in x[:3])
  p, difference = _p(x), f"{x.teacher - x.student:+.4f}"
  if p is not None:
    difference += f" (p {f'{p:.2g}'.removeprefix('0') or '0'})"
  if teacher <= student:
    return None, f"the teacher is not better than the student: {difference}"
  if p is not None and p >= _LEVEL:
    return None, f"the teacher is not told apart from the student: {difference}"
  return (distilled - student) / (teacher - student), None


def _p(x) -> float | None:
  """p of the paired t-test of teacher and student; None for fewer than two users with values."""
  if x.of_users is None:
    return None
  teacher, student = (x.goodness(np.asarray(values, np.float64)) for values in x.of_users)
  d = teacher - student
  d = d[np.isfinite(d)]
  return significance.t_test(d) if len(d) > 1 else None


def transfer_ratios(measured: Mapping[str, Measured]) -> dict[str, dict[str, Any]]:
  """{"transfer_ratio": {metric: ratio or None}, "no_transfer": {metric: why there is no ratio}}."""
  found = {name: transfer_ratio(x) for name, x in measured.items()}
  return {"transfer_ratio": {name: ratio for name, (ratio, _) in found.items()},
          "no_transfer": {name: why for name, (_, why) in found.items() if why is not None}}


def relative_improvement(auc: float, base: float) -> float | None:
  """RelaImpr: (auc - 1/2) / (base - 1/2) - 1, both AUC. Zhou et al., KDD 2018, sec. 6.2.

  None unless the base is better than chance, 1/2: else the quotient says nothing.
  """
  return (auc - 0.5) / (base - 0.5) - 1 if base > 0.5 and np.isfinite(auc) else None


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """[U]: the share of the items of each row of `a` [U, k] that are also in the row of `b` [U, k]. -1 is no item."""
  in_b = (a[:, :, None] == b[:, None, :]).any(axis=2) & (a >= 0)
  return in_b.sum(axis=1) / np.maximum((a >= 0).sum(axis=1), 1)
