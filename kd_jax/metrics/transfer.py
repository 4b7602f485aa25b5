"""The gain of distillation, and the overlap of two models' lists."""

from __future__ import annotations

import numpy as np


def transfer_ratio(teacher: float, student: float, distilled: float) -> float:
  """(distilled - student) / (teacher - student): the share of the gap that distillation closes; NaN without a gap."""
  return (distilled - student) / (teacher - student) if teacher != student else float("nan")


def relative_improvement(auc: float, base: float) -> float:
  """RelaImpr: (auc - 1/2) / (base - 1/2) - 1, both AUC. Zhou et al., KDD 2018, sec. 6.2."""
  return (auc - 0.5) / (base - 0.5) - 1 if base != 0.5 else float("nan")


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """[U]: the share of the items of each row of `a` [U, k] that are also in the row of `b` [U, k]. -1 is no item."""
  in_b = (a[:, :, None] == b[:, None, :]).any(axis=2) & (a >= 0)
  return in_b.sum(axis=1) / np.maximum((a >= 0).sum(axis=1), 1)
