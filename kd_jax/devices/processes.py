"""Several processes that train together: connecting, agreeing on values, and ending.

Each process runs the whole program with the same flags. Only the training steps run jointly (`parallel`). The first
process writes files and prints.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from kd_jax.base import InputError
from kd_jax.devices import signals
from kd_jax.devices.options import ProcessOptions

_SECONDS = 30  # without a heartbeat of a process before JAX aborts the others
_MOMENT = 2  # seconds in which a process learns that another one has ended
_ENDING = threading.Lock()
_DONE = b"."


@contextlib.contextmanager
def joined(options: ProcessOptions, shown: Callable[[str], str] = str) -> Iterator[None]:
  """Connects this process with the others if `coordinator` is given. Enter it before any JAX computation.

  If a process ends with an error, all processes end with its message and its exit status. Raises InputError for
  inconsistent flags.
  """
  arguments = _arguments(options)
  if arguments is None:
    yield
    return
  try:
    jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=_SECONDS, shutdown_timeout_seconds=_SECONDS)
  except (RuntimeError, ValueError) as error:
    raise InputError(f"`coordinator={options.coordinator}`: {(str(error).splitlines() or [error])[0]}") from error
  others = _connect(arguments)
  for one in others:
    threading.Thread(target=_watch, args=(one, others), daemon=True).start()
  with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(sys.stdout if is_first() else nowhere):
    try:
      yield
      _part(others)
    except signals.Agreed:
      _part(others)
      raise
    except InputError as error:
      _end(others, _named(shown(str(error))), 2)
    except KeyboardInterrupt:  # of this process only, for example by a second signal
      _end(others, _named("interrupted; start the same commands again to go on"), 130)
    except Exception as error:
      time.sleep(_MOMENT)  # if the cause is the loss of another process, `_watch` reports that and ends this one
      _end(others, _named(repr(error)), 1, traceback.format_exc().rstrip())


def _connect(arguments) -> list[socket.socket]:
  """Opens connections between the first process and every other one. They close when a process ends for any reason.

  They are needed because a collective operation may wait for a lost process for ever.
  """
  if "coordinator_address" not in arguments:
    return []
  server = _listen() if is_first() else None
  own = [server.getsockname()[1] if server else 0, *np.frombuffer(secrets.token_bytes(16), np.int32)]
  port, *token = multihost_utils.broadcast_one_to_all(np.array(own, np.int32)).tolist()
  try:
    if server is not None:
      with server:
        return _accept(server, token)
    host = arguments["coordinator_address"].rpartition(":")[0].strip("[]")  # the brackets of an IPv6 address
    one = socket.create_connection((host, port), _SECONDS / 2)
    one.sendall(_pass(token, jax.process_index()))
    one.settimeout(None)
    return [one]
  except OSError as error:
    raise InputError(f"`coordinator={arguments['coordinator_address']}`: port {port} of it, chosen for this run, does "
                     f"not connect the processes: {error}") from error


def _listen():
  both = socket.has_dualstack_ipv6()
  return socket.create_server(("", 0), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both)


def _accept(server, token):
  """Accepts a connection from every other process. Each proves itself by the secret token of this run."""
  expected, found = {_pass(token, number) for number in range(1, jax.process_count())}, []
  until = time.monotonic() + _SECONDS / 2
  while expected:
    server.settimeout(max(until - time.monotonic(), 1e-3))
    one = server.accept()[0]
    one.settimeout(_MOMENT)
    said = b""
    with contextlib.suppress(OSError):  # no answer
      while len(said) < 20 and (more := one.recv(20 - len(said))):
        said += more
    if said in expected:
      expected.remove(said)
      one.settimeout(None)
      found.append(one)
    else:
      one.close()
  return found


def _pass(token, number):
  return np.array([*token, number], np.int32).tobytes()


def _watch(one, others):
  """Waits for the last message of a process: "." if it finished, status and message, or nothing if it was killed."""
  said = b""
  with contextlib.suppress(OSError):
    while said != _DONE and (more := one.recv(4096)):
      said += more
  if said == _DONE:
    return
  status, _, line = said.decode(errors="replace").partition(" ")
  lost = _named("another one has ended; start the same commands again to go on")
  _end(others, line or lost, int(status) if line else 1)


def _part(others):
  for one in others:
    with contextlib.suppress(OSError):  # the process is lost: `_watch` reports it
      one.sendall(_DONE)


def _named(line):
  return f"process {jax.process_index()} of {jax.process_count()}: {line}"


def _end(others, line, status, shown=None):
  """Ends this process at once, and sends its message to the others. A normal exit would wait for lost processes."""
  _ENDING.acquire()  # never released: a process ends once
  print(shown or line, file=sys.stderr, flush=True)
  for one in others:
    with contextlib.suppress(OSError):
      one.sendall(f"{status} {line}".encode())
      one.shutdown(socket.SHUT_WR)  # a message of the other side may still arrive
  if is_first():
    time.sleep(_MOMENT)  # when the first process is gone, JAX aborts the others with a stack trace
  os._exit(status)


def _arguments(options) -> dict | None:
  """The arguments of jax.distributed.initialize; None if there is only this process."""
  address, count, number = options.coordinator, options.num_processes, options.process_id
  if not address:
    if count is not None or number is not None:
      raise InputError("`num_processes` and `process_id` need `coordinator=HOST:PORT`, the address of process 0")
    return None
  if address == "auto":
    return {}
  if not re.fullmatch(r".+:\d+", address) or count is None or number is None or number >= count:
    raise InputError(f"`coordinator={address}`: HOST:PORT with `num_processes=N` and `process_id=0..N-1`, or auto")
  return {"coordinator_address": address, "num_processes": count, "process_id": number}


def is_first() -> bool:
  """Whether this process writes files and prints."""
  return jax.process_index() == 0


def by_first(function: Callable[..., None], *arguments: Any) -> None:
  """Calls a function that writes files, only in the first process."""
  if is_first():
    function(*arguments)


def meet() -> None:
  """Waits until all processes have called it (a barrier)."""
  any_of(False)


def any_of(*said: bool) -> list[bool]:
  """Which of these values are true in at least one process. All processes must call it, and wait for each other."""
  if jax.process_count() == 1:
    return list(said)
  return multihost_utils.process_allgather(np.array(said, bool)).any(axis=0).tolist()


def of_first(values: dict[str, float]) -> dict[str, float]:
  """The values of the first process, for all: hosts may differ in the last bit. All processes must call it."""
  if jax.process_count() == 1:
    return values
  bits = np.array(list(values.values()), np.float64).view(np.uint32)  # as bits, since JAX would round to 32 bits
  found = np.ascontiguousarray(multihost_utils.broadcast_one_to_all(bits)).view(np.float64)
  return dict(zip(values, found.tolist(), strict=True))

