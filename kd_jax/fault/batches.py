"""A process that runs cases of one kind, one after another, and tells how each ended."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import tempfile
import time
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kd_jax.fault import children, disks, files, flags, judge, kills, reads, switches, writers
from kd_jax.fault.copies import Place
from kd_jax.fault.judge import Outcome

_STALL = 300  # seconds without a word from a process: the case that it runs hangs


class Kind(NamedTuple):
  """A kind of case: what runs it, its share of the time, and the number of cases of a process."""

  make: Callable[[Place], Any]
  share: float
  batch: int


KINDS = {
    "damage": Kind(reads.DamagedReads, 22, 500),
    "process": Kind(reads.DamagedProcesses, 6, 40),
    "flags": Kind(flags.NonsenseFlags, 12, 1500),
    "files": Kind(files.NonsenseFiles, 10, 1000),
    "kill": Kind(kills.Kills, 38, 20),
    "disk": Kind(disks.FullDisks, 8, 15),
    "writers": Kind(writers.TwoWriters, 4, 10)}


class Ended(NamedTuple):
  """A case that has ended."""

  kind: str
  number: int
  what: str  # was done
  outcome: Outcome


def drawn(seed: int, kind: str, number: int) -> np.random.Generator:
  """The random numbers of a case."""
  return np.random.default_rng([seed, zlib.crc32(kind.encode()), number])


@dataclasses.dataclass
class Batch:
  """The process of the cases `numbers`."""

  kind: str
  numbers: range
  pid: int
  pipe: int
  folder: pathlib.Path
  heard: float
  running: int | None = None  # the number of the case that has begun
  last: int | None = None  # that of the latest that has begun
  rest: bytes = b""
  over: bool = False

  @property
  def left(self) -> range:
    """The numbers of the cases that a process that has ended did not come to."""
    return range(self.numbers.start if self.last is None else self.last + 1, self.numbers.stop)

  def fileno(self) -> int:
    """For `select`."""
    return self.pipe

  def hear(self) -> list[Ended]:
    """What the process has said since; call it when there is something."""
    piece = os.read(self.pipe, 1 << 16)
    self.heard = time.monotonic()
    *lines, self.rest = (self.rest + piece).split(b"\n")
    ended = []
    for line in map(json.loads, lines):
      if "outcome" in line:
        ended.append(Ended(self.kind, line["number"], line["what"], Outcome(*line["outcome"])))
      self.last = line["number"]
      self.running = None if "outcome" in line else self.last
    return ended if piece else ended + self._ended()

  def stalled(self) -> list[Ended]:
    """The case that hangs, if there is one; its process is killed."""
    if self.over or time.monotonic() - self.heard < _STALL:
      return []
    self.kill()
    return [Ended(self.kind, self.running or -1, "", Outcome(judge.HANG, f"more than {_STALL} s, past all limits"))]

  def kill(self) -> None:
    """Ends the process and its children."""
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self.pid, signal.SIGKILL)
    self._ended()

  def _ended(self) -> list[Ended]:
    """Whatever a process left undone when it ended by itself: its case, or the batch, has failed."""
    if self.over:
      return []
    self.over = True
    os.close(self.pipe)
    _, status = os.waitpid(self.pid, 0)
    said = self.folder / "batch.err"
    told = said.read_text("utf-8", "replace")[-1500:] if said.exists() else ""
    shutil.rmtree(self.folder, ignore_errors=True)
    code = os.waitstatus_to_exitcode(status)
    if code in (0, -signal.SIGKILL):
      return []
    return [Ended(self.kind, -1 if self.running is None else self.running, "", Outcome(
        judge.TRACEBACK, f"the process ended with {code}: {told}"))]


def start(place: Place, seed: int, kind: str, numbers: range, without: str) -> Batch:
  """Forks a process for the cases `numbers` of a kind; it works in `place.scratch`, which is removed at its end."""
  place.scratch.mkdir(parents=True)
  reading, writing = os.pipe()

  def work():
    os.close(reading)
    os.environ["TMPDIR"] = tempfile.tempdir = str(place.scratch)  # for files of unforeseen errors
    switches.off(without)
    made = KINDS[kind].make(place)
    for number in numbers:
      _say(writing, {"number": number})
      what, outcome = made.case(drawn(seed, kind, number))
      _say(writing, {"number": number, "what": what[:3000], "outcome": outcome})

  pid = children.fork(work, [place.scratch / "batch.out", place.scratch / "batch.err"])
  os.close(writing)
  return Batch(kind, numbers, pid, reading, place.scratch, time.monotonic())


def _say(pipe, value):
  data = json.dumps(value).encode() + b"\n"
  while data:
    data = data[os.write(pipe, data) :]
