"""The latency of calls for random users: the only measurement of it, for reports, exports and services."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

_WARM = 5  # calls before the measured ones: they compile, and warm caches
PERCENTILES = (50, 95, 99)


def measure(call: Callable[[np.ndarray], Any], num_users: int, batch: int, calls: int,
            seconds: float = 0.0) -> dict[str, float]:
  """{"p50", "p95", "p99": milliseconds, "per_second": users, "calls"} of `call(users [batch] int32)`.

  At least so many calls and seconds are measured, after a warm-up; every call has other users.
  """
  rng, times, end = np.random.default_rng(batch), list[float](), 0.0
  while len(times) < _WARM + calls or time.perf_counter() < end:
    users = rng.integers(num_users, size=batch).astype(np.int32)
    start = time.perf_counter()
    call(users)
    times.append(time.perf_counter() - start)
    if len(times) == _WARM:
      end = time.perf_counter() + seconds
  kept = 1e3 * np.array(times[_WARM:])
  return {f"p{p}": float(np.percentile(kept, p)) for p in PERCENTILES} | {
      "per_second": batch * len(kept) / (kept.sum() / 1e3), "calls": len(kept)}
