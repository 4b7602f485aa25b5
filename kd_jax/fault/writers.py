"""Lets two processes write the same directory: one wins, or both one after the other; the loser has one line."""

from __future__ import annotations

import time

import numpy as np

from kd_jax.fault import children, commands, judge, kills
from kd_jax.fault.copies import Place
from kd_jax.fault.judge import Outcome

_PAIRS = (("train", "train"), ("train", "rival"), ("rival", "train"), ("extend", "extend"), ("distil", "distil"),
          ("soft_labels", "soft_labels"), ("soft_labels", "rival_labels"), ("export", "export"),
          ("evaluate", "evaluate"), ("prepare", "prepare"), ("reproduce", "reproduce"))


class TwoWriters:
  """Two commands with the same directory, started at nearly the same time."""

  def __init__(self, place: Place):
    self.place, self.copy, self.clean = place, place.copy(), kills.clean(place)

  def case(self, rng: np.random.Generator) -> tuple[str, Outcome]:
    """(what was done, how it ended)."""
    pair = _PAIRS[rng.integers(len(_PAIRS))]
    after = float(rng.uniform(0, self.clean[pair[0]].seconds * rng.choice([0.05, 0.5])))
    commands.COMMANDS[pair[0]].begin()
    try:
      return f"{pair[0]}, and {pair[1]} after {after:.3f} s", self._raced(pair, after)
    finally:
      self.copy.heal()

  def _raced(self, pair, after) -> Outcome:
    running = []
    for number, name in enumerate(pair):
      answer = self.place.scratch / f"answer{number}.json"
      running.append(children.Child(lambda name=name, answer=answer: commands.perform(name, answer),
                                    self.place.scratch, f"writer{number}"))
      time.sleep(after if number == 0 else 0)
    ended = [child.wait(kills.limit(self.clean[pair[0]])) for child in running]
    if any(x.late for x in ended):
      return Outcome(judge.HANG, "two writers")
    for name, one in zip(pair, ended, strict=True):
      if one.code and (outcome := judge.of_process(one.code, one.err, (commands.COMMANDS[name].target,))).failed:
        return outcome
    winners = [name for name, one in zip(pair, ended, strict=True) if one.code == 0]
    if not winners:
      return Outcome(judge.LOST, f"no one wins: {ended[0].err} {ended[1].err}")
    return kills.end(self.place, winners[-1], self.clean[winners[-1]])
