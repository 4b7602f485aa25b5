"""Judges how a case ended: the right result, one line that says what is wrong, or a failure."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from kd_jax import cli

RIGHT, REFUSED = "right", "refused"
SILENT, TRACEBACK, HANG, LOST, UNCLEAR = FAILURES = ("silent", "traceback", "hang", "lost", "unclear")
_DEFINITION = cli.define()
_PROGRAM = "case.py"
_LONGEST = 2000  # characters of a message
# An argument, a flag, or the path of a file.
_NAMES = re.compile(r"--[a-z]\w*|-[a-z]\w+|`|[Ff]lag|File name too long|stray word|standard output|/"
                    r"|\w\.(json|jsonl|txt|csv|tsv|toml|npz|npy|gz|parquet|sha256)\b")
_NOISE = re.compile(r"Traceback|^\s+File \"|\wWarning: |Fatal Python error|^\S*(Error|Exception)\b", re.MULTILINE)


class Outcome(NamedTuple):
  """How a case ended; `kind` is `RIGHT`, `REFUSED` or one of `FAILURES`."""

  kind: str
  detail: str = ""

  @property
  def failed(self) -> bool:
    return self.kind in FAILURES


class Hang(BaseException):
  """The time of a case is over. No handler of an ordinary exception catches it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
  """Raises Hang in the block after so many seconds. Only in the main thread."""
  def stop(number, frame):
    raise Hang

  before = signal.signal(signal.SIGALRM, stop)
  signal.setitimer(signal.ITIMER_REAL, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def of_call(function: Callable[[], Any], expected: Any, about: tuple[str, ...] = (), seconds: float = 60) -> Outcome:
  """Calls `function` as a script would, with the error handling of `cli.run`, and compares what it returns.

  `expected` is the result without the fault, or a function that says what is wrong with a result, "" if nothing is.
  An error must be one line that names one of `about`, or an argument. The call may take at most `seconds`.
  """
  said, found = io.StringIO(), []
  arguments, sys.argv = sys.argv, [_PROGRAM]
  try:
    with time_limit(seconds), contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
      cli.run(lambda values: found.append(function()), "", _DEFINITION)
  except SystemExit as end:
    return of_process(end.code if isinstance(end.code, int) else 1, said.getvalue(), about)
  except Hang:
    return Outcome(HANG, f"more than {seconds:g} s")
  except BaseException as error:
    return Outcome(TRACEBACK, _last_lines(error))
  finally:
    sys.argv = arguments
  if _noise(said.getvalue()):
    return Outcome(TRACEBACK, said.getvalue()[-1500:])
  return of_result(found[0] if found else None, expected)


def of_result(found: Any, expected: Any) -> Outcome:
  """Right or silently wrong."""
  wrong = expected(found) if callable(expected) else difference(found, expected)
  return Outcome(SILENT, wrong) if wrong else Outcome(RIGHT)


def of_process(code: int, said: str, about: tuple[str, ...] = ()) -> Outcome:
  """The outcome of a process that did not succeed, from its exit status and what it wrote to standard error.

  Status 2 is that of a refusal. With status 1, `cli.run` has written a traceback that nobody foresaw to a file.
  """
  if code < 0:
    return Outcome(TRACEBACK, f"ended by signal {-code}: {said[-500:]}")
  if code == 1 or _noise(said):
    return Outcome(TRACEBACK, said[:1500] + " ... " + said[-1500:] + _written(said))
  if code != 2:
    return Outcome(UNCLEAR, f"status {code}: {said[-500:]}")
  return of_message(said, about)


def of_message(said: str, about: tuple[str, ...] = ()) -> Outcome:
  """Refused, if the last line names a file or an argument, and one of `about` if there are any.

  Notes may stand before it, such as `run: was stopped before its first checkpoint; starts again`.
  """
  *notes, last = said.splitlines() or [""]
  program, _, text = last.partition(": ")
  if not text or any(line.startswith(f"{program}: ") or ": " not in line for line in notes):
    return Outcome(UNCLEAR, f"{len(notes) + 1} lines: {said[-800:]}")
  if len(text) > _LONGEST or not said.replace("\n", "").isprintable():
    return Outcome(UNCLEAR, f"too long, or not printable: {text[:800]!r}")
  if about and not any(name in text for name in about) and "--" not in text:
    return Outcome(UNCLEAR, f"names none of {', '.join(about)}: {text}")
  if not about and not _NAMES.search(text):
    return Outcome(UNCLEAR, f"names no file and no argument: {text}")
  return Outcome(REFUSED, text)


def difference(found: Any, expected: Any) -> str:
  """The first difference of two JSON values, with its place; "" if they are equal."""
  found, expected = (json.loads(json.dumps(x, sort_keys=True, default=str)) for x in (found, expected))
  return _difference(found, expected, "result")


def _difference(found, expected, where) -> str:
  if isinstance(found, dict) and isinstance(expected, dict):
    for key in sorted(found.keys() | expected.keys()):
      if said := _difference(found.get(key, "nothing"), expected.get(key, "nothing"), f"{where}.{key}"):
        return said
    return ""
  if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
    return next((said for n, pair in enumerate(zip(found, expected, strict=True))
                 if (said := _difference(*pair, f"{where}[{n}]"))), "")
  # As texts, so that NaN equals itself.
  same = json.dumps(found) == json.dumps(expected)
  return "" if same else f"{where} is {str(found)[:150]}, expected {str(expected)[:150]}"


def _noise(said) -> bool:
  """Whether something that a user should never see is in what a process wrote to standard error."""
  return _NOISE.search(said) is not None


def _written(said) -> str:
  """The end of the file in which `cli.run` has left a traceback."""
  found = re.search(r"the traceback is in (\S+)", said)
  try:
    return pathlib.Path(found[1]).read_text()[-1500:] if found else ""
  except OSError:
    return ""


def _last_lines(error) -> str:
  frames = traceback.extract_tb(error.__traceback__)
  places = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames[-4:]]
  return f"{type(error).__name__}: {str(error)[:300]} ({' > '.join(places)})"
