"""Counts the file operations of this process below a folder, and kills it, or fails, at the Nth.

Seen are the operations of Python: open for writing, write, fsync, rename, unlink, mkdir, rmdir. What C++ libraries
write by themselves (arrays of checkpoints, prepared data) is not seen: kills at random moments and small disks reach
that.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable

# What happens at the Nth operation.
COUNT, KILL, KILL_HALF, FAIL, FAIL_ON = "count", "kill", "kill half way", "fail", "fail from then on"
_NAMES = {"os.rename": "rename", "os.remove": "unlink", "os.rmdir": "rmdir", "os.mkdir": "mkdir", "os.link": "link",
          "os.symlink": "symlink", "os.truncate": "truncate"}
_FULL = {"open", "write", "fsync", "mkdir", "rename", "truncate"}  # what fails on a full disk
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_open, _fsync = io.open, os.fsync


class Watch:
  """The operations below `root`, from the moment it is made until the process ends."""

  def __init__(self, root: str, action: str = COUNT, number: int = 0):
    self.root, self.action, self.number = os.path.realpath(root), action, number
    self.count, self.taken = 0, False
    self.lock = threading.RLock()
    sys.addaudithook(self._heard)
    builtins.open = io.open = self._opened
    os.fsync = self._synced

  def step(self, what: str, path: str, half: Callable[[], int] | None = None) -> int | None:
    """One operation, before it is done. Kills the process or raises OSError, if it is time.

    `half` does a part of a write, and returns its bytes. A full disk takes a part, and then refuses: the part's bytes
    are returned, and the next operation raises.
    """
    with self.lock:
      if self.action in (FAIL, FAIL_ON) and what not in _FULL:
        return None
      self.count += 1
      now = self.count == self.number or (self.action == FAIL_ON and self.count > self.number)
      if now and half is not None and self.action in (FAIL, FAIL_ON) and not self.taken:
        self.taken, self.number = True, self.count + 1
        return half()
    if not now or self.action == COUNT:
      return None
    if half is not None and self.action == KILL_HALF:
      half()
    if self.action in (KILL, KILL_HALF):
      os.kill(os.getpid(), signal.SIGKILL)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

  def _heard(self, event, arguments):
    if event == "open":
      path, _, flags = arguments
      if isinstance(flags, int) and flags & _WRITING and (known := self._below(path)):
        self.step("open", known)
    elif event in _NAMES and (known := self._below(arguments[0], _folder(event, arguments))):
      self.step(_NAMES[event], known)

  def _below(self, path, descriptor=-1) -> str:
    """The absolute path, if it is below the root, else ""."""
    if isinstance(path, int):
      return ""
    path = os.fsdecode(path)
    if not os.path.isabs(path):
      try:
        path = os.path.join(os.readlink(f"/proc/self/fd/{descriptor}") if descriptor >= 0 else os.getcwd(), path)
      except OSError:
        return ""
    return path if os.path.normpath(path).startswith(self.root + os.sep) else ""

  def _opened(self, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
    if not set(mode) & set("wax+") or isinstance(file, int) or not self._below(file):
      return _open(file, mode, buffering, encoding, errors, newline, closefd, opener)
    raw = _File(file, "".join(x for x in mode if x not in "bt"), closefd, opener)
    raw.watch = self
    if buffering == 0:
      return raw
    buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
    return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)

  def _synced(self, descriptor):
    try:
      path = os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
      path = ""
    if known := path and self._below(path):
      self.step("fsync", known)
    _fsync(descriptor)


class _File(io.FileIO):
  """A file whose writes are counted."""

  watch: Watch

  def write(self, data):
    view = memoryview(data).cast("B")

    def half():
      return super(_File, self).write(view[: len(view) // 2])

    short = self.watch.step("write", os.path.abspath(os.fsdecode(self.name)), half)
    return super().write(view) if short is None else short


def _folder(event, arguments) -> int:
  """The descriptor of the folder that a relative path starts from, or -1."""
  place = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.rename": 2}.get(event)
  found = arguments[place] if place is not None and len(arguments) > place else -1
  return found if isinstance(found, int) else -1
