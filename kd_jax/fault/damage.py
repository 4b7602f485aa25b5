"""Damages a file of an artefact: what disks, editors, half copies and mixed-up folders do to it."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
from typing import NamedTuple

import numpy as np

Random = np.random.Generator
_TRIES = 50  # until a damage changes something
_TEXTS = (".json", ".txt", ".jsonl", ".sha256", ".csv")


class Target(NamedTuple):
  """The file to damage, and what it can be confused with."""

  path: pathlib.Path
  root: pathlib.Path  # of the artefact
  files: list[pathlib.Path]  # of the artefact
  old: pathlib.Path  # the same file in an older state of the artefact; it may not exist


def damage(rng: Random, artefact: pathlib.Path, before: pathlib.Path) -> tuple[pathlib.Path, str]:
  """Damages one file of an artefact; returns (the file, what was done to it). It never has the same bytes as before.

  `before` is an older state of the artefact, for old copies.
  """
  for _ in range(_TRIES):
    files = files_of(artefact)  # again: a try that leaves this file as it was may have replaced others
    texts = [path for path in files if path.suffix in _TEXTS] or files
    path = texts[rng.integers(len(texts))] if rng.random() < 0.5 else files[rng.integers(len(files))]
    whole = path.read_bytes()
    target = Target(path, artefact, files, before / path.relative_to(artefact))
    said = _KINDS[rng.integers(len(_KINDS))](rng, target)
    if said and not (path.is_file() and not path.is_symlink() and path.read_bytes() == whole):
      return path, said
  raise AssertionError(f"{artefact}: cannot be damaged")


def files_of(path: pathlib.Path) -> list[pathlib.Path]:
  """All files of an artefact, in the same order in every artefact of the kind; locks hold nothing and are left out."""
  def place(file):  # tensorstore draws names at random
    drawn = re.fullmatch(r"[0-9a-f]{32}", file.name) is not None
    return file.parent.as_posix(), "" if drawn else file.name, file.stat().st_size, file.name

  found = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
  return sorted((file for file in found if not file.name.endswith(".lock")), key=place)


def _flip(rng, target):
  data = bytearray(target.path.read_bytes())
  if not data:
    return ""
  place, bit = int(rng.integers(len(data))), int(rng.integers(8))
  data[place] ^= 1 << bit
  target.path.write_bytes(data)
  return f"bit {bit} of byte {place} flipped"


def _overwrite(rng, target):
  data = bytearray(target.path.read_bytes())
  if not data:
    return ""
  place, length = int(rng.integers(len(data))), int(rng.integers(1, 64))
  data[place : place + length] = rng.bytes(min(length, len(data) - place))
  target.path.write_bytes(data)
  return f"{length} bytes from {place} replaced by noise"


def _digit(rng, target):
  data = target.path.read_bytes()
  places = [m.start() for m in re.finditer(rb"[0-9]", data)]
  if not places or b"\0" in data:  # a text
    return ""
  place = places[rng.integers(len(places))]
  new = b"%d" % ((int(data[place : place + 1]) + rng.integers(1, 10)) % 10)
  target.path.write_bytes(data[:place] + new + data[place + 1 :])
  return f"digit {data[place : place + 1].decode()} at byte {place} became {new.decode()}"


def _word(rng, target):
  data = target.path.read_bytes()
  words = [m.span() for m in re.finditer(rb"[A-Za-z_]{2,}", data)]
  if not words or b"\0" in data:
    return ""
  begin, end = words[rng.integers(len(words))]
  other = words[rng.integers(len(words))]
  new = data[slice(*other)] if rng.random() < 0.7 else b"null"
  target.path.write_bytes(data[:begin] + new + data[end:])
  return f"word {data[begin:end][:30]!r} at byte {begin} became {new[:30]!r}"


def _line(rng, target):
  lines = target.path.read_bytes().splitlines(keepends=True)
  if len(lines) < 2:
    return ""
  place = int(rng.integers(len(lines)))
  if rng.random() < 0.5:
    target.path.write_bytes(b"".join(lines[:place] + lines[place + 1 :]))
    return f"line {place + 1} removed"
  target.path.write_bytes(b"".join([*lines[: place + 1], *lines[place:]]))
  return f"line {place + 1} repeated"


def _truncate(rng, target):
  data = target.path.read_bytes()
  kept = [len(data) - 1, len(data) // 2, int(rng.integers(max(1, len(data))))][rng.integers(3)]
  target.path.write_bytes(data[: max(kept, 0)])
  return f"{len(data)} bytes cut to {max(kept, 0)}"


def _empty(rng, target):
  target.path.write_bytes(b"")
  return "emptied"


def _zero_tail(rng, target):
  data = target.path.read_bytes()
  kept = int(rng.integers(max(1, len(data))))
  target.path.write_bytes(data[:kept] + bytes(len(data) - kept))
  return f"zeros from byte {kept}"


def _append(rng, target):
  more = [b"\0", b"\n", target.path.read_bytes(), rng.bytes(int(rng.integers(1, 40)))][rng.integers(4)]
  with open(target.path, "ab") as file:
    file.write(more)
  return f"{len(more)} bytes appended"


def _delete(rng, target):
  target.path.unlink()
  return "deleted"


def _swap(rng, target):
  other = target.files[rng.integers(len(target.files))]
  if other == target.path:
    return ""
  aside = target.path.with_name(f"{target.path.name}.aside")
  os.rename(target.path, aside)
  os.rename(other, target.path)
  os.rename(aside, other)
  return f"swapped with {other}"


def _sibling(rng, target):
  other = target.files[rng.integers(len(target.files))]
  shutil.copyfile(other, target.path) if other != target.path else None
  return f"replaced by a copy of {other}"


def _old(rng, target):
  if not target.old.is_file():
    return ""
  shutil.copyfile(target.old, target.path)
  return f"replaced by {target.old}"


def _folder(rng, target):
  target.path.unlink()
  target.path.mkdir()
  return "replaced by a folder"


def _old_folder(rng, target):
  """The folder of the file becomes that of the older artefact: a whole, but older, part."""
  folder, old = target.path.parent, target.old.parent
  if target.root not in folder.parents:  # an older artefact as a whole is no damage
    return ""
  if not old.is_dir():
    beside = sorted(path for path in old.parent.glob("*") if path.is_dir()) if old.parent.is_dir() else []
    if not beside:
      return ""
    old = beside[rng.integers(len(beside))]
  shutil.rmtree(folder)
  shutil.copytree(old, folder)
  return f"its folder replaced by {old}"


def _no_folder(rng, target):
  folder = target.path.parent
  if target.root not in folder.parents:
    return ""
  shutil.rmtree(folder)
  return "deleted, with its folder"


_KINDS = (_flip, _flip, _overwrite, _digit, _digit, _word, _line, _truncate, _truncate, _empty, _zero_tail, _append,
          _delete, _swap, _sibling, _old, _old, _folder, _old_folder, _no_folder)
