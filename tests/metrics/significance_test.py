"""Paired tests against scipy and formulas, and their level by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from kd_jax.metrics import significance


def users(n=120, shift=0.0, seed=0):
  """Values of two models for `n` users, many of them equal, as ranking metrics are."""
  rng = np.random.default_rng(seed)
  a = np.round(rng.random(n), 1)
  b = np.where(rng.random(n) < 0.4, a, np.round(rng.random(n), 1)) + shift
  return a, b


@pytest.mark.parametrize("shift", [0.0, -0.1])
def test_tests_effect_and_interval_are_those_of_scipy(shift):
  a, b = users(shift=shift)
  found = significance.compare(a, b)
  expected = stats.ttest_rel(a, b)
  assert found["t_test"] == pytest.approx(expected.pvalue, rel=1e-9)
  assert found["effect_size"] == pytest.approx(expected.statistic / math.sqrt(len(a)), rel=1e-9)
  assert found["difference"] == pytest.approx((a - b).mean()) and found["users"] == len(a)
  swaps = stats.permutation_test((a, b), lambda x, y: np.mean(x) - np.mean(y), permutation_type="samples",
                                 vectorized=False, n_resamples=2000, rng=np.random.default_rng(1))
  assert found["randomisation"] == pytest.approx(swaps.pvalue, abs=0.04)
  interval = stats.bootstrap((a - b,), np.mean, n_resamples=2000, batch=200, method="percentile",
                             rng=np.random.default_rng(0)).confidence_interval
  assert found["interval"] == pytest.approx(list(interval), rel=1e-9)
  half = stats.sem(a - b) * stats.norm.ppf(0.975)  # the normal interval, close with 120 users
  assert found["interval"] == pytest.approx([found["difference"] - half, found["difference"] + half], abs=0.15 * half)


def test_few_users_are_tested_exactly():
  a, b = np.array([3.0, 1.0, 4.0, 2.0, 5.0]), np.array([1.0, 1.5, 1.0, 1.0, 1.0])
  d = a - b
  signs = [[1 if mask >> i & 1 else -1 for i in range(5)] for mask in range(32)]
  p = np.mean([abs(np.dot(s, d)) >= abs(d.sum()) - 1e-12 for s in signs])
  assert significance.compare(a, b)["randomisation"] == pytest.approx(p)


def test_the_tests_have_their_level_and_find_what_is_there(monkeypatch):
  monkeypatch.setattr(significance, "_DRAWS", 199)
  monkeypatch.setattr(significance, "_RESAMPLES", 99)
  rng = np.random.default_rng(3)
  level = dict.fromkeys(significance.TESTS, 0)
  for trial in range(200):
    a, b = rng.exponential(size=(2, 40))  # skewed, but exchangeable
    found = significance.compare(a, b, seed=trial)
    for test in level:
      level[test] += found[test] < 0.1
  for test, rejected in level.items():
    assert stats.binomtest(rejected, 200, 0.1).pvalue > 1e-3, test
  strong = significance.compare(a + 1.0, b)
  assert all(strong[test] <= 0.02 for test in significance.TESTS) and strong["interval"][0] > 0


@pytest.mark.parametrize("same", [0.0, 0.25])
def test_rows_that_differ_by_a_constant_have_no_effect_size(same):
  a = np.linspace(0, 1, 9)
  found = significance.compare(a + same, a) if not same else significance.compare(np.full(9, 0.5), np.full(9, 0.25))
  assert found["effect_size"] is None and found["interval"] == [same, same]
  assert found["t_test"] == (0.0 if same else 1.0) and found["randomisation"] == (1e-4 if same else 1.0)


def test_one_user_that_differs_proves_nothing():
  a = np.zeros(9)
  b = np.where(np.arange(9) == 4, 1.0, 0.0)
  assert significance.compare(a, b)["randomisation"] == 1.0


def test_metrics_that_are_compared_together_have_the_results_of_each_alone():
  a, b = (dict(zip("mnop", columns, strict=True)) for columns in np.random.default_rng(7).normal(size=(2, 4, 80)))
  a["n"][:5], b["o"][60:] = np.nan, np.nan
  a["p"] = np.where(np.arange(80) < 6, a["p"], b["p"])  # few users differ: exact
  together = significance.compare_all(a, b)
  assert list(together) == list(a)
  for name, found in together.items():
    alone = significance.compare(a[name], b[name])
    assert found == alone


def test_users_without_a_value_are_left_out():
  a, b = users()
  a[:7], b[5:10] = np.nan, np.nan
  assert significance.compare(a, b) == significance.compare(a[10:], b[10:])
  with pytest.raises(ValueError, match="too few"):
    significance.compare(a[:11], b[:11])


def test_holm_is_the_step_down_rule():
  p = [0.01, 0.04, 0.03, 0.005, 0.6]

  def by_definition(i):
    order = sorted(range(len(p)), key=p.__getitem__)
    return min(1.0, max((len(p) - place) * p[j] for place, j in enumerate(order[: order.index(i) + 1])))

  assert significance.holm(p) == pytest.approx([by_definition(i) for i in range(len(p))])
  assert significance.holm([0.2]) == [0.2] and significance.holm([0.9, 0.8]) == [1.0, 1.0]


def test_rows_are_averaged_over_seeds_and_corrected_over_pairs():
  rng = np.random.default_rng(5)
  values = {row: {"m": rng.random((3, 60)) + shift} for row, shift in (("a", 0.1), ("b", 0.0), ("c", 0.0))}
  pairs = [("a", "b"), ("a", "c"), ("b", "c")]
  found = significance.compare_rows(values, pairs, ["m"])
  plain = [significance.compare(values[r]["m"].mean(axis=0), values[o]["m"].mean(axis=0)) for r, o in pairs]
  for entry, pair, one in zip(found, pairs, plain, strict=True):
    made = entry["metrics"]["m"]
    assert entry["rows"] == list(pair) and {k: made[k] for k in one} == one
    by_seed = [(values[pair[0]]["m"][s] - values[pair[1]]["m"][s]).mean() for s in range(3)]
    assert made["differences"] == pytest.approx(by_seed) and made["std"] == pytest.approx(np.std(by_seed, ddof=1))
  for test in significance.TESTS:
    assert [e["metrics"]["m"][f"{test}_holm"] for e in found] == significance.holm([one[test] for one in plain])
