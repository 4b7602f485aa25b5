"""Time and memory of preparing a large log, beside what pandas or Polars need to read the same file.

Every measurement is a process of its own, started by scripts/bench_prepare.py.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import time
from typing import Any

import numpy as np

from kd_jax.base import InputError
from kd_jax.serving.timing import peak_memory

RESULT = 20  # bytes of an interaction in the arrays of a data set: two int32, float32, int64
_ROWS = 1 << 20  # rows that are generated at a time


def generate(path: pathlib.Path, rows: int, seed: int = 0) -> None:
  """Writes `rows` lines user,item,rating,timestamp: users and items of Zipf-like popularity, some pairs repeated."""
  rng = np.random.default_rng(seed)
  users, items = max(10, rows // 100), max(10, rows // 400)
  with open(path, "w") as file:
    file.write("user,item,rating,timestamp\n")
    for start in range(0, rows, _ROWS):
      count = min(_ROWS, rows - start)
      user = (users * rng.random(count) ** 2).astype(np.int64)
      item = (items * rng.random(count) ** 3).astype(np.int64)
      stars, times = rng.integers(1, 11, count) / 2, 10**9 + rng.integers(10**8, size=count)
      columns = [x.astype(str).tolist() for x in (user, item, stars, times)]
      file.write("\n".join(map(",".join, zip(*columns, strict=True))) + "\n")


def side(name: str, path: str, cache_dir: str) -> dict[str, Any]:
  """Runs one side in this process: {seconds, base and peak memory in bytes, rows}."""
  work = {"pandas": _pandas, "polars": _polars, "kd_jax": _kd_jax}[name](path, cache_dir)
  base, start = 1024 * peak_memory(), time.perf_counter()
  rows = work()
  return {"seconds": time.perf_counter() - start, "base": base, "peak": 1024 * peak_memory(), "rows": rows}


def measure(name: str, path: pathlib.Path, script: str, cache_dir: str) -> dict[str, Any]:
  """The result of `side` in a process of its own. Raises InputError with the last line of its errors."""
  done = subprocess.run([sys.executable, script, f"--side={name}", f"--path={path}", f"--cache_dir={cache_dir}"],
                        capture_output=True, text=True)
  if done.returncode:
    raise InputError(f"`against={name}`: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
  return json.loads(done.stdout.splitlines()[-1])


def above(found: dict[str, Any]) -> float:
  """Bytes of memory for each row, beyond the program itself and the arrays of the result."""
  return (found["peak"] - found["base"]) / found["rows"] - RESULT


def _pandas(path, cache_dir):
  import pandas

  kinds = {"user": str, "item": str, "rating": "float32", "timestamp": "int64"}
  return lambda: len(pandas.read_csv(path, dtype=kinds, engine="c"))


def _polars(path, cache_dir):
  import polars

  kinds = {"user": polars.String, "item": polars.String, "rating": polars.Float32, "timestamp": polars.Int64}
  return lambda: polars.read_csv(path, schema_overrides=kinds).height


def _kd_jax(path, cache_dir):
  from kd_jax import registry
  from kd_jax.data import builder, store

  del builder  # imported here, so that it is no part of the time
  call = store.canonical(registry.parse("data", f"interactions(path={path!r}, rating='rating', timestamp='timestamp')",
                                        "data"))

  def work():
    folder = store.prepare(call, None, cache_dir)
    return store._manifest(folder)["metadata"]["report"]["cleaning"]["rows"]

  return work
