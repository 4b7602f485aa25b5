"""Where cases work: a copy of the artefacts, which is damaged and healed again, many times a second."""

from __future__ import annotations

import os
import pathlib
import shutil
import stat
from typing import Any, NamedTuple

_Mark = tuple[int, int, int, int]  # what tells whether a file was touched: mode, size, time of change, inode


class Place(NamedTuple):
  """The folders of a process that runs cases."""

  root: pathlib.Path  # holds now/ and before/, see artefacts.py, compiled/ and expected.json
  scratch: pathlib.Path  # of this process alone
  expected: dict[str, Any]  # what readers and commands return without a fault

  def copy(self, folder: pathlib.Path | None = None) -> Copy:
    """A copy of the artefacts in `scratch`, or in another folder; it becomes the working directory."""
    folder = folder or self.scratch
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "before").exists():
      (folder / "before").symlink_to(self.root / "before")
    made = Copy(self.root / "now", folder / "copy")
    os.chdir(made.place)
    return made


class Copy:
  """A copy of the folder `origin` at `place`, and the means to undo all changes of it."""

  def __init__(self, origin: pathlib.Path, place: pathlib.Path):
    self.origin, self.place = origin, place
    shutil.copytree(origin, place, symlinks=True)
    self.marks = _marks(place)

  def heal(self) -> None:
    """Makes the copy equal to its origin again, except for times of change."""
    now = _marks(self.place)
    changed = {path for path in now.keys() | self.marks.keys() if now.get(path) != self.marks.get(path)}
    for path in sorted(changed & now.keys(), reverse=True):  # what is in a folder, before the folder
      if path not in self.marks or stat.S_IFMT(now[path][0]) != stat.S_IFMT(self.marks[path][0]) or (
          not stat.S_ISDIR(now[path][0])):
        _remove(self.place / path)
    for path in sorted(changed & self.marks.keys()):
      _restore(self.origin / path, self.place / path)
      self.marks[path] = _mark(self.place / path)


def _restore(origin, place):
  if origin.is_dir() and not origin.is_symlink():
    place.mkdir(exist_ok=True)
  elif origin.is_symlink():
    place.symlink_to(os.readlink(origin))
  else:
    shutil.copy2(origin, place)


def _remove(path):
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def _marks(root) -> dict[str, _Mark]:
  """The marks of everything below `root`. Of folders only the mode counts: their times change with their files."""
  found, waiting = {}, [""]
  while waiting:
    folder = waiting.pop()
    with os.scandir(root / folder) as entries:
      for entry in entries:
        path = f"{folder}/{entry.name}" if folder else entry.name
        found[path] = _mark_of(entry.stat(follow_symlinks=False))
        if entry.is_dir(follow_symlinks=False):
          waiting.append(path)
  return found


def _mark(path) -> _Mark:
  return _mark_of(os.lstat(path))


def _mark_of(found) -> _Mark:
  if stat.S_ISDIR(found.st_mode):
    return found.st_mode, 0, 0, 0
  return found.st_mode, found.st_size, found.st_mtime_ns, found.st_ino
