"""Artifacts: directories of files with a sha256 manifest, written atomically.

An artifact holds its files, `manifest.json` (kind, format version, metadata, size and sha256 of every
file) and `manifest.sha256`, the hash of the manifest in the format of `sha256sum --check`. It is built in
the hidden sibling `.<name>.tmp` and renamed, so that a kill at any moment leaves either the previous
state or the new artifact. A power failure may damage a file: reading then raises an error.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import pathlib
import shutil
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from kd_jax.base import InputError

VERSION = 1
_MANIFEST, _SEAL, _LOCK = "manifest.json", "manifest.sha256", ".lock"
_OWN = (_MANIFEST, _SEAL, _LOCK)  # files at the top level that the manifest does not list
# What numpy.load, or reading from its result, raises for a file that is damaged or holds no arrays.
NOT_ARRAYS = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, MemoryError, NotImplementedError,
              SyntaxError, SystemError, tokenize.TokenError, zipfile.BadZipFile, zlib.error)


@contextlib.contextmanager
def writing(directory: str | os.PathLike, kind: str, metadata: dict[str, Any]) -> Iterator[pathlib.Path]:
  """Yields a temporary directory to fill. On success it is renamed to `directory` and becomes the artifact.

  An existing artifact of the same `kind` is replaced; anything else at this path is refused. `metadata`
  is JSON. It is read at the end, so that the block may still add to it. An exception removes the
  temporary directory and leaves the previous artifact unchanged.

  Raises InputError: the path cannot be written (disk full, ...), is in use or holds something else.
  """
  target = _absolute(directory)
  temporary = _hidden(target, "tmp")
  with reporting(target), contextlib.ExitStack() as stack:
    target.parent.mkdir(parents=True, exist_ok=True)
    _recover(target)
    _check_replaceable(target, kind)
    if temporary.exists():  # left by a killed process; a running one holds the lock
      with lock(temporary):
        shutil.rmtree(temporary)
    temporary.mkdir()
    stack.callback(shutil.rmtree, temporary, ignore_errors=True)
    stack.enter_context(lock(temporary))
    yield temporary
    _write_manifest(temporary, kind, metadata)
    _check_replaceable(target, kind)
    _swap(temporary, target)


def read(directory: str | os.PathLike, kind: str) -> dict[str, Any]:
  """Verifies every file of an artifact and returns its metadata. Call it before parsing any file.

  Raises InputError naming the file: missing, not listed, another size or sha256, or a link. Also raises as `manifest`.
  """
  target = _absolute(directory)
  content = manifest(target, kind)
  with reporting(target):
    # Opens only paths that were found in the directory. So a manifest that lists "../x" reports it as missing.
    found, expected = _files(target), content["files"]
    for path in sorted(expected.keys() ^ found):
      what = "missing, though the manifest lists it" if path in expected else "not listed in the manifest"
      raise InputError(f"{target / path}: {what}")
    for path in sorted(found):
      _check(target / path, _entry(target / path), expected[path])
  return content["metadata"]


def manifest(directory: str | os.PathLike, kind: str) -> dict[str, Any]:
  """The manifest, {"kind", "version", "metadata", "files"}, without reading the files.

  Raises InputError if the manifest is missing, was changed, or has another kind or version.
  """
  target = _absolute(directory)
  with reporting(target):
    _recover(target)
    path = target / _MANIFEST
    if not path.is_file():
      raise InputError(f"{target}: no {kind} here ({_MANIFEST} is missing)")
    _check(f"{path}: sha256 line", _seal(path).decode(), (target / _SEAL).read_text("latin-1")[:200])
    try:
      content = from_json(path.read_bytes())
    except (ValueError, RecursionError) as error:
      raise InputError(f"{path}: not JSON: {error}") from None
  keys = ("kind", "version", "metadata", "files")
  if not isinstance(content, dict) or not all(isinstance(content.get(k), dict) for k in keys[2:]):
    raise InputError(f"{path}: not a manifest with {', '.join(keys)}")
  found = {"kind": content.get("kind"), "version": content.get("version")}
  _check(path, found, {"kind": kind, "version": VERSION})
  return content


def names(parent: str | os.PathLike) -> list[str]:
  """Sorted names of the artifacts in `parent`. If a replacement was killed, the old artifact is restored first."""
  root = _absolute(parent)
  with reporting(root):
    for aside in root.glob(".*.old"):
      _recover(root / aside.name[1 : -len(".old")])
    return sorted(p.parent.name for p in root.glob(f"*/{_MANIFEST}") if not p.parent.name.startswith("."))


def recover(directory: str | os.PathLike) -> None:
  """If the replacement of an artifact was killed between its two renames, restores the old one.

  Call it before asking whether an artifact exists; reading one does this. Raises InputError if its writer is alive.
  """
  target = _absolute(directory)
  with reporting(target):
    _recover(target)


@contextlib.contextmanager
def lock(directory: str | os.PathLike) -> Iterator[None]:
  """Holds `directory/.lock`, which ends with the process. If it is held, raises InputError with the holder's pid."""
  path = pathlib.Path(directory) / _LOCK
  with reporting(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+")
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      raise InputError(f"{path.parent}: in use by process {file.read(20).strip()}") from None
    file.truncate(0)
    print(os.getpid(), file=file, flush=True)
    yield


def write_json_atomic(path: str | os.PathLike, value: Any) -> None:
  """Writes `value` as JSON, as `write_atomic` does."""
  write_atomic(path, to_json(value))


def to_json(value: Any, indent: int | None = 1) -> bytes:
  """`value` as a line of JSON, or as indented lines, with null for NaN and infinity, which JSON does not have."""
  return json.dumps(finite(value), indent=indent, allow_nan=False).encode() + b"\n"


def from_json(content: bytes | str) -> Any:
  """What `content` holds. Raises ValueError if it is not JSON, or holds a number that is not finite."""
  return json.loads(content, parse_constant=_number, parse_float=_number)


def _number(text):
  if not math.isfinite(value := float(text)):
    raise ValueError(f"{text[:40]} is not a finite number")
  return value


def finite(value: Any) -> Any:
  """`value` as it is read back from JSON: None for NaN and infinity, lists for tuples."""
  if isinstance(value, dict):
    return {key: finite(x) for key, x in value.items()}
  if isinstance(value, list | tuple):
    return [finite(x) for x in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def write_atomic(path: str | os.PathLike, content: bytes) -> None:
  """Writes a file. A kill leaves either the old or the new file. Raises InputError with the path."""
  path = _absolute(path)
  temporary = _hidden(path, "tmp")
  with reporting(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      _write_synced(temporary, content)
      _replace(temporary, path)
    finally:
      temporary.unlink(missing_ok=True)
    _sync(path.parent)


def _replace(temporary: pathlib.Path, path: pathlib.Path) -> None:
  """`os.replace`, but raises InputError for a device such as /dev/null, which root can turn into a file, and a pipe."""
  if path.exists() and not path.is_file() and not path.is_dir():
    raise InputError(f"{path}: a device or a pipe, not a file")
  os.replace(temporary, path)


def read_array(path: str | os.PathLike, mmap_mode: Any = None) -> np.ndarray:
  """The array of an .npy file. Raises one of `NOT_ARRAYS`, also for an .npz file under this name."""
  found = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
  if not isinstance(found, np.ndarray):
    raise ValueError(f"{pathlib.Path(path).name}: holds several arrays")
  return found


def hash_file(path: str | os.PathLike) -> str:
  """The sha256 of a file's bytes, as hex."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def hash_array(array: np.ndarray) -> str:
  """The sha256 of dtype, shape and values, as hex. It does not depend on byte order or string padding."""
  if array.dtype.hasobject or array.dtype.names:
    raise TypeError(f"cannot hash an array of {array.dtype}")
  if array.dtype.kind == "U":  # a slice of a list with longer ids must have the same hash
    array = array.astype(f"<U{max(1, int(np.strings.str_len(array).max(initial=0)))}")
  array = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)
  digest = hashlib.sha256(f"{array.dtype.name}{array.shape}".encode())
  digest.update(array.reshape(-1).view(np.uint8).data)
  return digest.hexdigest()


@contextlib.contextmanager
def reporting(path: str | os.PathLike) -> Iterator[None]:
  """Makes an InputError with the path of every OSError, which does not always name a file."""
  try:
    yield
  except OSError as error:  # disk full, no permission, ...: one line with the path instead of a traceback
    raise InputError(f"{path}: {error}") from error


def _absolute(path) -> pathlib.Path:
  return pathlib.Path(os.path.realpath(path))


def _hidden(target, suffix) -> pathlib.Path:
  return target.with_name(f".{target.name}.{suffix}")


def _recover(target):
  """If a replacement was killed between its two renames, restores the old artifact."""
  aside, temporary = _hidden(target, "old"), _hidden(target, "tmp")
  if target.exists() or not aside.exists():
    return
  # Raises InputError if the writer is alive, since it is about to rename.
  with lock(temporary) if temporary.exists() else contextlib.nullcontext():
    os.rename(aside, target)


def _check_replaceable(target, kind):
  if not target.exists() or (target.is_dir() and not any(target.iterdir())):
    return  # os.rename replaces an empty directory
  try:
    found = from_json((target / _MANIFEST).read_bytes())["kind"]
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    found = None  # no valid manifest
  if found != kind:
    raise InputError(f"{target}: exists and is no {kind!r}, but {found or 'another thing'!r}")


def _swap(temporary, target):
  aside = _hidden(target, "old")
  shutil.rmtree(aside, ignore_errors=True)  # left by a kill after the replacement: see _recover
  if target.exists():
    os.rename(target, aside)
  os.rename(temporary, target)
  _sync(target.parent)
  (target / _LOCK).unlink(missing_ok=True)
  shutil.rmtree(aside, ignore_errors=True)


def _write_manifest(root, kind, metadata):
  files = {path: _entry(root / path) for path in sorted(_files(root))}
  content = {"kind": kind, "version": VERSION, "metadata": metadata, "files": files}
  _write_synced(root / _MANIFEST, to_json(content))
  _write_synced(root / _SEAL, _seal(root / _MANIFEST))
  _sync(root)


def _check(what, actual, expected):
  if actual != expected:
    raise InputError(f"{what} is {actual!r}, expected {expected!r}")


def _files(root) -> set[str]:
  """Relative paths of all files below `root`. Raises InputError for links and other special files."""
  found = set()
  for folder, folders, files in os.walk(root):
    for path in (pathlib.Path(folder, name) for name in folders + files):
      if path.is_symlink() or not (path.is_file() or path.is_dir()):
        raise InputError(f"{path}: neither a file nor a directory (links are not followed)")
    found.update(pathlib.Path(folder, name).relative_to(root).as_posix() for name in files)
  return found.difference(_OWN)


def _entry(path) -> dict[str, Any]:
  return {"sha256": hash_file(path), "bytes": path.stat().st_size}


def _seal(path) -> bytes:
  return f"{hash_file(path)}  {_MANIFEST}\n".encode()


def _write_synced(path, data):
  with open(path, "wb") as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _sync(folder):
  descriptor = os.open(folder, os.O_RDONLY)
  os.fsync(descriptor)
  os.close(descriptor)
