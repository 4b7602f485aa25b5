"""Times the same tasks in several processes ("sides"), for example one per library, which take turns at each repeat.

So the sides do not share memory or threads, and other load on the machine affects all sides equally.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from kd_jax.storage import sealed

OWN = "kd_jax"
Repeat = Callable[[], dict[str, float]]  # runs a task once; returns its "seconds", and perhaps extra measurements


class Settings(NamedTuple):
  """The models and methods to time."""

  model: str  # the student's model, as a call
  teacher_model: str
  kds: tuple[str, ...]  # each a sum of methods
  batch_size: int
  warmup: int  # epochs before the first timing


def cores() -> int:
  """The number of processor cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def timed(prepare: Callable[[], Callable[[], dict[str, float]]]) -> Repeat:
  """Sets up one task. Returns a callable that runs it once and returns its time and extra measurements."""
  once = prepare()

  def repeat():
    start = time.perf_counter()
    others = once()
    return {"seconds": time.perf_counter() - start, **others}

  return repeat


def serve(make: Callable[[], tuple[dict[str, Any], dict[str, Callable[[], Repeat]]]]) -> None:
  """The main loop of a side: for each name of a task on stdin, runs the task once and prints its result as JSON.

  `make()` returns a description of the machine, and {name of a task: function that prepares it}. A task is prepared
  when it is first named, and released when another one is named.
  """
  out, name, repeat = sys.stdout, None, None
  with contextlib.redirect_stdout(sys.stderr):
    machine, works = make()
    _say(out, {"machine": machine, "works": list(works)})
    for line in sys.stdin:
      if line.strip() != name:
        name = line.strip()
        repeat = works[name]()
      _say(out, repeat() | {"peak": _peak()})


def _say(out, answer):
  print(sealed.to_json(answer, indent=None).decode(), end="", file=out, flush=True)


def _peak() -> float:
  """The peak memory of this process so far, in GB."""
  import resource

  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


class Side:
  """A process that runs tasks on request. `machine` is its description of the machine, `works` its tasks."""

  def __init__(self, command: list[str]):
    self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    self.machine, self.works = self._answer().values()

  def repeat(self, work: str) -> dict[str, float]:
    """Runs the task once more."""
    print(work, file=self._process.stdin, flush=True)
    return self._answer()

  def _answer(self):
    line = self._process.stdout.readline()
    if not line:
      sys.exit(self._process.wait() or 1)  # it has printed the reason
    return json.loads(line)

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()


def measure(sides: dict[str, Side], repeats: int) -> Iterator[tuple[str, dict[str, dict[str, float]]]]:
  """Yields (task, {side that has it: summary of its repeats}), in the order of the first side."""
  for work in next(iter(sides.values())).works:
    found = {name: [] for name, side in sides.items() if work in side.works}
    for _ in range(repeats + 1):
      for name in found:
        found[name].append(sides[name].repeat(work))
    yield work, {name: _summary(*runs) for name, runs in found.items()}


def _summary(first, *rest) -> dict[str, float]:
  """The first time; median, minimum and maximum of the others; means of the extra measurements."""
  seconds = [x["seconds"] for x in rest]
  others = {k: statistics.mean(x[k] for x in rest) for k in first if k not in ("seconds", "peak")}
  return {"first": first["seconds"], "median": statistics.median(seconds), "min": min(seconds), "max": max(seconds),
          **others, "peak": rest[-1]["peak"]}
