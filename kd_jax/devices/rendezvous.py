"""How processes find each other, and check that they belong together, before JAX connects them.

JAX aborts a process whose partner does not come, crashes where its port is taken, and lets in whatever comes. So the
processes first meet at the port that JAX then uses. Each says what it was started with, and the first one answers all.
A message is the mark, the length of a JSON object in 4 bytes, and the object.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from typing import Any

from kd_jax.base import InputError

Facts = dict[str, str]  # {name: what is said of it}, e.g. {"seed": "`seed=0`"}
_MARK = b"kd_jax\r\n"  # a line, so that most other programs answer, if only that they do not understand
_MOMENT = 2  # seconds for a message to arrive, and for the last processes to come and hear that something is wrong
_SHOWN = 4  # differences in one message


def connect(address: str, facts: Facts, count: int, number: int, seconds: float) -> list[socket.socket]:
  """Connects the first process with every other one: its connections to all others, or their connection to it.

  `address` is HOST:PORT of the first process; `facts` must be equal in all processes, `seconds` among them. Nobody
  listens at the port afterwards, although the connections go on.

  Raises InputError in all processes that are there: a process does not come within `seconds`, facts differ, or a number
  is taken twice. Raises it in the first process at once if the port is in use. A process that meets another program
  raises it at once if that answers. It hears the first process at the latest `seconds` after it has found it.
  """
  host, _, port = address.rpartition(":")
  if number == 0:
    return _receive_all(address, int(port), facts, count, seconds)
  said = {"number": number, "facts": facts, "at": f"process {os.getpid()} on {socket.gethostname()}"}
  return [_report((host.strip("[]"), int(port)), address, said, seconds)]  # the brackets of an IPv6 address


def difference(facts_of: dict[int, Facts]) -> str:
  """One line on the facts in which processes differ, {number: its facts}, with their values; "" if all agree."""
  lines = []
  for name in dict.fromkeys(name for facts in facts_of.values() for name in facts):
    who: dict[str, list[int]] = {}
    for number, facts in sorted(facts_of.items()):
      who.setdefault(facts.get(name, f"no {name}"), []).append(number)
    if len(who) > 1:
      lines.append(", ".join(f"{what} in {_named(numbers)}" for what, numbers in who.items()))
  shown = [*lines[:_SHOWN], *([f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])]
  return f"the processes do not belong together: {'; '.join(shown)}" if lines else ""


def _named(numbers):
  if len(numbers) > 3:
    return f"process {numbers[0]} and {len(numbers) - 1} others"
  return f"process{'es' * (len(numbers) > 1)} {' and '.join(map(str, numbers))}"


def _receive_all(address, port, facts, count, seconds) -> list[socket.socket]:
  """Of the first process: waits for all others, and tells all who came whether something is wrong."""
  came: list[tuple[socket.socket, dict]] = []
  until, wrong = time.monotonic() + seconds, ""
  with contextlib.ExitStack() as opened:
    server = opened.enter_context(_listen(address, port))
    while len(came) < count - 1 and time.monotonic() < until:
      came += _receive(server)
      came = [(one, said) for one, said in came if not _has_ended(one)]  # it may come again
      if not wrong and (wrong := _wrong(facts, [said for _, said in came])):
        until = min(until, time.monotonic() + _MOMENT)  # those that come now hear it too
    missing = sorted({*range(1, count)} - {said["number"] for _, said in came})
    if missing and not wrong:
      wrong = f"`coordinator={address}`: {_named(missing)} of {count} did not come within `connect_seconds={seconds:g}`"
    for one, _ in came:
      opened.callback(one.close)
      with contextlib.suppress(OSError):  # it has just ended
        _send(one, {"wrong": wrong})
    if wrong:
      raise InputError(wrong)
    opened.pop_all()
    server.close()  # JAX listens there next
  return [one for one, _ in came]


def _listen(address, port):
  both = socket.has_dualstack_ipv6()
  try:
    return socket.create_server(("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both)
  except OSError as error:
    why = (f"another program, or another run, uses port {port} of this host" if error.errno == errno.EADDRINUSE else
           f"port {port} cannot be used: {os.strerror(error.errno or 0)}")
    raise InputError(f"`coordinator={address}`: {why}; choose another port") from None


def _receive(server) -> list[tuple[socket.socket, dict]]:
  """[(connection, what it said)] if a process comes within half a second; another program is sent away."""
  server.settimeout(0.5)
  try:
    one = server.accept()[0]
  except TimeoutError:
    return []
  one.settimeout(_MOMENT)
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
    said = _read(one)
    if said["number"] > 0 and all(isinstance(x, str) for x in (said["at"], *said["facts"].values())):
      _send(one, {"waits": True})
      return [(one, said)]
  one.close()
  return []


def _wrong(facts, heard) -> str:
  at: dict[int, str] = {}
  for said in heard:
    if said["number"] in at:
      return f"`process_id={said['number']}` was given to {at[said['number']]} and to {said['at']}"
    at[said["number"]] = said["at"]
  return difference({0: facts} | {said["number"]: said["facts"] for said in heard})


def _has_ended(one) -> bool:
  one.setblocking(False)
  try:
    return not one.recv(1, socket.MSG_PEEK)
  except BlockingIOError:
    return False
  except OSError:
    return True
  finally:
    one.setblocking(True)


def _report(place, address, said, seconds) -> socket.socket:
  """Of the others: reports to the first process, and waits for its answer."""
  until, why = time.monotonic() + seconds, "it does not answer"
  while time.monotonic() < until:
    try:
      one = _find(place, said, until)
    except TimeoutError:
      why = "it does not answer"
    except OSError as error:
      why = error.strerror or str(error)
    except ValueError:
      raise InputError(f"`coordinator={address}`: what answers there is not the first process of a run that still "
                       "waits for others: another program, or a run that has all its processes") from None
    else:
      return _answered(one, address, seconds)
    time.sleep(0.2)
  raise InputError(f"`coordinator={address}`: did not find process 0 within `connect_seconds={seconds:g}`: {why}")


def _find(place, said, until) -> socket.socket:
  """A connection to the first process, which has heard `said`. Raises as `_read`."""
  with contextlib.ExitStack() as opened:
    one = opened.enter_context(socket.create_connection(place, min(max(until - time.monotonic(), 0.1), 5)))
    if one.getsockname() == one.getpeername():  # the kernel connected it with itself: nobody listens
      raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    one.settimeout(max(until - time.monotonic(), 0.1))
    _send(one, said)
    if "waits" not in _read(one):
      raise ValueError("not the first process")
    opened.pop_all()
  return one


def _answered(one, address, seconds) -> socket.socket:
  one.settimeout(seconds + 2 * _MOMENT)
  try:
    wrong = _read(one)["wrong"]
  except (OSError, ValueError, KeyError):
    raise InputError(f"`coordinator={address}`: process 0 has ended while it waited for others") from None
  if wrong:
    raise InputError(wrong)
  one.settimeout(None)
  return one


def _send(one, value: dict[str, Any]) -> None:
  content = json.dumps(value).encode()
  one.sendall(_MARK + len(content).to_bytes(4, "big") + content)


def _read(one) -> dict[str, Any]:
  """One message. Raises OSError if the connection ends, and ValueError for anything else than a message."""
  if (mark := _bytes(one, len(_MARK))) != _MARK:
    raise ValueError(f"not a process: {mark!r}")
  value = json.loads(_bytes(one, int.from_bytes(_bytes(one, 4), "big")))
  if not isinstance(value, dict):
    raise ValueError("not a JSON object")
  return value


def _bytes(one, size) -> bytes:
  """Exactly `size` bytes: what follows them belongs to the next message."""
  found = b""
  while len(found) < size:
    if not (more := one.recv(min(size - len(found), 65536))):
      raise ConnectionResetError(errno.ECONNRESET, "the connection ended")
    found += more
  return found
