"""The judge of injected faults tells right from wrong, and one line from a traceback."""

import sys
import time

import numpy as np
import pytest

from kd_jax.base import InputError
from kd_jax.fault import judge


def failing(error):
  def call():
    raise error

  return call


def noisy():
  print("Traceback (most recent call last):\n  File \"x.py\", line 1", file=sys.stderr)
  return {"a": 1}


CASES = {
    "the same result": (lambda: {"a": [1, 2.5, np.float64(np.nan)]}, {"a": [1, 2.5, float("nan")]}, "right"),
    "another number": (lambda: {"a": [1, 2.5]}, {"a": [1, 2.6]}, "silent"),
    "a key too many": (lambda: {"a": 1, "b": 2}, {"a": 1}, "silent"),
    "a shorter list": (lambda: [1, 2], [1, 2, 3], "silent"),
    "another type": (lambda: [1, "2"], [1, 2], "silent"),
    "a line with the file": (failing(InputError("run/result.json: damaged")), 1, "refused"),
    "a line with an argument": (failing(InputError("`epochs=0`: must be positive")), 1, "refused"),
    "a file that is missing": (failing(FileNotFoundError(2, "No such file", "run/result.json")), 1, "refused"),
    "another file": (failing(InputError("labels/x.npz: damaged")), 1, "unclear"),
    "no file": (failing(InputError("something is wrong")), 1, "unclear"),
    "an exception": (failing(KeyError("epochs")), 1, "traceback"),
    "a bare system exit": (failing(SystemExit(3)), 1, "unclear"),
    "a printed traceback": (noisy, {"a": 1}, "traceback"),
    "no memory": (failing(RecursionError("too deep")), 1, "traceback"),
    "for ever": (lambda: time.sleep(30), 1, "hang")}


@pytest.mark.parametrize("name", CASES)
def test_a_call(name):
  function, expected, kind = CASES[name]
  assert judge.of_call(function, expected, ("result.json", "run"), seconds=0.3).kind == kind


@pytest.mark.parametrize("code, said, kind", [
    (2, "train.py: run/flags.txt: damaged\n", "refused"), (143, "train.py: --workdir=run: stopped\n", "unclear"),
    (2, "latency.py: --k=0: must be positive\n", "refused"), (2, "latency.py: 5 - a: too few\n", "unclear"),
    (1, "train.py: KeyError: 1; unforeseen, see /tmp/error.txt\n", "traceback"),
    (1, "Traceback (most recent call last):\nKeyError: 1\n", "traceback"), (-11, "", "traceback"), (2, "", "unclear"),
    (2, "train.py: run: a\nb\n", "unclear"), (2, "train.py: run/x: \x1b[31m\n", "unclear"),
    (2, "x.py:1: UserWarning: odd\ntrain.py: run: damaged\n", "traceback"),
    (2, f"train.py: /{'x' * 5000}\n", "unclear")])
def test_a_process(code, said, kind):
  assert judge.of_process(code, said).kind == kind


def test_the_first_difference_is_named():
  assert judge.difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == "result.a[1].b is 2, expected 3"
  assert judge.difference({"a": None}, {}) == "result.a is None, expected nothing"


def test_notes_before_the_line_are_no_second_line():
  note, line = "run: was stopped before its first checkpoint; starts again\n", "train.py: run/flags.txt: damaged\n"
  assert judge.of_process(2, note + line).kind == judge.REFUSED
  assert judge.of_process(2, line + line).kind == judge.of_process(2, line + note).kind == judge.UNCLEAR
