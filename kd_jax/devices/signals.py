"""Ending a run in good order."""

from __future__ import annotations

import contextlib
import signal


class Agreed(KeyboardInterrupt):
  """The run was asked to stop, and has saved; of several processes all know it."""


@contextlib.contextmanager
def on_signal():
  """Yields a list that SIGTERM or SIGINT fills: the run then saves and ends. A second one ends it at once."""
  asked = []

  def ask(number, frame):
    if asked:
      raise KeyboardInterrupt
    asked.append(number)

  before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield asked
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
