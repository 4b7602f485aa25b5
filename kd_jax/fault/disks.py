"""Lets the disk be full: one line must say so, what was there must stay, and the same command must then end well.

A full disk is a small tmpfs, where mounting is allowed (in a mount namespace of this process, which ends with it), a
limit on the size of files, or an error that Python's Nth file operation raises.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import resource
import sys

import numpy as np

from kd_jax.fault import children, commands, judge, kills, operations
from kd_jax.fault.copies import Place
from kd_jax.fault.judge import Outcome

_NEW_NAMESPACE, _REMOUNT, _RECURSIVE, _PRIVATE = 0x20000, 32, 0x4000, 1 << 18
_ROOM = 1 << 30  # bytes of the tmpfs while its size does not matter
_SHARES = {"train": 4, "extend": 2, "distil": 1, "stream": 1, "soft_labels": 2, "compress": 1, "evaluate": 2,
           "export": 2, "prepare": 3, "reproduce": 1}


class FullDisks:
  """A command that runs on a disk without room, and then on one with room."""

  def __init__(self, place: Place):
    self.place, self.clean = place, kills.clean(place)
    self.small = SmallDisk(place.scratch / "small") if may_mount() else None
    self.copy = place.copy(self.small.folder if self.small else None)

  def case(self, rng: np.random.Generator) -> tuple[str, Outcome]:
    """(what was done, how it ended)."""
    name = list(_SHARES)[rng.choice(len(_SHARES), p=np.array(list(_SHARES.values())) / sum(_SHARES.values()))]
    clean = self.clean[name]
    commands.COMMANDS[name].begin()
    before, lines = commands.whole(name), kills.saved(name)
    try:
      what, ended, said = self._faulty(name, clean, rng)
      outcome = _ended(ended, said, clean) or kills.left(name, before, lines)
      return f"{name}: {what}", outcome or kills.end(self.place, name, clean)
    finally:
      self.copy.heal()

  def _faulty(self, name, clean, rng):
    kind = rng.integers(3 if self.small else 2)
    if kind == 0:
      action = operations.FAIL if rng.random() < 0.4 else operations.FAIL_ON
      number = int(rng.integers(1, clean.operations + 1))
      return f"{action} at file operation {number}", *kills.run(self.place, name, kills.limit(clean), action, number)
    if kind == 1:
      most = int(2 ** rng.uniform(5, 16))
      return f"files of {most} bytes at most", *self._limited(name, clean, most)
    most = int(rng.uniform(0, clean.bytes))
    with self.small.full(most):
      return f"room for {most} bytes", *kills.run(self.place, name, kills.limit(clean))

  def _limited(self, name, clean, most):
    answer = self.place.scratch / "answer.json"
    answer.unlink(missing_ok=True)

    def limited():
      before = resource.getrlimit(resource.RLIMIT_FSIZE)
      resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
      commands.perform(name, answer, operations.COUNT, 0, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before))

    ended = children.Child(limited, self.place.scratch).wait(kills.limit(clean))
    return ended, kills.answer_of(answer)


def _ended(ended, said, clean) -> Outcome | None:
  """None, if the command succeeded with the right result, or said in one line why it did not."""
  if ended.late:
    return Outcome(judge.HANG, "on a full disk")
  if ended.code == 0:
    wrong = judge.difference(said["result"], clean.result)
    return Outcome(judge.SILENT, wrong) if wrong else None
  outcome = judge.of_process(ended.code, ended.err)
  return outcome if outcome.failed else None


def may_mount() -> bool:
  """Whether this system lets us mount a file system for ourselves; tried in a child."""
  if sys.platform != "linux":
    return False

  def attempt():
    sys.exit(0 if _namespace() else 1)

  _, status = os.waitpid(children.fork(attempt), 0)
  return status == 0


def _namespace() -> bool:
  libc = ctypes.CDLL(None, use_errno=True)
  return libc.unshare(_NEW_NAMESPACE) == 0 and libc.mount(b"none", b"/", None, _RECURSIVE | _PRIVATE, None) == 0


class SmallDisk:
  """A tmpfs that only this process and its children see."""

  def __init__(self, folder: pathlib.Path):
    folder.mkdir(parents=True, exist_ok=True)
    self.folder = folder
    if not _namespace():
      raise OSError("no mount namespace")
    self._mount(0, _ROOM)

  def full(self, most: int) -> _Room:
    """A context in which only `most` more bytes fit."""
    return _Room(self, most)

  def _mount(self, how, size):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(self.folder), b"tmpfs", how, f"size={size}".encode()):
      raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), self.folder)


class _Room:
  def __init__(self, disk, most):
    self.disk, self.most = disk, most

  def __enter__(self):
    found = os.statvfs(self.disk.folder)
    taken = (found.f_blocks - found.f_bfree) * found.f_frsize
    self.disk._mount(_REMOUNT, taken + self.most)

  def __exit__(self, *error):
    self.disk._mount(_REMOUNT, _ROOM)
