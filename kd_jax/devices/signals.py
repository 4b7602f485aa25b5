"""SIGTERM and SIGINT: a run in training first saves, everything else ends at once. The exit status names the signal."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading


class Stopped(KeyboardInterrupt):
  """A signal, the argument, asked this process to end. Without an argument, another process was asked."""


class Agreed(Stopped):
  """The run was asked to stop and has saved. With several processes, all of them raise it."""


def said(error: KeyboardInterrupt) -> tuple[str, int]:
  """(what is said about an interrupt, exit status)."""
  number = next(iter(error.args), signal.SIGTERM if isinstance(error, Stopped) else signal.SIGINT)
  return "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}", 128 + number


@contextlib.contextmanager
def raised():
  """SIGTERM and SIGINT raise `Stopped` wherever the process is, so that files are left whole and locks are released."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before, sys.unraisablehook = sys.unraisablehook, _sent_again
  try:
    with _handled(_stop):
      yield
  finally:
    sys.unraisablehook = before


def _sent_again(lost):
  """Sends a signal again whose exception came in a destructor or in a callback of the collector, where it is lost."""
  if not isinstance(lost.exc_value, Stopped):
    sys.__unraisablehook__(lost)
    return
  threading.Timer(0.05, os.kill, (os.getpid(), next(iter(lost.exc_value.args), signal.SIGTERM))).start()


@contextlib.contextmanager
def on_signal():
  """Yields a list to which SIGTERM or SIGINT appends: the run then saves and ends. A second signal ends it at once."""
  asked = []
  if threading.current_thread() is not threading.main_thread():  # signals go to the main thread, as of a notebook
    yield asked
    return

  def ask(number, frame):
    if asked:
      _stop(number, frame)
    asked.append(number)

  with _handled(ask):
    yield asked
  if asked:  # in the last epoch, after which nobody asked: it holds for what comes next
    signal.raise_signal(asked[0])


def _stop(number, frame):
  raise Stopped(number)


@contextlib.contextmanager
def _handled(handler):
  before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield
  finally:
    for number, handler_before in before.items():
      signal.signal(number, handler_before)
