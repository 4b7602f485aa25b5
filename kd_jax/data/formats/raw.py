"""The bytes of a source file, decompressed, in pieces of whole lines. Says what a thing is that is no such file."""

from __future__ import annotations

import bz2
import gzip
import lzma
import pathlib
import stat
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from kd_jax.base import InputError

PIECE = 16 << 20  # bytes that are read at a time
LONGEST = 1 << 20  # bytes of a line
HEAD = 1 << 20  # bytes that are enough to recognise a layout
PACKED = (".gz", ".bz2", ".xz", ".zip")
BOM = b"\xef\xbb\xbf"
# RuntimeError: an encrypted zip archive. NotImplementedError: a zip archive with a compression that Python lacks.
_UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError, RuntimeError)
_WORKBOOKS = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")
_WORKBOOK = "a workbook is not read: it keeps ids as numbers, and times in a way of its own; save the sheet as CSV"
# {first bytes: what they are}
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip", b"PAR1": "Parquet",
          b"\x28\xb5\x2f\xfd": "Zstandard", b"\xd0\xcf\x11\xe0": "Excel", b"\x89HDF": "HDF5",
          b"SQLite format": "SQLite", b"\x93NUMPY": "NumPy", b"ARROW1": "Arrow", b"Rar!": "RAR", b"7z\xbc\xaf": "7-Zip"}
_SUFFIXES = {"gzip": ".gz", "bzip2": ".bz2", "xz": ".xz", "zip": ".zip", "Parquet": ".parquet"}


def unpacked(path: pathlib.Path) -> pathlib.Path:
  """The path without the suffix of a compression."""
  return path.with_suffix("") if path.suffix.lower() in PACKED else path


def magic(path: pathlib.Path) -> str | None:
  """What the first bytes of a file say that it is; None: perhaps a text. Raises OSError."""
  with open(path, "rb") as file:
    start = file.read(16)
  if all(8 < byte < 127 for byte in start):  # the ids of a text may begin with such letters
    return None
  return next((what for first, what in _MAGIC.items() if start.startswith(first)), None)


def pieces(path: pathlib.Path, argument: str = "data", size: int = PIECE) -> Iterator[tuple[int, bytes]]:
  """(number of the first line, from 1; whole lines with their ends) in order; the last line may have no end.

  If CR is the only end of lines, it is read as LF. The byte order mark is left out. Raises InputError, naming
  `argument`, if the file cannot be read, or a line is too long.
  """
  number, rest, old = 1, b"", None
  try:
    with _opened(path, argument) as file:
      while chunk := file.read(size):
        old = b"\n" not in chunk and b"\r" in chunk[:-1] if old is None else old
        chunk = rest + (chunk.replace(b"\r", b"\n") if old else chunk)
        cut = chunk.rfind(b"\n") + 1
        piece, rest = chunk[:cut], chunk[cut:]
        count = count_ends(piece)
        _check_lengths(path, argument, number, piece)
        _check_lengths(path, argument, number + count, rest)
        if piece:
          yield number, piece.removeprefix(BOM) if number == 1 else piece
          number += count
  except _UNREADABLE as error:
    raise InputError(f"`{argument}`: {path}: cannot be read: {' '.join(str(error).split())[:200]}") from None
  if rest:
    yield number, rest.removeprefix(BOM) if number == 1 else rest


def without_lines(pieces: Iterator[tuple[int, bytes]], count: int) -> Iterator[tuple[int, bytes]]:
  """The pieces without their first `count` lines."""
  for number, piece in pieces:
    while count and piece:
      end = piece.find(b"\n") + 1
      piece, number, count = piece[end:] if end else b"", number + 1, count - 1
    if piece:
      yield number, piece


def count_ends(piece: bytes) -> int:
  """The number of LF: `piece.count(b"\n")`, in a third of the time."""
  return int(np.count_nonzero(np.frombuffer(piece, np.uint8) == 10))


def lines(piece: bytes) -> list[bytes]:
  """The lines of a piece, without their ends LF or CR LF."""
  found = piece.split(b"\n")
  found = found[:-1] if not found[-1] else found
  return [line.removesuffix(b"\r") for line in found] if b"\r" in piece else found


def head(path: pathlib.Path) -> list[bytes]:
  """The first lines, of about HEAD bytes. Raises InputError as `pieces` does."""
  found, size = [], 0
  for _, piece in pieces(path, size=HEAD):
    found += lines(piece)
    size += len(piece)
    if size >= HEAD:
      break
  return found


def _opened(path, argument) -> Any:
  """The decompressed file; ARCHIVE.zip/MEMBER is a file in an archive. Raises InputError for what is no file of text,
  and OSError."""
  if archive := next((x for x in path.parents if x.suffix.lower() == ".zip" and x.is_file()), None):
    return _member(archive, path.relative_to(archive).as_posix(), argument)
  mode = path.stat().st_mode
  if not stat.S_ISREG(mode):
    what = "a directory" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a device or a socket"
    raise InputError(f"`{argument}`: {path}: is {what}, not a file")
  suffix, what = path.suffix.lower(), magic(path)
  if suffix in _WORKBOOKS:
    raise InputError(f"`{argument}`: {path}: {_WORKBOOK}")
  if what and _SUFFIXES.get(what) != suffix and suffix not in PACKED:
    advice = f"name it {path.name}{_SUFFIXES[what]}" if what in _SUFFIXES else "write it as CSV or Parquet"
    raise InputError(f"`{argument}`: {path}: cannot be read: it holds {what} bytes, not text; {advice}")
  if suffix == ".zip":
    return _only_member(path, argument)
  return {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(suffix, open)(path, "rb")


def _member(path, name, argument):
  archive = zipfile.ZipFile(path)
  if name not in archive.namelist():
    raise InputError(f"`{argument}`: {path}: the archive has no {name}")
  return archive.open(name)


def _only_member(path, argument):
  """The one file of a zip archive. Raises InputError if there are several."""
  archive = zipfile.ZipFile(path)
  names = [x.filename for x in archive.infolist() if not x.is_dir() and not x.filename.startswith("__MACOSX/")]
  if any(name.startswith("xl/") for name in names):
    raise InputError(f"`{argument}`: {path}: {_WORKBOOK}")
  if len(names) != 1:
    raise InputError(f"`{argument}`: {path}: an archive of one file is read, and this one has {len(names)}"
                     f"{': ' if names else ''}{', '.join(names[:8])}; unpack it, and name the file")
  return archive.open(names[0])


def _check_lengths(path, argument, number, piece) -> None:
  half = LONGEST // 2  # a line that is too long covers one of these ranges of bytes
  if all(piece.find(b"\n", start, start + half) >= 0 for start in range(0, len(piece) - half + 1, half)):
    return
  ends = np.flatnonzero(np.frombuffer(piece, np.uint8) == 10)
  lengths = np.diff(np.concatenate([[-1], ends, [len(piece)] if not piece.endswith(b"\n") else []]))
  if lengths.max() >= LONGEST:
    line = number + int(np.argmax(lengths >= LONGEST))
    raise InputError(f"`{argument}`: {path}:{line}: the line is longer than {LONGEST:,} bytes")
