"""Several processes that train together: connecting, agreeing on values, and ending.

Each process runs the whole program with the same flags. Only the training steps run jointly (`parallel`). The first
process writes files and prints.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src import clusters  # jax.distributed has no other way to say what it finds without connecting
from jax.experimental import multihost_utils

from kd_jax.base import InputError, one_line
from kd_jax.devices import failures, rendezvous, signals
from kd_jax.devices.options import ProcessOptions
from kd_jax.storage import run_directory

_SECONDS = 30  # without a heartbeat of a process before JAX aborts the others
_MOMENT = 2  # seconds in which a process learns that another one has ended
_ENDING = threading.Lock()
_DONE = b"."


class _Group(NamedTuple):
  """The processes that train together, as one of them sees them."""

  address: str  # HOST:PORT of the first process
  size: int  # how many
  number: int  # of this one
  others: tuple[socket.socket, ...] = ()  # connections of the first process with all others, of the others with it


@contextlib.contextmanager
def joined(options: ProcessOptions, shown: Callable[[str], str] = str,
           facts: rendezvous.Facts | None = None) -> Iterator[None]:
  """Connects this process with the others if `coordinator` is given. Enter it before any JAX computation.

  `facts` must be equal in all processes. If a process ends with an error, all processes end with its message and its
  exit status. Raises InputError for inconsistent options, and as `rendezvous.connect`.
  """
  group = _group(options)
  if group is None:
    yield
    return
  seconds, versions = options.connect_seconds, run_directory.versions()["versions"]
  facts = {"num_processes": f"`num_processes={group.size}`", "connect_seconds": f"`connect_seconds={seconds}`",
           **{name: f"{name} {version}" for name, version in versions.items()}, **(facts or {})}
  group = group._replace(others=tuple(rendezvous.connect(group.address, facts, group.size, group.number, seconds)))
  for one in group.others:
    threading.Thread(target=_watch, args=(one, group), daemon=True).start()
  with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere if group.number else sys.stdout):
    try:
      _initialize(group, seconds, shown)
      yield
      _part(group)
    except signals.Agreed:
      _part(group)
      raise
    except InputError as error:
      _end(group, shown(str(error)), 2)
    except KeyboardInterrupt as error:  # of this process only, for example by a second signal
      said, status = signals.said(error)
      _end(group, f"{said}; start the same commands again to go on", status)
    except Exception as error:
      time.sleep(_MOMENT)  # if the cause is the loss of another process, `_watch` reports that and ends this one
      said, status = failures.said(error)
      _end(group, one_line(shown(said)), status)


def _initialize(group, seconds, shown):
  """Connects JAX. All processes are there, so this takes a second; JAX would abort one that waits for too long."""
  failed = shown(f"`coordinator={group.address}`: JAX does not connect the processes")
  late = threading.Timer(seconds, _end, (group, f"{failed} within {seconds:g} s", 2))
  late.daemon = True
  late.start()
  try:
    jax.distributed.initialize(group.address, group.size, group.number, initialization_timeout=seconds + _SECONDS,
                               heartbeat_timeout_seconds=_SECONDS, shutdown_timeout_seconds=_SECONDS)
  except (RuntimeError, ValueError) as error:
    raise InputError(f"{failed}: {(str(error).splitlines() or [error])[0]}") from error
  finally:
    late.cancel()


def _watch(one, group):
  """Waits for the last message of a process: "." if it finished, status and message, or nothing if it was killed.

  It is needed because a collective operation may wait for a lost process for ever.
  """
  said = b""
  with contextlib.suppress(OSError):
    while said != _DONE and (more := one.recv(4096)):
      said += more
  if said == _DONE:
    return
  status, _, line = said.decode(errors="replace").partition(" ")
  if line:
    _end_with(group, line, int(status))
  _end(group, "another one has ended; start the same commands again to go on", 1)


def _part(group):
  for one in group.others:
    with contextlib.suppress(OSError):  # the process is lost: `_watch` reports it
      one.sendall(_DONE)


def _end(group, line, status):
  """Ends this process, and the others, with this line."""
  _end_with(group, f"process {group.number} of {group.size}: {line}", status)


def _end_with(group, line, status):
  """Ends this process at once, and sends its message to the others. A normal exit would wait for lost processes."""
  _ENDING.acquire()  # never released: a process ends once
  print(line, file=sys.stderr, flush=True)
  for one in group.others:
    with contextlib.suppress(OSError):
      one.sendall(f"{status} {line}".encode())
      one.shutdown(socket.SHUT_WR)  # a message of the other side may still arrive
  if group.number == 0:
    time.sleep(_MOMENT)  # when the first process is gone, JAX aborts the others with a stack trace
  os._exit(status)


def _group(options) -> _Group | None:
  """Where this process is among the others, not yet connected; None if there is only this process."""
  address, count, number = options.coordinator, options.num_processes, options.process_id
  if not address:
    if count is not None or number is not None:
      raise InputError("`num_processes` and `process_id` need `coordinator=HOST:PORT`, the address of process 0")
    return None
  if address == "auto":
    address, count, number = _found(count, number, options.connect_seconds)
  port = re.fullmatch(r".+:(\d{1,5})", address)
  if not port or not 0 < int(port[1]) < 2**16 or count is None or number is None or number >= count:
    raise InputError(f"`coordinator={address}`: HOST:PORT with `num_processes=N` and `process_id=0..N-1`, or auto")
  return _Group(address, count, number)


def _found(count, number, seconds):
  """(address, number of processes, number of this one) of SLURM, Open MPI, Kubernetes or a TPU pod."""
  try:
    address, count, number, _ = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        None, count, number, [], None, seconds)
  except Exception as error:  # of the cluster's own library, or of its environment variables
    raise InputError(f"`coordinator=auto`: {(str(error).splitlines() or [repr(error)])[0]}") from error
  if address is None:
    raise InputError("`coordinator=auto`: neither a SLURM step, an MPI job, Kubernetes pods nor a TPU pod is found; "
                     "give HOST:PORT, `num_processes` and `process_id`")
  return address, count, number


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


def agree(facts: Callable[[], rendezvous.Facts]) -> None:
  """Compares facts over all processes. All must call it, and wait for each other.

  Raises InputError in all of them, with the facts and their values in both, if they differ. `facts` is only called if
  there are several processes.
  """
  if jax.process_count() == 1:
    return
  devices = collections.Counter(device.process_index for device in jax.devices())
  wrong = rendezvous.difference({number: {"devices": f"local devices: {count}"} for number, count in devices.items()})
  said = json.dumps({} if wrong else facts()).encode()
  # The texts are only sent if their hashes differ.
  if not wrong and len({each.tobytes() for each in _gather(hashlib.sha256(said).digest())}) > 1:
    lengths = _gather(np.int32(len(said)).tobytes()).view(np.int32)[:, 0]
    texts = _gather(said.ljust(max(lengths)))
    wrong = rendezvous.difference({number: json.loads(text.tobytes()) for number, text in enumerate(texts)})
  if wrong:
    raise InputError(wrong)


def _gather(content: bytes) -> np.ndarray:
  """The content of every process, [processes, bytes]; all are of the same length."""
  return np.asarray(multihost_utils.process_allgather(np.frombuffer(content, np.uint8)))


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

