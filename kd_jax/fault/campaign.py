"""Runs cases of every kind in processes, for a time or a number of cases, and counts how they ended.

A case is made from (seed, kind, number) alone, so a failure is repeated by these three. Processes are forked from this
one, which has imported everything and computes nothing with JAX: see children.py.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
import select
import shutil
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax

from kd_jax.base import InputError
from kd_jax.fault import artefacts, batches, children, judge, kills, reads, switches
from kd_jax.fault.batches import KINDS, Batch, Ended
from kd_jax.fault.copies import Place

_SAY = 60  # seconds between two lines of progress
_BUILD = 3600  # seconds in which the artefacts are made
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Plan:
  """What to run. `cases`: so many of each kind, however long it takes; if it is empty, all kinds for `seconds`."""

  root: pathlib.Path  # the artefacts are made here, unless they are there
  seed: int = 0
  seconds: float = 0.0
  cases: dict[str, int] = dataclasses.field(default_factory=dict)
  kinds: tuple[str, ...] = tuple(KINDS)
  first: int = 0  # number of the first case of every kind
  jobs: int = 1
  without: str = ""  # a check that is switched off, see switches.py
  kept: str = ""  # the folder that the next call may use again


@dataclasses.dataclass
class Count:
  """What is known of a kind."""

  begun: int = 0
  seconds: float = 0.0  # of its processes
  steps: int = 0  # faults; a case of "kill" has one to three
  outcomes: Counter = dataclasses.field(default_factory=Counter)
  failures: list[Ended] = dataclasses.field(default_factory=list)

  @property
  def cases(self) -> int:
    return self.outcomes.total()


def plan(root: pathlib.Path, cases: str, kinds: str, **more: Any) -> Plan:
  """A plan from texts, "KIND=NUMBER,KIND=NUMBER" and "KIND,KIND". Raises InputError."""
  pairs = [part.partition("=") for part in cases.split(",") if part]
  named = [kind for kind in kinds.split(",") if kind]
  for kind in (*(kind for kind, _, _ in pairs), *named):
    if kind not in KINDS:
      raise InputError(f"`{'kinds' if kind in named else 'cases'}`: no kind {kind!r}; there are: {', '.join(KINDS)}")
  for kind, _, number in pairs:
    if not number.isdecimal():
      raise InputError(f"`cases={cases}`: {kind}={number!r} is not a number of cases")
  if (without := more.get("without")) and without not in switches.CHECKS:
    raise InputError(f"`without={without}`: choose from {', '.join(switches.CHECKS)}")
  if not pairs and not more.get("seconds"):
    raise InputError("`hours`, `minutes` or `cases` is needed")
  return Plan(root, cases={kind: int(number) for kind, _, number in pairs}, kinds=tuple(named or KINDS), **more)


def set_up(root: pathlib.Path) -> None:
  """What must be so before JAX is used or a process forked: quick compilation, and a cache of programs for all."""
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
  os.environ["JAX_PLATFORMS"] = "cpu"
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_compilation_cache_dir", str(root / "compiled"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def make(root: pathlib.Path, say: Say) -> dict[str, Any]:
  """Makes the artefacts in `root`, and what their readers and commands return; returns the latter.

  What is there already is only read. Raises InputError if something fails without a fault.
  """
  known = root / "expected.json"
  if not known.exists():
    shutil.rmtree(root, ignore_errors=True)
    for name in ("now", "scratch", "compiled"):
      (root / name).mkdir(parents=True)
    begun = time.monotonic()
    _in_children(root, {"build": lambda: _build(root)})
    say(f"artefacts made in {time.monotonic() - begun:.0f} s")
    found = _in_children(root, {
        "readers": lambda: reads.measure(Place(root, root / "scratch" / "readers", {})),
        "commands": lambda: kills.measure(Place(root, root / "scratch" / "commands", {}))})
    known.write_text(json.dumps(found))
    say(f"every reader and command works without a fault, {time.monotonic() - begun:.0f} s")
  return json.loads(known.read_text())


def _build(root):
  os.chdir(root / "now")
  artefacts.build()
  compiled = root / "now" / artefacts.CACHE / "compiled"
  shutil.rmtree(compiled, ignore_errors=True)
  compiled.symlink_to(root / "compiled")


def _in_children(root, functions) -> dict[str, Any]:
  """What the functions return, each in a child, all at the same time."""
  def answering(name, function):
    def call():
      (root / "scratch" / f"{name}.json").write_text(json.dumps(function(), default=str))

    return call

  running = {name: children.Child(answering(name, function), root / "scratch", name)
             for name, function in functions.items()}
  for name, child in running.items():
    ended = child.wait(_BUILD)
    if ended.code:
      raise InputError(f"{root}: {name}: fails without a fault: {ended.err[-3000:]}")
  return {name: json.loads((root / "scratch" / f"{name}.json").read_text()) for name in running}


def run(plan: Plan, say: Say) -> dict[str, Count]:
  """Runs the plan; tells of every failure, and of progress every minute."""
  expected = make(plan.root, say)
  counts = {kind: Count() for kind in plan.cases or plan.kinds}
  begun = told = time.monotonic()
  running: list[Batch] = []
  again: list[Batch] = []  # whose process ended too early
  names = (plan.root / "scratch" / f"{os.getpid()}-{number}" for number in itertools.count())
  try:
    while True:
      over = not plan.cases and time.monotonic() - begun > plan.seconds
      while not over and len(running) < plan.jobs and (todo := _next(plan, counts, again)):
        running.append(batches.start(Place(plan.root, next(names), expected), plan.seed, *todo, plan.without))
      if over or not running:
        return counts
      before = time.monotonic()
      _count(plan, counts, _heard(running), say)
      for batch in running:
        counts[batch.kind].seconds += time.monotonic() - before
      again += [batch for batch in running if batch.over and batch.left]
      running = [batch for batch in running if not batch.over]
      if time.monotonic() - told > _SAY:
        told = time.monotonic()
        say(progress(counts, told - begun))
  finally:
    for batch in running:
      batch.kill()


def _next(plan, counts, again) -> tuple[str, range] | None:
  """(kind, numbers of the cases) of the next process: of the kind that is furthest behind."""
  if again:
    batch = again.pop()
    return batch.kind, batch.left
  if plan.cases:
    waiting = [kind for kind, count in counts.items() if count.begun < plan.cases[kind]]
    kind = max(waiting, key=lambda kind: KINDS[kind].share / KINDS[kind].batch, default=None)
  else:
    kind = min(counts, key=lambda kind: counts[kind].seconds / KINDS[kind].share)
  if kind is None:
    return None
  left = plan.cases[kind] - counts[kind].begun if plan.cases else KINDS[kind].batch
  first = plan.first + counts[kind].begun
  counts[kind].begun += min(left, KINDS[kind].batch)
  return kind, range(first, plan.first + counts[kind].begun)


def _heard(running) -> list[Ended]:
  ready, _, _ = select.select(running, [], [], 1.0)
  heard = [ended for batch in ready for ended in batch.hear()]
  return heard + [ended for batch in running for ended in batch.stalled()]


def _count(plan, counts, heard, say):
  for ended in heard:
    count = counts[ended.kind]
    count.outcomes[ended.outcome.kind] += 1
    count.steps += ended.what.count("; ") + 1 if ended.kind == "kill" else 1
    if ended.outcome.failed:
      count.failures.append(ended)
      most = 5000 if sum(plan.cases.values()) == 1 else 400
      kind, detail = ended.outcome
      shown = detail[-most:] if kind == judge.TRACEBACK else detail[:most]
      say(f"{ended.kind} {ended.number}: {kind}: {shown}\n  {ended.what[:most]}\n  {repeated(plan, ended)}")


def repeated(plan: Plan, ended: Ended) -> str:
  """The command that repeats a case."""
  return (f"python scripts/torture.py --seed={plan.seed} --cases={ended.kind}=1 --first={ended.number}"
          + (f" --without={plan.without}" if plan.without else "") + (f" --workdir={plan.kept}" if plan.kept else ""))


def progress(counts: dict[str, Count], seconds: float) -> str:
  """One line."""
  done = ", ".join(f"{kind} {count.cases:,}" for kind, count in counts.items())
  failed = sum(len(count.failures) for count in counts.values())
  return f"{seconds / 60:.0f} min: {done}; {failed} failures"


def table(counts: dict[str, Count]) -> dict[str, dict[str, int]]:
  """{kind: {cases, faults, right, refused, silent, ...}}."""
  names = (judge.RIGHT, judge.REFUSED, *judge.FAILURES)
  return {kind: {"cases": count.cases, "faults": count.steps, **{name: count.outcomes[name] for name in names}}
          for kind, count in counts.items()}


def as_text(found: dict[str, dict[str, int]]) -> str:
  """The table, with a line of sums."""
  columns = list(next(iter(found.values())))
  sums = {column: sum(row[column] for row in found.values()) for column in columns}
  lines = ["kind      " + "".join(f"{column:>11s}" for column in columns)]
  lines += [f"{kind:10s}" + "".join(f"{row[column]:11,}" for column in columns)
            for kind, row in (*found.items(), ("all", sums))]
  return "\n".join(lines)
