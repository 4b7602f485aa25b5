"""SIGTERM and SIGINT: a run in training first saves, everything else ends at once. The exit status names the signal."""

from __future__ import annotations

import contextlib
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


_AGAIN = 5  # seconds until a signal is sent again


@contextlib.contextmanager
def raised():
  """SIGTERM and SIGINT raise `Stopped` wherever the process is, so that files are left whole and locks are released.

  An exception is lost in a destructor, and in libraries that drop what their imports raise: until this context ends,
  it is raised again every few seconds. What libraries raise instead of it is no failure of theirs.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  asked = []

  def stop(number, frame):
    if number != signal.SIGALRM:
      asked.append(number)
      signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, _AGAIN)
    raise Stopped(asked[-1])

  hook, sys.unraisablehook = sys.unraisablehook, _silently
  alarm = signal.getsignal(signal.SIGALRM)
  try:
    with _handled(stop):
      yield
  except Exception as error:
    if asked:
      raise Stopped(asked[-1]) from error
    raise
  finally:
    if asked:
      signal.setitimer(signal.ITIMER_REAL, 0)
      signal.signal(signal.SIGALRM, signal.SIG_DFL if alarm is None else alarm)
    sys.unraisablehook = hook


def _silently(lost):
  """Prints nothing of an interrupt that comes where its exception is lost."""
  if not isinstance(lost.exc_value, Stopped):
    sys.__unraisablehook__(lost)


@contextlib.contextmanager
def on_signal():
  """Yields a list to which SIGTERM or SIGINT appends: the run then saves and ends. A second signal ends it at once."""
  asked = []
  if threading.current_thread() is not threading.main_thread():  # signals go to the main thread, as of a notebook
    yield asked
    return

  def ask(number, frame):
    if asked:
      at_once = before[number] if callable(before[number]) else _stop
      at_once(number, frame)
    asked.append(number)

  with _handled(ask) as before:
    yield asked
  if asked:  # in the last epoch, after which nobody asked: it holds for what comes next
    signal.raise_signal(asked[0])


def _stop(number, frame):
  raise Stopped(number)


@contextlib.contextmanager
def _handled(handler):
  """Handles both signals; yields the handlers that they had before, {number: handler}."""
  before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield before
  finally:
    for number, handler_before in before.items():
      signal.signal(number, signal.SIG_DFL if handler_before is None else handler_before)  # None: not of Python
