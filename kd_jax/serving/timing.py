"""Times one form of one model in a process of its own: cold start, memory, latency.

  python -m kd_jax.serving.timing SETTINGS

SETTINGS is JSON, see `Settings`; the last line of the output is JSON, too.
"""

from __future__ import annotations

import json
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kd_jax.base import InputError
from kd_jax.evaluation import call_times
from kd_jax.storage import sealed

_CALLS = 10  # at least, for each batch size


class Settings(NamedTuple):
  """What is timed."""

  started: float  # when the process was started, in seconds since 1970
  form: str  # "jit" (the training code), or a format of exports
  export: str
  run: str
  approximate: bool
  batches: list[int]
  seconds: float  # of measuring, for each batch size
  k: int
  data_dir: str | None
  cache_dir: str | None


def apart(settings: Settings) -> dict[str, Any]:
  """{"cold_start": seconds, "memory": MB, "batches": {size: `call_times.measure`}} of a process that is started now.

  Raises InputError with the last line of its errors.
  """
  content = sealed.to_json(settings._replace(started=time.time())._asdict(), indent=None).decode()
  done = subprocess.run([sys.executable, "-m", "kd_jax.serving.timing", content], capture_output=True, text=True)
  if done.returncode:
    said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
    raise InputError(f"{settings.export}: as {settings.form}: {said[-1]}")
  return json.loads(done.stdout.splitlines()[-1])


def _of_export(settings) -> tuple[Callable[[np.ndarray], Any], int]:
  from kd_jax.serving import loading
  from kd_jax.serving.requests import Request

  recommender = loading.load(settings.export, settings.form, trial=False, index=settings.approximate)
  ids = recommender.contents.user_ids
  return lambda users: recommender.recommend_many([Request(ids[user], k=settings.k) for user in users]), len(ids)


def _of_run(settings) -> tuple[Callable[[np.ndarray], Any], int]:
  """Scores and top k of the training code as one compiled function of indices; nothing is excluded."""
  import jax

  from kd_jax import data
  from kd_jax.data import index
  from kd_jax.ranking import rank
  from kd_jax.storage import run_directory
  from kd_jax.teachers import loading as runs

  info = run_directory.read_finished(settings.run).info
  dataset = data.load(info["data"], settings.data_dir, settings.cache_dir, expected=info["hashes"])
  score, priority = rank.scorer(*runs.network(settings.run, dataset)), index.priority(dataset.item_ids)
  compiled = jax.jit(lambda users: rank.top_k(score(users), priority, settings.k))
  return lambda users: jax.block_until_ready(compiled(users)), dataset.num_users


def peak_memory() -> int:
  """The most memory, in kB, that this process has had. On Linux, `getrusage` would begin with that of the parent."""
  status = pathlib.Path("/proc/self/status")
  if status.exists():
    return int(status.read_text().partition("VmHWM:")[2].split()[0])
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)


def main(text: str) -> None:
  """Prints the measurements."""
  settings = Settings(**json.loads(text))
  recommend, num_users = _of_run(settings) if settings.form == "jit" else _of_export(settings)
  recommend(np.zeros(1, np.int32))
  cold = time.time() - settings.started
  batches = {str(b): call_times.measure(recommend, num_users, b, _CALLS, settings.seconds) for b in settings.batches}
  found = {"cold_start": cold, "batches": batches, "memory": peak_memory() / 1024}
  print(sealed.to_json(found, indent=None).decode(), end="")


if __name__ == "__main__":
  main(sys.argv[1])
