"""Stops a run on SIGTERM or SIGINT after it has saved."""

from __future__ import annotations

import contextlib
import signal
import threading


class Agreed(KeyboardInterrupt):
  """The run was asked to stop and has saved. With several processes, all of them raise it."""


@contextlib.contextmanager
def on_signal():
  """Yields a list to which SIGTERM or SIGINT appends: the run then saves and ends. A second signal ends it at once."""
  asked = []
  if threading.current_thread() is not threading.main_thread():  # signals go to the main thread, as of a notebook
    yield asked
    return

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
