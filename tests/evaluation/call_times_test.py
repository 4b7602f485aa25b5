"""Latencies are those of the calls after the warm-up."""

import time

import numpy as np

from kd_jax.evaluation import call_times


def test_percentiles_and_throughput_are_those_of_the_calls():
  """One call in ten takes ten times as long; the first ones, which compile, are not counted."""
  seen = []

  def recommend(users):
    seen.append(users)
    time.sleep(0.2 if len(seen) <= 5 else 0.02 if len(seen) % 10 == 0 else 0.002)

  found = call_times.measure(recommend, 40, 4, 10, 0.3)
  assert {users.shape for users in seen} == {(4,)} and found["calls"] == len(seen) - 5
  assert all(0 <= users.min() and users.max() < 40 and users.dtype == np.int32 for users in seen)
  assert 2 <= found["p50"] < 20 <= found["p99"] and found["p50"] <= found["p95"] <= found["p99"]
  assert found["per_second"] < 4 * 1000 / 3.8


def test_there_are_as_many_calls_as_asked_for():
  seen = []
  assert call_times.measure(seen.append, 40, 1, 17)["calls"] == 17 == len(seen) - 5
