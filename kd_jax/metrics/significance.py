"""Comparison of two rows of a table: paired tests over users, effect size, and interval of the difference."""

from __future__ import annotations

from typing import Any

import numpy as np

_DRAWS, _RESAMPLES, _LEVEL = 9_999, 2_000, 0.95
_BATCH = 200  # number of resamples in memory
TESTS = ("t_test", "randomisation")


def compare(a: np.ndarray, b: np.ndarray, seed: int = 0) -> dict[str, Any]:
  """Compares a metric's values `a` [V] and `b` [V] for the same V users, two-sided; users with NaN are left out.

  Returns, as JSON values:
    difference     mean of a - b
    interval       its 95 % percentile bootstrap interval over users, 2,000 resamples
    effect_size    Cohen's d of paired differences: their mean / their standard deviation; None if that is 0
    t_test         p of the paired t-test
    randomisation  p of the sign-flip test (Smucker, Allan, Carterette, CIKM 2007), 9,999 draws, add-one: >= 1e-4
    users          number of compared users

  Users are the sample: the numbers do not include the variation between training seeds. Raises ValueError for fewer
  than two users.
  """
  from scipy import stats  # the import takes half a second, and only tables need it

  d = np.asarray(a, np.float64) - b
  d = d[np.isfinite(d)]
  if len(d) < 2:
    raise ValueError(f"{len(d)} users are too few to compare")
  changed, std = d[d != 0], float(np.std(d, ddof=1))
  found = {"difference": float(np.mean(d)), "users": len(d)}
  p = t_test(d)
  if not std:  # all differences are equal, usually 0
    return found | {"interval": [found["difference"]] * 2, "effect_size": None, "t_test": p,
                    "randomisation": max(p, 1 / (_DRAWS + 1))}

  def draws():
    return np.random.default_rng(seed)

  interval = stats.bootstrap((d,), np.mean, n_resamples=_RESAMPLES, batch=_BATCH, confidence_level=_LEVEL,
                             method="percentile", rng=draws()).confidence_interval
  # A difference of 0 does not change when its sign is flipped, so these users are left out.
  flipped = stats.permutation_test((changed,), np.sum, permutation_type="samples", n_resamples=_DRAWS, batch=_BATCH,
                                   rng=draws()) if len(changed) > 1 else None
  return found | {"interval": [float(x) for x in interval], "effect_size": found["difference"] / std,
                  "t_test": p, "randomisation": 1.0 if flipped is None else float(flipped.pvalue)}


def t_test(d: np.ndarray) -> float:
  """p of the two-sided paired t-test for differences `d` [V] of at least two users.

  If all differences are equal: 1 if they are 0, else 0.
  """
  from scipy import stats

  if not np.std(d, ddof=1):
    return 0.0 if np.any(d) else 1.0
  return float(stats.ttest_1samp(d, 0.0).pvalue)


def holm(p: list[float]) -> list[float]:
  """Holm's step-down correction of p-values of one family, in the given order (Scandinavian J. Statistics, 1979)."""
  order = np.argsort(p, kind="stable")
  scaled = np.asarray(p)[order] * (len(p) - np.arange(len(p)))
  corrected = np.empty(len(p))
  corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
  return corrected.tolist()


def compare_rows(values: dict[str, dict[str, np.ndarray]], pairs: list[tuple[str, str]],
                 metrics: list[str]) -> list[dict[str, Any]]:
  """Compares every pair of rows on every metric; p-values are corrected over the pairs of each metric.

  `values` is {row: {metric: [S, V]}} for S seeds and the same V users. The values of a user are averaged over seeds
  before the tests. `std` is the standard deviation over seeds of the mean difference; None for one seed.
  """
  found = [{"rows": list(pair), "metrics": {}} for pair in pairs]
  for metric in metrics:
    made = []
    for row, other in pairs:
      a, b = values[row][metric], values[other][metric]
      by_seed = np.nanmean(a, axis=1) - np.nanmean(b, axis=1)
      std = float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None
      made.append(compare(a.mean(axis=0), b.mean(axis=0)) | {"std": std, "differences": by_seed.tolist()})
    for test in TESTS:
      for one, corrected in zip(made, holm([x[test] for x in made]), strict=True):
        one[f"{test}_holm"] = corrected
    for entry, one in zip(found, made, strict=True):
      entry["metrics"][metric] = one
  return found
