"""Comparison of two rows of a table: paired tests over users, effect size, and interval of the difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_DRAWS, _RESAMPLES, _LEVEL = 9_999, 2_000, 0.95
_BATCH = 200  # number of resamples in memory
_NUMBERS = 2**23  # signs in memory
TESTS = ("t_test", "randomisation")


def compare(a: np.ndarray, b: np.ndarray, seed: int = 0) -> dict[str, Any]:
  """Compares a metric's values `a` [V] and `b` [V] for the same V users, two-sided; users with NaN are left out.

  Returns, as JSON values:
    difference     mean of a - b
    interval       its 95 % percentile bootstrap interval over users, 2,000 resamples
    effect_size    Cohen's d of paired differences: their mean / their standard deviation; None if that is 0
    t_test         p of the paired t-test
    randomisation  p of the sign-flip test (Smucker, Allan, Carterette, CIKM 2007), 9,999 draws, add-one: >= 2e-4;
                   exact, from all signs, if these are fewer
    users          number of compared users

  Users are the sample: the numbers do not include the variation between training seeds. Raises ValueError for fewer
  than two users.
  """
  return compare_all({"": a}, {"": b}, seed)[""]


def compare_all(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], seed: int = 0) -> dict[str, dict[str, Any]]:
  """`compare` for every metric of `a`, {metric: [V]}, with equal results; metrics of the same users share draws."""
  differences = {name: np.asarray(values, np.float64) - b[name] for name, values in a.items()}
  users: dict[bytes, list[str]] = {}
  for name, d in differences.items():
    users.setdefault(np.isfinite(d).tobytes(), []).append(name)
  found = {}
  for names in users.values():
    kept = np.isfinite(differences[names[0]])
    if kept.sum() < 2:
      raise ValueError(f"{kept.sum()} users are too few to compare")
    columns = np.stack([differences[name][kept] for name in names], axis=1)
    rounded = _rounded(columns)
    tests = zip(names, columns.T, _sign_flip(rounded, seed), _intervals(rounded, seed), strict=True)
    found |= {name: _compared(d, float(p), interval.tolist()) for name, d, p, interval in tests}
  return {name: found[name] for name in a}


def _compared(d, randomisation, interval) -> dict[str, Any]:
  found = {"difference": float(np.mean(d)), "users": len(d)}
  p, std = t_test(d), float(np.std(d, ddof=1))
  if not std:  # all differences are equal, usually 0
    return found | {"interval": [found["difference"]] * 2, "effect_size": None, "t_test": p,
                    "randomisation": max(p, 1 / (_DRAWS + 1))}
  return found | {"interval": interval, "effect_size": found["difference"] / std, "t_test": p,
                  "randomisation": randomisation}


def _rounded(d) -> np.ndarray:
  """Differences [V, M] in steps of 2^-48 of their sum, or finer: float64 adds them without rounding, in any order.

  So the results of a metric do not depend on the metrics beside it.
  """
  total = np.maximum(np.abs(d).sum(axis=0), np.finfo(np.float64).tiny)
  step = np.exp2(np.ceil(np.log2(total)) - 48)
  return np.round(d / step) * step


def _intervals(d, seed) -> np.ndarray:
  """The bootstrap intervals [M, 2] of the means of `d` [V, M]: the resamples, and so the intervals, of SciPy."""
  rng, users, means = np.random.default_rng(seed), len(d), []
  for first in range(0, _RESAMPLES, _BATCH):
    drawn = rng.integers(0, users, (min(_BATCH, _RESAMPLES - first), users))
    times = np.stack([np.bincount(row, minlength=users) for row in drawn])
    means.append(times.astype(np.float64) @ d / users)
  return np.percentile(np.concatenate(means), [50 * (1 - _LEVEL), 50 * (1 + _LEVEL)], axis=0).T


def _sign_flip(d, seed) -> np.ndarray:
  """p [M] of sums over users of differences `d` [V, M], if the sign of each user's difference were random."""
  p, few = np.empty(d.shape[1]), (d != 0).sum(axis=0) <= np.log2(_DRAWS)
  for column in np.flatnonzero(few):
    p[column] = _exact(d[d[:, column] != 0, column])
  if not few.all():
    p[~few] = _drawn(d[:, ~few], np.random.default_rng(seed))
  return p


def _exact(d) -> float:
  """From all 2^V signs of `d` [V]."""
  kept = np.arange(2 ** len(d))[:, None] >> np.arange(len(d)) & 1
  return float(_two_sided(*_beyond(kept, d[:, None]), len(kept))[0])


def _drawn(d, rng) -> np.ndarray:
  """From random signs of `d` [V, M], the same for all columns, with the observed ones."""
  users, less, greater = len(d), 1, 1
  rows = max(1, _NUMBERS // users)
  for first in range(0, _DRAWS, rows):
    octets = rng.integers(256, size=(min(rows, _DRAWS - first), -(-users // 8)), dtype=np.uint8)
    counts = _beyond(np.unpackbits(octets, axis=1, count=users), d)
    less, greater = less + counts[0], greater + counts[1]
  return _two_sided(less, greater, _DRAWS + 1)


def _beyond(kept, d) -> tuple[np.ndarray, np.ndarray]:
  """How many sums of differences are at most, and at least, the observed ones; `kept` [n, V] is 0 for a turned sign."""
  observed = d.sum(axis=0)
  sums, rounding = 2 * (kept.astype(np.float64) @ d) - observed, 1e-10 * np.abs(d).sum(axis=0)
  return (sums <= observed + rounding).sum(axis=0), (sums >= observed - rounding).sum(axis=0)


def _two_sided(less, greater, count) -> np.ndarray:
  return np.minimum(1.0, 2 * np.minimum(less, greater) / count)


def t_test(d: np.ndarray) -> float:
  """p of the two-sided paired t-test for differences `d` [V] of at least two users.

  If all differences are equal: 1 if they are 0, else 0.
  """
  from scipy import special  # scipy.stats has the same, and takes half a second to import

  if not (std := np.std(d, ddof=1)):
    return 0.0 if np.any(d) else 1.0
  return float(2 * special.stdtr(len(d) - 1, -abs(np.mean(d)) / std * np.sqrt(len(d))))


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
  found = []
  for row, other in pairs:
    a, b = ({metric: values[name][metric] for metric in metrics} for name in (row, other))
    made = compare_all({m: x.mean(axis=0) for m, x in a.items()}, {m: x.mean(axis=0) for m, x in b.items()})
    for metric, one in made.items():
      by_seed = np.nanmean(a[metric], axis=1) - np.nanmean(b[metric], axis=1)
      one |= {"std": float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None, "differences": by_seed.tolist()}
    found.append({"rows": [row, other], "metrics": made})
  for metric in metrics:
    of_pairs = [entry["metrics"][metric] for entry in found]
    for test in TESTS:
      for one, corrected in zip(of_pairs, holm([x[test] for x in of_pairs]), strict=True):
        one[f"{test}_holm"] = corrected
  return found
