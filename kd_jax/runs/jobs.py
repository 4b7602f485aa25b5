"""Calls of a function in several processes at the same time; each process has its own cores.

A large part of a run uses only one core, even if more are available.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Hashable, Iterator
from multiprocessing import connection
from typing import Any

from kd_jax.base import InputError
from kd_jax.devices import signals

_LOOK_SECONDS = 0.5  # interval between checks for a stop signal


def check(jobs: int) -> None:
  """Raises InputError for more jobs than cores, or for jobs on accelerators, which processes cannot share."""
  import jax

  cores = len(_cores())
  if jobs > cores:
    raise InputError(f"`jobs={jobs}`: there are {cores} processor cores, and a job takes one at least")
  if jobs > 1 and jax.default_backend() != "cpu":
    raise InputError(f"`jobs={jobs}`: jobs share the cores of a CPU, not {jax.default_backend()}s; `together` trains "
                     "the seeds of a row at once")


def run(jobs: int, function: Callable, calls: dict[Hashable, tuple],
        after: dict[Hashable, set[Hashable]]) -> Iterator[tuple[Hashable, Any]]:
  """Yields (key, `function(*calls[key])`) as calls finish. Runs `jobs` calls at a time, started in order.

  A call starts after all calls of `after[key]` have finished. If one raises, the others get SIGTERM, and the exception
  is raised here.
  """
  with _processes(jobs, function) as idle, signals.on_signal() as asked:
    waiting, busy, done = dict(calls), {}, set()
    while waiting or busy:
      ready = [key for key in waiting if after[key] <= done]
      for key, pipe in zip(ready, list(idle), strict=False):
        pipe.send(waiting.pop(key))
        busy[pipe] = key
        idle.remove(pipe)
      for pipe in connection.wait(busy, _LOOK_SECONDS):
        key, result = busy.pop(pipe), _received(pipe, jobs)
        idle.append(pipe)
        done.add(key)
        yield key, result
      if asked:
        raise signals.Agreed(*asked)


def _received(pipe, jobs):
  try:
    error, result = pipe.recv()
  except EOFError:
    raise InputError(f"`jobs={jobs}`: a process was ended from outside; if memory is short, fewer need less") from None
  if error:
    raise error
  return result


@contextlib.contextmanager
def _processes(jobs, function):
  """Yields pipes to processes that call `function`. At the end, it terminates them; they first save their runs."""
  context, cores = multiprocessing.get_context("spawn"), _cores()
  pairs = [context.Pipe() for _ in range(jobs)]
  started = [context.Process(target=_serve, args=(function, theirs, cores[i::jobs]))
             for i, (_, theirs) in enumerate(pairs)]
  try:
    for process, (_, theirs) in zip(started, pairs, strict=True):
      process.start()
      theirs.close()
    yield [own for own, _ in pairs]
  finally:
    for process in started:
      if process.pid is not None:
        process.terminate()
        process.join()


def _cores() -> list[int]:
  return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count()))


def _serve(function, pipe, cores):
  """Answers every call from `pipe` with (error, result). Ends when the parent process ends."""
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, cores)  # before JAX counts them
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
  # The output of several runs would be mixed; the parent process prints results.
  sys.stdout = sys.stderr = open(os.devnull, "w")
  try:
    while True:
      call = pipe.recv()
      try:
        answer = None, function(*call)
      except InputError as error:
        answer = error, None
      except Exception as error:
        error.add_note(traceback.format_exc())
        answer = error, None
      pipe.send(answer)
  except (EOFError, KeyboardInterrupt):
    return


def _end_with(parent):
  parent.join()
  os.kill(os.getpid(), signal.SIGTERM)
