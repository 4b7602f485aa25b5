"""A service under load: wrk, a program of its own, sends requests while exports are replaced."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from kd_jax import cli
from kd_jax.base import InputError
from kd_jax.serving import export, latency, timing
from kd_jax.storage import sealed

_SERVE = cli.folder("scripts") / "serve.py"
_SECONDS_TO_START, _SECONDS_TO_END = 120, 30
_ERRORS = ("connect", "read", "write", "status", "timeout")

# What wrk runs: arguments are a file of paths, and requests per second (0: no pause). Sending does not wait for answers
# while connections are left, so that a slow answer does not slow down the load. Times of wrk are in microseconds.
_PROGRAM = """
local ffi = require("ffi")
ffi.cdef[[typedef struct { long seconds, nanoseconds; } moment; int clock_gettime(int clock, moment *found);]]
local found, requests, place, between, due = ffi.new("moment"), {}, 0, 0, nil

function init(arguments)
  for path in io.lines(arguments[1]) do requests[#requests + 1] = wrk.format("GET", path) end
  local rate = tonumber(arguments[2])
  between = rate > 0 and 1000 / rate or 0
end

function request()
  place = place % #requests + 1
  return requests[place]
end

function delay()
  if between == 0 then return 0 end
  ffi.C.clock_gettime(1, found)
  local now = tonumber(found.seconds) * 1e3 + tonumber(found.nanoseconds) / 1e6
  due = (due or now) + between
  return math.max(0, math.floor(due - now + 0.5))
end

function done(summary, latency)
  local said = {string.format('"requests": %d, "seconds": %.3f, "longest": %.3f', summary.requests,
                              summary.duration / 1e6, latency.max / 1e3)}
  for _, p in ipairs({50, 95, 99}) do said[#said + 1] = string.format('"p%d": %.3f', p, latency:percentile(p) / 1e3) end
  for name, count in pairs(summary.errors) do said[#said + 1] = string.format('"%s": %d', name, count) end
  print("{" .. table.concat(said, ", ") .. "}")
end
"""


class Settings(NamedTuple):
  """How much load, and from where."""

  seconds: int = 60  # of each phase
  rate: int = 500  # requests per second
  connections: int = 32
  replace_seconds: float = 5.0  # from the first answer of an export to its replacement
  format: str = "npz"
  cores: tuple[int, int] | None = None  # of the service, and of wrk; None: any


def write(teacher: str | os.PathLike, student: str | os.PathLike, out: str | os.PathLike, settings: Settings, *,
          data_dir: str | None = None, cache_dir: str | None = None) -> Iterator[str]:
  """Exports two runs, times both in process, serves the student by scripts/serve.py, and sends requests of all users.

  There are three phases: at the rate; as many requests as the connections allow; and at the rate while the student's
  export is replaced by another one and back. Writes OUT/load.md and OUT/load.json, and yields the lines of the former.
  Raises InputError: wrk is not installed, a run cannot be exported, or the service does not start.
  """
  if not shutil.which("wrk"):
    raise InputError("requests are sent by wrk, which is not installed: apt-get install wrk")
  folder, lines = pathlib.Path(out), list[str]()
  shutil.rmtree(folder / "exports" / "spare", ignore_errors=True)  # of a call that was interrupted
  names = {"teacher": teacher, "student": student, "next": student}
  for name, run in names.items():
    list(export.export_run(run, folder / "exports" / name, formats=settings.format, data_dir=data_dir,
                           cache_dir=cache_dir, history=export.HISTORIES[name == "next"]))
  found: dict[str, Any] = {"machine": latency.machine(), "settings": settings._asdict(), "in_process": {}, "phases": {}}
  lines += _row("export", "p50 ms", "p95 ms", "p99 ms", "calls/s"), _row(*["---"] * 5)
  yield from lines
  for name in ("teacher", "student"):
    one = _in_process(folder / "exports" / name, settings)
    found["in_process"][name] = one
    lines.append(_row(name, *(f"{one[p]:.3f}" for p in ("p50", "p95", "p99")), f"{one['per_second']:,.0f}"))
    yield lines[-1]
  head = ["", _row("phase", "requests", "requests/s", "p50 ms", "p95 ms", "p99 ms", "longest ms", "errors", "replaced"),
          _row(*["---"] * 9)]
  lines += head
  yield from head
  with _service(folder, settings) as port:
    swap = _Swap(folder / "exports", port, settings.replace_seconds)
    for phase, rate, meanwhile in ((f"{settings.rate} a second", settings.rate, None), ("as many as possible", 0, None),
                                   (f"{settings.rate} a second, replaced", settings.rate, swap)):
      one = found["phases"][phase] = _attack(folder, port, settings, rate, meanwhile)
      lines.append(_row(phase, f"{one['requests']:,}", f"{one['requests'] / one['seconds']:,.0f}",
                        *(f"{one[p]:.2f}" for p in ("p50", "p95", "p99", "longest")),
                        str(sum(one[name] for name in _ERRORS)), str(one["replaced"])))
      yield lines[-1]
  sealed.write_json_atomic(folder / "load.json", found)
  sealed.write_atomic(folder / "load.md", ("\n".join(lines) + "\n").encode())


def _row(*cells) -> str:
  return f"| {' | '.join(cells)} |"


def _in_process(place, settings) -> dict[str, float]:
  with _on_core(settings, 0):
    found = timing.apart(timing.Settings(0.0, settings.format, os.fspath(place), "", False, [1], 3.0, 10, None, None))
  return found["batches"]["1"]


@contextlib.contextmanager
def _on_core(settings, which: int) -> Iterator[None]:
  """Processes that are started in the block run on this core."""
  if settings.cores is None:
    yield
    return
  before = os.sched_getaffinity(0)
  try:
    os.sched_setaffinity(0, {settings.cores[which]})
    yield
  except OSError:
    raise InputError(f"`cores={settings.cores[which]}`: there is no such core") from None
  finally:
    os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _service(folder, settings) -> Iterator[int]:
  """Starts the service as a user does, with its log in a file. Yields its port."""
  with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
  with open(folder / "service.log", "wb") as log, open(folder / "service.errors", "w+") as errors:
    with _on_core(settings, 0):
      process = subprocess.Popen([sys.executable, _SERVE, f"--export={folder / 'exports' / 'student'}",
                                  f"--teacher={folder / 'exports' / 'teacher'}", f"--port={port}",
                                  f"--format={settings.format}"], stdout=log, stderr=errors)
    try:
      end = time.monotonic() + _SECONDS_TO_START
      while not _served(port):
        if process.poll() is not None or time.monotonic() > end:
          errors.seek(0)
          raise InputError(f"the service does not start: {(errors.read().strip().splitlines() or ['no reason'])[-1]}")
        time.sleep(0.1)
      yield port
    finally:
      process.terminate()
      try:
        process.wait(_SECONDS_TO_END)
      except subprocess.TimeoutExpired:
        process.kill()


def _served(port) -> str:
  """Which export of the student answers; "": none yet."""
  try:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=_SECONDS_TO_END) as answer:
      return json.load(answer)["models"]["a"]["export"]
  except (urllib.error.URLError, ConnectionError):
    return ""


class _Swap:
  """Replaces the student's export, as a user who renames directories does; each call returns when that is served."""

  def __init__(self, folder: pathlib.Path, port: int, seconds: float):
    self._folder, self._port, self._seconds = folder, port, seconds

  def __call__(self, going: Callable[[], bool]) -> int:
    """Waits, then replaces the export, unless `going` is no longer true. Returns the number of exports replaced."""
    end = time.monotonic() + self._seconds
    while time.monotonic() < end:
      if not going():
        return 0
      time.sleep(0.05)
    before = _served(self._port)
    for one, other in (("student", "spare"), ("next", "student"), ("spare", "next")):
      os.rename(self._folder / one, self._folder / other)
    while going():
      if _served(self._port) != before:
        return 1
      time.sleep(0.05)
    return 0


def _attack(folder, port, settings, rate, meanwhile) -> dict[str, Any]:
  """What wrk measures in one phase, with the number of exports that `meanwhile` has replaced."""
  users = json.loads((folder / "exports" / "student" / "users.json").read_text())
  np.random.default_rng(0).shuffle(users)
  replaced = 0
  with tempfile.TemporaryDirectory() as place:
    program, paths = pathlib.Path(place) / "load.lua", pathlib.Path(place) / "paths"
    program.write_text(_PROGRAM)
    paths.write_text("".join(f"/recommend?user={urllib.parse.quote(user, safe='')}\n" for user in users))
    command = ["wrk", "--threads=1", f"--connections={settings.connections}", f"--duration={settings.seconds}s",
               f"--script={program}", f"http://127.0.0.1:{port}", "--", os.fspath(paths), str(rate)]
    with _on_core(settings, 1):
      process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
      while meanwhile is not None and process.poll() is None:
        replaced += meanwhile(lambda: process.poll() is None)
      said, errors = process.communicate()
    finally:
      process.kill()
  if process.returncode:
    raise InputError(f"wrk: {(errors or said).strip().splitlines()[-1:]}")
  return json.loads(said.strip().splitlines()[-1]) | {"replaced": replaced}
