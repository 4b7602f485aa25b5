"""What a process says about an error that ends it, in one line, and its exit status."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import sys
import tempfile
import traceback

from kd_jax.base import InputError


def said(error: Exception, workdir: str | os.PathLike | None = None) -> tuple[str, int]:
  """(one line, exit status): 2 for wrong input, for files that cannot be used and for too little memory, 1 otherwise.

  In the last case the traceback is written to a file, in `workdir` if it holds a run.
  """
  if isinstance(error, InputError):
    return str(error), 2
  if isinstance(error, OSError) and error.strerror is not None:
    place = error.filename or ("standard output" if isinstance(error, BrokenPipeError) else "a file")
    return f"{place}: {error.strerror}", 2
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
    return (f"not enough memory ({_first_line(error)}); a smaller `batch_size`, fewer `negatives` or a smaller `model` "
            "need less"), 2
  if full := _full_disk(error):
    return f"{full}: {os.strerror(errno.ENOSPC)}", 2
  return f"{type(error).__name__}: {_first_line(error)}; unforeseen{_traceback(error, workdir)}", 1


class _Output:
  """A stream whose errors say that they are of standard output."""

  def __init__(self, stream):
    self._stream = stream

  def __getattr__(self, name):
    return getattr(self._stream, name)

  def write(self, text):
    with _named():
      return self._stream.write(text)

  def flush(self):
    with _named():
      self._stream.flush()


@contextlib.contextmanager
def _named():
  try:
    yield
  except OSError as error:
    error.filename = "standard output"
    raise


@contextlib.contextmanager
def naming_output():
  """Errors of standard output name it."""
  with contextlib.redirect_stdout(_Output(sys.stdout)):
    yield


def _first_line(error) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _full_disk(error) -> str:
  """The file that a full disk did not take, if that is behind an error of a library; else ""."""
  seen: list[BaseException] = []
  while error is not None and error not in seen:
    seen.append(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
      return str(error.filename or "a file")
    if os.strerror(errno.ENOSPC) in str(error):
      return "a file"
    error = error.__cause__ or error.__context__
  return ""


def _traceback(error, workdir) -> str:
  """Writes the traceback to a file, and says where."""
  folder = workdir if workdir and (pathlib.Path(workdir) / "flags.txt").is_file() else None
  try:
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix="error_", suffix=".txt", delete=False) as file:
      traceback.print_exception(error, file=file)
  except OSError:
    return ""
  return f": the traceback is in {file.name}"
