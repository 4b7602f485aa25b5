"""The same work done by several sides, each a process of its own, that take turns: repeat by repeat.

So none holds another's memory or threads, and a machine that is busy with other things is so for all alike.
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

OWN = "kd_jax"
Repeat = Callable[[], dict[str, float]]  # does the work once; "seconds" of it, and more numbers if it likes


class Settings(NamedTuple):
  """What the work is of."""

  model: str  # the student, a call
  teacher_model: str
  kds: tuple[str, ...]  # sums of methods
  batch_size: int
  warmup: int  # epochs before the first timing


def cores() -> int:
  """Processor cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def timed(prepare: Callable[[], Callable[[], dict[str, float]]]) -> Repeat:
  """Prepares a work, and makes a repeat of what does it and says what it likes."""
  once = prepare()

  def repeat():
    start = time.perf_counter()
    others = once()
    return {"seconds": time.perf_counter() - start, **others}

  return repeat


def serve(make: Callable[[], tuple[dict[str, Any], dict[str, Callable[[], Repeat]]]]) -> None:
  """Is a side: `make()` says on what machine, and {work: what prepares it}; answers each name on stdin with a line.

  A work is prepared when it is first named, and dropped when the next one is.
  """
  out, name, repeat = sys.stdout, None, None
  with contextlib.redirect_stdout(sys.stderr):
    machine, works = make()
    print(json.dumps({"machine": machine, "works": list(works)}), file=out, flush=True)
    for line in sys.stdin:
      if line.strip() != name:
        name = line.strip()
        repeat = works[name]()
      print(json.dumps(repeat() | {"peak": _peak()}), file=out, flush=True)


def _peak() -> float:
  """The most memory that this process has held so far, in GB."""
  import resource

  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


class Side:
  """A process that works when asked. `machine` is what it says of itself, `works` what it can do."""

  def __init__(self, command: list[str]):
    self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    self.machine, self.works = self._answer().values()

  def repeat(self, work: str) -> dict[str, float]:
    """Does the work once more."""
    print(work, file=self._process.stdin, flush=True)
    return self._answer()

  def _answer(self):
    line = self._process.stdout.readline()
    if not line:
      sys.exit(self._process.wait() or 1)  # it has said why
    return json.loads(line)

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()


def measure(sides: dict[str, Side], repeats: int) -> Iterator[tuple[str, dict[str, dict[str, float]]]]:
  """Yields (work, {side that can do it: summary of its repeats}), in the order of the first side."""
  for work in next(iter(sides.values())).works:
    found = {name: [] for name, side in sides.items() if work in side.works}
    for _ in range(repeats + 1):
      for name in found:
        found[name].append(sides[name].repeat(work))
    yield work, {name: _summary(*runs) for name, runs in found.items()}


def _summary(first, *rest) -> dict[str, float]:
  """The first time, median, least and most of the others, and means of what else was said."""
  seconds = [x["seconds"] for x in rest]
  others = {k: statistics.mean(x[k] for x in rest) for k in first if k not in ("seconds", "peak")}
  return {"first": first["seconds"], "median": statistics.median(seconds), "min": min(seconds), "max": max(seconds),
          **others, "peak": rest[-1]["peak"]}
