"""Processes that are forked from one that has imported everything and has not used JAX: they start in milliseconds.

Threads of JAX do not survive a fork, so the parent must never compute anything with JAX.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kd_jax import cli

_PR_SET_PDEATHSIG = 1
_LOOK = 0.003  # seconds between two looks at a child
BROKEN = 70  # exit status of a child that raised an exception


class Ended(NamedTuple):
  """How a child ended."""

  code: int  # exit status; -N: by signal N; None is never used
  out: str
  err: str
  seconds: float
  late: bool = False  # it was killed because its time was over


class Child:
  """A running child, which leads a group of processes; its output goes to files in `folder`."""

  def __init__(self, function: Callable[[], None], folder: pathlib.Path, name: str = "child"):
    self.files = [folder / f"{name}.out", folder / f"{name}.err"]
    self.begun, self.code = time.monotonic(), None
    self.pid = fork(function, self.files)

  def poll(self) -> bool:
    """Whether the child has ended."""
    if self.code is None:
      pid, status = os.waitpid(self.pid, os.WNOHANG)
      self.code = os.waitstatus_to_exitcode(status) if pid else None
      if pid:
        self._end_group()
    return self.code is not None

  def send(self, number: int) -> None:
    """Sends a signal, if the child still runs."""
    if not self.poll():
      os.kill(self.pid, number)

  def wait(self, seconds: float) -> Ended:
    """Waits; kills the child after `seconds`."""
    until, late = time.monotonic() + seconds, False
    while not self.poll():
      time.sleep(_LOOK)
      if time.monotonic() > until and not late:
        late = True
        self.send(signal.SIGKILL)
    out, err = (path.read_text("utf-8", "replace") if path.exists() else "" for path in self.files)
    return Ended(self.code if self.code is not None else BROKEN, out, err, time.monotonic() - self.begun, late)

  def _end_group(self):
    with contextlib.suppress(ProcessLookupError, PermissionError):  # what the child started and left behind
      os.killpg(self.pid, signal.SIGKILL)


def fork(function: Callable[[], None], files: Sequence[pathlib.Path] = ()) -> int:
  """The process id of a child that calls `function` and ends; output goes to `files`, if there are any."""
  sys.stdout.flush()
  sys.stderr.flush()
  parent = os.getpid()
  pid = os.fork()
  if pid:
    return pid
  code = BROKEN
  try:
    os.setpgid(0, 0)
    _die_with(parent)
    for number, path in enumerate(files, 1):
      descriptor = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
      os.dup2(descriptor, number)
      os.close(descriptor)
    code = _called(function)
  finally:
    with contextlib.suppress(Exception):
      sys.stdout.flush()
      sys.stderr.flush()
    os._exit(code)


def _called(function) -> int:
  try:
    function()
  except SystemExit as end:
    return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
  except BaseException:
    traceback.print_exc()
    return BROKEN
  return 0


def _die_with(parent):
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
      os._exit(BROKEN)


def run_script(name: str, arguments: Sequence[str]) -> None:
  """Runs scripts/NAME.py as a process of its own would."""
  sys.argv = [str(cli.folder("scripts") / f"{name}.py"), *arguments]
  runpy.run_path(sys.argv[0], run_name="__main__")
