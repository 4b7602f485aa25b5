"""The transfer ratio where there is a gap to close, and the reason where there is none."""

import math

import numpy as np
import pytest
from scipy import stats

from kd_jax.base import LabelMetric, Metric
from kd_jax.evaluation import metric_names
from kd_jax.metrics.transfer import Measured, relative_improvement, transfer_ratio, transfer_ratios


def rises(x):
  return x


def falls(x):
  return -x


def of_users(gap, n=50, seed=0):
  """(teacher's, student's) values of `n` users whose difference has exactly the mean `gap`."""
  d = np.random.default_rng(seed).normal(size=n)
  student = np.random.default_rng(seed + 1).random(n)
  return student + d - d.mean() + gap, student


@pytest.mark.parametrize(("distilled", "ratio"), [(0.4, 0.5), (0.2, -0.5), (0.3, 0.0), (0.6, 1.5)])
def test_the_ratio_is_the_share_of_the_gap(distilled, ratio):
  assert transfer_ratio(Measured(0.5, 0.3, distilled, rises)) == (pytest.approx(ratio), None)


def test_a_metric_that_falls_has_its_gap_below():
  assert transfer_ratio(Measured(0.3, 0.5, 0.4, falls)) == (pytest.approx(0.5), None)
  assert transfer_ratio(Measured(0.5, 0.3, 0.4, falls)) == (
      None, "the teacher is not better than the student: +0.2000")


def test_of_a_metric_with_a_best_value_the_distance_from_it_counts():
  calibration = LabelMetric(None, best=1.0)

  def ratio(*three):
    return transfer_ratio(Measured(*three, lambda x: metric_names.goodness(calibration, x)))

  assert ratio(1.1, 0.6, 0.8) == (pytest.approx((0.4 - 0.2) / (0.4 - 0.1)), None)
  assert ratio(1.3, 1.0, 1.1) == (None, "the teacher is not better than the student: +0.3000")
  assert metric_names.goodness(Metric(None), 0.3) == 0.3
  assert metric_names.goodness(Metric(None, higher_is_better=False), 0.3) == -0.3


@pytest.mark.parametrize(("teacher", "student"), [(0.31, 0.34), (0.3, 0.3)])
def test_a_teacher_that_is_not_better_has_no_ratio(teacher, student):
  """Distillation hurt, and the quotient of two losses was 3.57, or infinite."""
  ratio, reason = transfer_ratio(Measured(teacher, student, student - 0.107, rises))
  assert ratio is None and reason == f"the teacher is not better than the student: {teacher - student:+.4f}"


@pytest.mark.parametrize("gap", [0.3, 0.2, -0.1])
def test_a_gap_that_is_not_told_apart_from_none_has_no_ratio(gap):
  teacher, student = of_users(gap)
  p = stats.ttest_rel(teacher, student).pvalue
  ratio, reason = transfer_ratio(Measured(teacher.mean(), student.mean(), 0.4, rises, (teacher, student)))
  if gap == 0.3:
    assert p < 0.05 and reason is None
    assert ratio == pytest.approx((0.4 - student.mean()) / (teacher.mean() - student.mean()))
    return
  words = "not told apart from" if gap > 0 else "not better than"
  assert p > 0.05 and ratio is None
  assert reason == f"the teacher is {words} the student: {gap:+.4f} (p {f'{p:.2g}'[1:]})"


def test_users_without_a_value_are_left_out_of_the_test_and_one_user_is_none():
  teacher, student = of_users(0.3)
  means = teacher.mean(), student.mean()
  whole = np.append(teacher, np.nan), np.append(student, np.nan)
  expected = transfer_ratio(Measured(*means, 0.4, rises, (teacher, student)))
  assert transfer_ratio(Measured(*means, 0.4, rises, whole)) == expected
  one = np.array([0.5, np.nan]), np.array([0.3, np.nan])
  assert transfer_ratio(Measured(0.5, 0.3, 0.4, rises, one)) == (pytest.approx(0.5), None)  # by the sign


@pytest.mark.parametrize(("three", "who"), [((math.nan, 1, 1), "teacher"), ((1, math.nan, 1), "student"),
                                            ((1, 0, math.nan), "run")])
def test_without_a_value_there_is_no_ratio(three, who):
  assert transfer_ratio(Measured(*three, rises)) == (None, f"the {who} has no value")


def test_ratios_and_reasons_stand_apart():
  found = transfer_ratios({"a": Measured(0.5, 0.3, 0.4, rises), "b": Measured(0.3, 0.5, 0.4, rises)})
  assert found == {"transfer_ratio": {"a": pytest.approx(0.5), "b": None},
                   "no_transfer": {"b": "the teacher is not better than the student: -0.2000"}}


def test_relative_improvement_needs_a_base_above_chance():
  assert relative_improvement(0.8, 0.7) == pytest.approx(0.5)
  assert relative_improvement(0.8, 0.5) is None and relative_improvement(0.8, 0.4) is None
  assert relative_improvement(math.nan, 0.7) is None and relative_improvement(0.8, math.nan) is None
