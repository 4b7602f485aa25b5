"""Damages artefacts and reads them: the result is that of the undamaged one, or one line names the file."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

import numpy as np

from kd_jax.fault import artefacts, children, judge, readers
from kd_jax.fault.copies import Place
from kd_jax.fault.damage import damage
from kd_jax.fault.judge import Outcome

_SECONDS = 120  # the longest that a reader may take


def measure(place: Place) -> dict[str, dict[str, Any]]:
  """{artefact: {reader: what it returns without damage}}; every reader is called twice, and must say the same."""
  found: dict[str, dict[str, Any]] = {}
  for name, artefact, copy in _opened(place):
    for reader in artefact.readers:
      values = []
      for _ in range(2):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
          values.append(json.loads(json.dumps(reader.read(), default=str)))
        copy.heal()
      if wrong := judge.difference(*values):
        raise AssertionError(f"{name}, {reader.name}: two results without damage: {wrong}")
      found.setdefault(name, {})[reader.name] = values[0]
  return found


def _opened(place):
  copy = place.copy()
  artefacts.save_always()
  for name, artefact in readers.all_artefacts(readers.dataset_now()).items():
    yield name, artefact, copy


class DamagedReads:
  """One file of an artefact is damaged, and a reader of the artefact is called in this process."""

  def __init__(self, place: Place):
    self.place, self.copy, self.expected = place, place.copy(), place.expected["readers"]
    artefacts.save_always()
    self.artefacts = readers.all_artefacts(readers.dataset_now())
    self.names = sorted(self.artefacts)

  def case(self, rng: np.random.Generator) -> tuple[str, Outcome]:
    """(what was done, how it ended)."""
    name, artefact, reader = self._drawn(rng)
    path, said = damage(rng, self.copy.place / artefact.path, self.place.root / "before" / artefact.path)
    what = f"{name}, {reader.name}: {path.relative_to(self.copy.place)} {said}"
    changed = reader.notices and path.is_file()
    try:
      outcome = self._outcome(artefact, reader, self.expected[name][reader.name], _names(path, artefact, said))
      if changed and outcome.kind == judge.RIGHT:
        outcome = Outcome(judge.SILENT, "reported as finished with another file")
      return what, outcome
    finally:
      self.copy.heal()

  def _drawn(self, rng):
    name = self.names[rng.integers(len(self.names))]
    artefact = self.artefacts[name]
    often = np.array([1 / reader.cost for reader in artefact.readers])
    return name, artefact, artefact.readers[rng.choice(len(often), p=often / often.sum())]

  def _outcome(self, artefact, reader, expected, names) -> Outcome:
    return judge.of_call(reader.read, expected, names, _SECONDS)


class DamagedProcesses(DamagedReads):
  """The same, but the reader is a script in a process of its own."""

  def __init__(self, place: Place):
    self.place, self.copy, self.expected = place, place.copy(), place.expected["readers"]
    found = {name: artefact._replace(readers=tuple(reader for reader in artefact.readers if reader.script))
             for name, artefact in readers.all_artefacts(None).items()}
    self.artefacts = {name: artefact for name, artefact in found.items() if artefact.readers}
    self.names = sorted(self.artefacts)

  def _outcome(self, artefact, reader, expected, names) -> Outcome:
    answer = self.place.scratch / "answer.json"
    answer.unlink(missing_ok=True)

    def work():
      artefacts.save_always()
      children.run_script(reader.script[0], reader.script[1:])
      answer.write_text(json.dumps(reader.read(), default=str))

    ended = children.Child(work, self.place.scratch).wait(_SECONDS)
    if ended.late:
      return Outcome(judge.HANG, f"more than {_SECONDS} s")
    if ended.code:
      return judge.of_process(ended.code, ended.err, names)
    return judge.of_result(json.loads(answer.read_text()), expected)


def _names(path, artefact, said) -> tuple[str, ...]:
  """What a message may name: the file, its folder, the artefact, and what it was swapped with."""
  return path.name, path.parent.name, artefact.path, said.rpartition("/")[2]
