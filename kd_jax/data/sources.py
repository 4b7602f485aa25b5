"""Finds source files: a local copy, an earlier download, or a new download that fails fast. All are verified."""

from __future__ import annotations

import hashlib
import io
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile

from kd_jax.base import InputError
from kd_jax.data.formats import parquet
from kd_jax.data.recipe import Source
from kd_jax.storage import sealed

LIMIT = 256 << 20  # bytes, the largest source that is accepted
CONNECT, STALL = 3.0, 20.0  # seconds to wait for an answer, and between two chunks of it
PIP_START = 5.5  # seconds to wait until pip reports a download


class NoSourceError(InputError):
  """A source file is in no folder, and cannot be downloaded."""


def data_folder(data_dir) -> pathlib.Path | None:
  """The folder of local copies, or None. Raises InputError if the folder of the flag does not exist."""
  if data_dir and not expanded(data_dir, "data_dir").is_dir():
    raise InputError(f"`data_dir={data_dir}`: no such folder")
  chosen = data_dir or os.environ.get("KD_JAX_DATA")
  return expanded(chosen, "data_dir") if chosen else None


def expanded(path, argument: str) -> pathlib.Path:
  """The path with its ~ replaced. Raises InputError, which names the argument, if there is no such home directory."""
  try:
    return pathlib.Path(path).expanduser()
  except RuntimeError:
    raise InputError(f"`{argument}={path}`: the home directory ~ is not known ($HOME); give another path") from None


def identity(source: Source, local: pathlib.Path | None, chosen: bool = False) -> str:
  """The sha256 of the source's content; arguments as in `find`."""
  return source.sha256 or content(_own_file(source, local, chosen))


def content(path: pathlib.Path) -> str:
  """The sha256 of a file; of a folder of Parquet, that of the names and hashes of its parts. Raises InputError."""
  if not path.is_dir():
    return sealed.hash_file(path)
  return _sha256("".join(f"{sealed.hash_file(x)} {x.name}\n" for x in parquet.parts(path)).encode())


def find(source: Source, local: pathlib.Path | None, cache: pathlib.Path, chosen: bool = False) -> pathlib.Path:
  """The path of a verified copy of the source. Without an answer it raises InputError after at most 10 s.

  The user's own file is looked for in the working directory and then in the folder `local`; the other way round if
  the folder was `chosen` for this call.
  """
  if source.sha256 is None:
    return _own_file(source, local, chosen)
  for place, expected in source.places:
    if local and (local / place).is_file():
      _check(local / place, _canonical(source, (local / place).read_bytes()), expected)
      return local / place
  saved = cache / "downloads" / f"{source.sha256[:12]}-{source.name}"
  if saved.is_file() and _sha256(_canonical(source, saved.read_bytes())) == source.sha256:
    return saved
  content = _download(source, local)
  try:
    saved.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=saved.parent) as folder:  # of its own: two processes may download at once
      new = pathlib.Path(folder) / saved.name
      new.write_bytes(content)
      os.replace(new, saved)
  except OSError as error:
    raise InputError(f"`cache_dir`: cannot write {saved}: {error.strerror}") from None
  return saved


def get(url: str) -> bytes:
  """The content of `url`. Raises OSError within seconds if the server, or the name service, does not answer."""
  pieces: queue.Queue = queue.Queue()

  def read():
    try:
      with urllib.request.urlopen(url, timeout=STALL) as answer:
        pieces.put(b"")
        while piece := answer.read(1 << 16):
          pieces.put(piece)
      pieces.put(None)
    except Exception as error:
      pieces.put(error)

  threading.Thread(target=read, daemon=True).start()  # in a thread: a hanging name lookup cannot be interrupted
  content, patience = io.BytesIO(), CONNECT
  while True:
    try:
      piece = pieces.get(timeout=patience)
    except queue.Empty:
      raise TimeoutError(f"{url} did not answer for {patience:g} s") from None
    if piece is None:
      return content.getvalue()
    if isinstance(piece, Exception):
      raise OSError(f"{url}: {getattr(piece, 'reason', piece)}")
    content.write(piece)
    patience = STALL
    if content.tell() > LIMIT:
      raise OSError(f"{url}: more than {LIMIT} bytes")


def member(archive: bytes, name: str) -> bytes:
  """The content of one file of a zip archive. Raises OSError if it is missing or too large."""
  try:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
      if opened.getinfo(name).file_size > LIMIT:
        raise OSError(f"{name} is larger than {LIMIT} bytes")
      return opened.read(name)
  except (zipfile.BadZipFile, KeyError) as error:
    raise OSError(f"not the expected archive: {error}") from None


def wheel(requirement: str) -> bytes:
  """A pure-Python wheel from the index that pip uses. Raises OSError within seconds if it does not answer."""
  with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
               "--retries", "0", "--timeout", "3", "--progress-bar", "off", "--no-input",
               "--disable-pip-version-check", "--dest", folder, requirement]
    with open(pathlib.Path(folder) / "pip.log", "w+") as log:
      process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
      try:
        _follow(process, pathlib.Path(log.name))
      finally:
        process.kill()
        process.wait()
      found = list(pathlib.Path(folder).glob("*.whl"))
      if process.returncode != 0 or len(found) != 1:
        log.seek(0)
        last = (log.read().strip().splitlines() or ["no answer"])[-1]
        stopped = "stopped after " if process.returncode < 0 else ""
        raise OSError(f"pip download {requirement}: {stopped}{last[:200]}")
    return found[0].read_bytes()


def _follow(process, log):
  """Waits for pip: at most `PIP_START` seconds until a download starts, and 10 `STALL` seconds in total."""
  start = time.monotonic()
  while process.poll() is None:
    waited = time.monotonic() - start
    begun = any(sign in log.read_text(errors="replace") for sign in ("Downloading", "Using cached", "Saved"))
    if waited > (10 * STALL if begun else PIP_START):
      return
    time.sleep(0.05)


def _download(source, local) -> bytes:
  failures = []
  for attempt in source.fetch:
    try:
      content = attempt()
    except OSError as error:
      failures.append(" ".join(str(error).split()))
      continue
    _check(f"{source.name} (downloaded)", _canonical(source, content), source.sha256)
    return content
  tried = f" (tried {'; '.join(failures)})" if failures else ""
  place = source.places[0][0]
  where = f"{local} has no {place}" if local else "no `data_dir` or KD_JAX_DATA is given"
  raise NoSourceError(f"`data`: no copy of {source.name}: {where}, and no download{tried}. Put it at "
                   f"<data_dir>/{place}.{' ' + source.advice if source.advice else ''}")


def _own_file(source, local, chosen) -> pathlib.Path:
  path = expanded(source.places[0][0], "data")
  places = [path] if local is None else [local / path, path] if chosen else [path, local / path]
  try:
    found = next(place for place in places if place.exists())
  except (StopIteration, OSError):  # OSError: a name that is too long
    raise NoSourceError(f"`data`: path={source.places[0][0]!r}: no such file") from None
  if not found.is_file() and not found.is_dir():
    what = "a pipe" if found.is_fifo() else "a device or a socket"
    raise InputError(f"`data`: path={source.places[0][0]!r}: {what} can be read only once; write it to a file first")
  return found


def _canonical(source, content) -> bytes:
  return source.canonical(content) if source.canonical else content


def _check(what, content, expected):
  actual = _sha256(content)
  if actual != expected:
    size = f"{len(content):,} bytes"
    raise InputError(f"`data`: {what}: sha256 {actual} is not the expected {expected} ({size})")


def _sha256(content) -> str:
  return hashlib.sha256(content).hexdigest()
