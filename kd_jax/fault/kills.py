"""Kills commands at random moments and at the Nth file operation; started again, they must end with equal results."""

from __future__ import annotations

import json
import pathlib
import signal
import time
from typing import Any, NamedTuple

import numpy as np

from kd_jax.base import InputError
from kd_jax.fault import artefacts, children, commands, judge, operations
from kd_jax.fault.copies import Place
from kd_jax.fault.judge import Outcome

_SECONDS, _MEASURED = 120, 1200  # the longest that a command may take; without a fault, on a machine as busy as may be
_BOUND = 30  # seconds in which a command ends after SIGTERM or SIGINT
_STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}
# Shares of the commands: those that take long, or hold little, come less often.
SHARES = {"train": 5, "cold": 1, "extend": 4, "resume": 3, "distil": 3, "stream": 2, "soft_labels": 4, "compress": 2,
          "evaluate": 4, "export": 3, "prepare": 4, "reproduce": 1}


class Clean(NamedTuple):
  """A command without a fault."""

  result: Any
  operations: int
  seconds: float
  bytes: int  # by which the folder grows


def measure(place: Place) -> dict[str, Clean]:
  """Runs every command once, undisturbed."""
  copy, found = place.copy(), {}
  for name, command in commands.COMMANDS.items():
    command.begin()
    before = used(copy.place)
    ended, said = run(place, name, _MEASURED)
    if ended.code:
      raise AssertionError(f"{name} does not work: {ended.err[-2000:]}")
    found[name] = Clean(said["result"], said["operations"], ended.seconds, used(copy.place) - before)
    copy.heal()
  return found


def run(place: Place, name: str, seconds: float, *fault: Any) -> tuple[children.Ended, dict[str, Any]]:
  """Runs a command in a child, at most for `seconds`; `fault` as in `commands.perform`: (how it ended, its answer)."""
  answer = place.scratch / "answer.json"
  answer.unlink(missing_ok=True)
  ended = children.Child(lambda: commands.perform(name, answer, *fault), place.scratch).wait(seconds)
  return ended, answer_of(answer)


def answer_of(path: pathlib.Path) -> dict[str, Any]:
  """What a child wrote to its answer; {} if it did not come that far."""
  return json.loads(path.read_text()) if path.exists() else {}


def used(folder: pathlib.Path) -> int:
  """Bytes of all files below a folder, in blocks of 4 KiB."""
  return sum(4096 * (1 + path.stat().st_size // 4096) for path in folder.rglob("*") if path.is_file())


class Kills:
  """Kills a command one to three times, and then lets it end."""

  def __init__(self, place: Place):
    self.place, self.copy, self.clean = place, place.copy(), clean(place)

  def case(self, rng: np.random.Generator) -> tuple[str, Outcome]:
    """(what was done, how it ended)."""
    names = list(SHARES)
    name = names[rng.choice(len(names), p=np.array(list(SHARES.values())) / sum(SHARES.values()))]
    commands.COMMANDS[name].begin()
    said, before = [], commands.whole(name)
    try:
      for _ in range(int(rng.integers(1, 4))):
        lines = saved(name)
        what, outcome = self._kill(name, rng)
        said.append(what)
        if outcome := outcome or left(name, before, lines):
          return f"{name}: {'; '.join(said)}", outcome
      return f"{name}: {'; '.join(said)}", end(self.place, name, self.clean[name])
    finally:
      self.copy.heal()

  def _kill(self, name, rng) -> tuple[str, Outcome | None]:
    """Starts the command and kills it; (what was done, the outcome if it is none that a kill may have)."""
    clean, answer = self.clean[name], self.place.scratch / "answer.json"
    if rng.random() < 0.5:
      action = operations.KILL if rng.random() < 0.6 else operations.KILL_HALF
      number = int(rng.integers(1, clean.operations + 1))
      ended, _ = run(self.place, name, limit(clean), action, number)
      return f"{action} at file operation {number}", _killed(ended, signal.SIGKILL)
    number = [signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT][rng.integers(5)]
    after = float(rng.uniform(0.02, clean.seconds))
    child = children.Child(lambda: commands.perform(name, answer), self.place.scratch)
    until = time.monotonic() + after
    while time.monotonic() < until and not child.poll():
      time.sleep(min(0.005, max(0.0, until - time.monotonic())))
    child.send(number)
    ended = child.wait(limit(clean) if number == signal.SIGKILL else max(_BOUND, 5 * clean.seconds))
    return f"{signal.Signals(number).name} after {after:.3f} s", _killed(ended, number)


def limit(command: Clean) -> float:
  """Seconds after which a command hangs."""
  return max(_SECONDS, 20 * command.seconds)


def clean(place: Place) -> dict[str, Clean]:
  """{command: what it does undisturbed}."""
  return {name: Clean(*x) for name, x in place.expected["commands"].items()}


def _killed(ended: children.Ended, number: int) -> Outcome | None:
  """None, if a process may end in this way after signal `number`; it may also have ended before."""
  if ended.late:
    return Outcome(judge.HANG, f"does not end after signal {number}")
  if ended.code == 0 or (number == signal.SIGKILL and ended.code == -number):
    return None
  if number != signal.SIGKILL and ended.code == _STATUS[number]:  # its line is judged as that of a refusal
    outcome = judge.of_process(2, ended.err, (";",))
  else:
    outcome = judge.of_process(ended.code, ended.err)
    outcome = outcome if outcome.failed else Outcome(judge.UNCLEAR, f"status {ended.code}: {outcome.detail}")
  return outcome if outcome.failed else None


def left(name: str, before: str, lines: list[str]) -> Outcome | None:
  """None, if a fault left the old artefact or the new one, and all epochs that a checkpoint held; else what is lost."""
  try:
    now = commands.whole(name)
  except InputError as error:
    return Outcome(judge.LOST, f"neither the old nor the new one: {error}")
  if before and not now:
    return Outcome(judge.LOST, "nothing is left")
  kept = saved(name)
  if kept[: len(lines)] != lines:
    return Outcome(judge.LOST, f"{len(lines)} epochs were saved, now {len(kept)} are")
  return None


def end(place: Place, name: str, expected: Clean) -> Outcome:
  """Runs the command again, to its end: its result must be that of a command without a fault."""
  lines = saved(name)
  ended, said = run(place, name, limit(expected))
  if ended.late:
    return Outcome(judge.HANG, f"more than {limit(expected):.0f} s after the fault")
  if ended.code:
    outcome = judge.of_process(ended.code, ended.err)
    return outcome if outcome.kind == judge.TRACEBACK else Outcome(judge.LOST, f"cannot go on: {outcome.detail}")
  if wrong := judge.difference(said["result"], expected.result):
    return Outcome(judge.SILENT, wrong)
  now = artefacts.lines_of(commands.COMMANDS[name].target)
  if missing := [line for line in lines if line not in now]:
    return Outcome(judge.LOST, f"{len(missing)} saved epochs were run again")
  return Outcome(judge.RIGHT)


def saved(name: str) -> list[str]:
  """The lines of metrics.jsonl of the epochs that the newest whole checkpoint of the command's run holds."""
  root = pathlib.Path(commands.COMMANDS[name].target)
  whole = [int(path.name) for path in (root / "checkpoints").glob("[0-9]*")
           if (path / "manifest.json").exists() and (path / "manifest.sha256").exists()]
  return artefacts.lines_of(str(root))[: max(whole, default=0)]
