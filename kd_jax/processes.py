"""Several processes that train together: how they meet, what they agree on, how they end.

Each runs the whole program on the same flags, and they share the steps of training alone (`parallel`). The first one
writes files and prints.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from kd_jax.base import InputError

_SECONDS = 30  # without a sign of life of a process before JAX aborts the others
_MOMENT = 2  # seconds in which a process hears that another one has ended
_ENDING = threading.Lock()


@contextlib.contextmanager
def joined(values: flags.FlagValues) -> Iterator[None]:
  """Together with the other processes, if --coordinator is given; to be entered before JAX computes anything.

  When one of them ends too early, this one ends with one line and a status that is not 0. Raises InputError for flags
  that do not fit.
  """
  arguments = _arguments(values)
  if arguments is None:
    yield
    return
  try:
    jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=_SECONDS, shutdown_timeout_seconds=_SECONDS)
  except (RuntimeError, ValueError) as error:
    raise InputError(f"--coordinator={values.coordinator}: {(str(error).splitlines() or [error])[0]}") from error
  others = _connect(arguments)
  for one in others:
    threading.Thread(target=_watch, args=(one, others), daemon=True).start()
  with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(sys.stdout if is_first() else nowhere):
    try:
      yield
      _part(others)
    except InputError as error:
      _end(others, str(error), 2)
    except KeyboardInterrupt:  # all have agreed on it
      _part(others)
      raise
    except Exception:
      time.sleep(_MOMENT)  # if another one was lost, `_watch` now says so
      raise


def _connect(arguments) -> list[socket.socket]:
  """Of the first process to all others, of those to the first: closed when a process ends, however it ends.

  Needed, since an operation of several devices may wait for a lost process for ever.
  """
  if "coordinator_address" not in arguments:
    return []
  server = socket.create_server(("", 0)) if is_first() else None
  port = int(multihost_utils.broadcast_one_to_all(np.int32(server.getsockname()[1] if server else 0)))
  if server is None:
    return [socket.create_connection((arguments["coordinator_address"].rpartition(":")[0], port))]
  with server:
    return [server.accept()[0] for _ in range(jax.process_count() - 1)]


def _watch(one, others):
  try:
    said = one.recv(1)
  except OSError:
    said = b""
  if not said:
    _end(others, "another one has ended; start the same commands again to go on", 1)


def _part(others):
  for one in others:
    one.sendall(b".")


def _end(others, line, status):
  """Ends this process now: an orderly end would wait for those that are lost."""
  _ENDING.acquire()  # and never given back: a process ends once
  print(f"process {jax.process_index()} of {jax.process_count()}: {line}", file=sys.stderr, flush=True)
  for one in others:
    with contextlib.suppress(OSError):
      one.shutdown(socket.SHUT_RDWR)
  if is_first():
    time.sleep(_MOMENT)  # JAX aborts the others, with a stack trace, when the first is gone
  os._exit(status)


def _arguments(values) -> dict | None:
  """What jax.distributed.initialize is told; None if this process is alone."""
  address, count, number = values.coordinator, values.num_processes, values.process_id
  if not address:
    if count is not None or number is not None:
      raise InputError("--num_processes and --process_id need --coordinator=HOST:PORT, the address of process 0")
    return None
  if address == "auto":
    return {}
  if not re.fullmatch(r".+:\d+", address) or count is None or number is None or number >= count:
    raise InputError(f"--coordinator={address}: HOST:PORT with --num_processes=N and --process_id=0..N-1, or auto")
  return {"coordinator_address": address, "num_processes": count, "process_id": number}


def is_first() -> bool:
  """Whether this process writes files and prints."""
  return jax.process_index() == 0


def by_first(function: Callable[..., None], *arguments: Any) -> None:
  """Calls a function that writes, in the first process alone."""
  if is_first():
    function(*arguments)


def meet() -> None:
  """Waits until all processes are here."""
  any_of(False)


def any_of(*said: bool) -> list[bool]:
  """Which of these are true in any process. All must ask, and wait here for each other."""
  if jax.process_count() == 1:
    return list(said)
  return multihost_utils.process_allgather(np.array(said, bool)).any(axis=0).tolist()


def of_first(values: dict[str, float]) -> dict[str, float]:
  """The first process's values, by which all go: hosts may differ in the last bit. All must ask."""
  if jax.process_count() == 1:
    return values
  bits = np.array(list(values.values()), np.float64).view(np.uint32)  # JAX would round to 32 bits
  found = np.ascontiguousarray(multihost_utils.broadcast_one_to_all(bits)).view(np.float64)
  return dict(zip(values, found.tolist(), strict=True))

