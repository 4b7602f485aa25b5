"""Calls scripts with nonsense flags: they are accepted within their bounds, or refused in one line."""

from __future__ import annotations

import functools
import math
import os
import pathlib
import resource
import runpy
import socket
from collections.abc import Callable
from typing import Any

import numpy as np

from kd_jax import cli
from kd_jax.devices.options import ProcessOptions
from kd_jax.evaluation.options import EvaluationOptions
from kd_jax.fault import artefacts, judge, nonsense
from kd_jax.fault.copies import Place
from kd_jax.fault.judge import Outcome
from kd_jax.runs import setup, sweep
from kd_jax.runs.options import SUMS, FitOptions
from kd_jax.tuning import study

Random = np.random.Generator
_SECONDS = 30  # the longest that a case may take
_MEMORY = 12 << 30  # bytes of address space
# Flags of a script that works, to which nonsense is added. The scripts without one are only parsed.
_USUAL = {
    "train": [x for x in artefacts.flags("teacher", workdir="new") if not x.startswith("--keep_every")],
    "evaluate": ["--run=student", "--cache_dir=cache"],
    "soft_labels": ["--teacher=teacher", "--top_k=10", "--out=new", "--cache_dir=cache"],
    "prepare": [f"--data={artefacts.DATA}", "--cache_dir=cache"],
    "reproduce": [f"--table={artefacts.TABLE}", "--workdir=table", "--cache_dir=cache"],
    "compress": ["--run=teacher", "--compress=int8()", "--workdir=new", "--cache_dir=cache"],
    "report": ["--runs=student", "--teacher=teacher", "--out=new", "--cache_dir=cache"],
    "export": ["--run=student", "--out=new", "--cache_dir=cache"],
    "audit": [f"--data={artefacts.DATA}", "--cache_dir=cache", "--factors=0"]}
_PARSED = ("bench", "scaling", "embed_text", "compare_checkouts", "serve", "latency", "recommend", "search")
_PATHS = {"workdir", "teacher", "init_from", "out", "run", "runs", "student", "compare", "features", "user_features",
          "flagfile", "data_dir", "cache_dir", "table", "before", "after", "texts"}
_HEAVY = {"together", "jobs", "profile", "coordinator", "num_processes", "process_id", "folds", "split_seeds"}
_SHARE = {"train": 0.6}
_RUN = 0.02  # of the cases also run the script's main function
_PREPARED = 0.1  # of the accepted options of train.py are also made into a run


class NonsenseFlags:
  """Nonsense on the command line."""

  def __init__(self, place: Place):
    _no_network(place.scratch)
    self.copy = place.copy()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    self.scripts = {name: _script(name) for name in (*_USUAL, *_PARSED)}

  def case(self, rng: Random) -> tuple[str, Outcome]:
    """(what was done, how it ended)."""
    names = list(self.scripts)
    name = "train" if rng.random() < _SHARE["train"] else names[rng.integers(len(names))]
    definition, main = self.scripts[name]["FLAGS"], self.scripts[name]["main"]
    given = [x for x in _USUAL.get(name, []) if rng.random() < 0.9 or x.startswith("--data=")]
    given += [_flag(rng, definition) for _ in range(rng.integers(1, 4))]
    given = [given[n] for n in rng.permutation(len(given))]
    complete = name in _USUAL and rng.random() < _RUN
    if complete:
      given += ["--epochs=1"] if name == "train" else []
      work: Callable = functools.partial(_whole, definition, main, given)
    else:
      work = functools.partial(_parsed, definition, given, rng.random() < _PREPARED)
    try:
      return f"{name} {given}", judge.of_call(work, _wrong, seconds=_SECONDS)
    finally:
      if complete:
        self.copy.heal()


def _no_network(scratch):
  """Real data sets cannot be downloaded: a case takes milliseconds."""
  def refused(*arguments, **named):
    raise OSError("no network here")

  socket.getaddrinfo = refused
  os.environ |= {"HOME": str(scratch), "PIP_NO_INDEX": "1"}
  os.environ.pop("KD_JAX_DATA", None)


def _script(name) -> dict[str, Any]:
  return runpy.run_path(str(cli.folder("scripts") / f"{name}.py"), run_name="case")


def _flag(rng, definition) -> str:
  """A flag with a value that may be nonsense."""
  names = list(definition)
  name = names[rng.integers(len(names))]
  if name in _HEAVY:
    name = "seed"
  spelled = name if rng.random() < 0.97 else [name[:-1], f"no{name}", name.upper(), f" {name}", ""][rng.integers(5)]
  value = _value(rng, name, definition.flags.get(name))
  kind = rng.random()
  return f"--{spelled}={value}" if kind < 0.95 else f"-{spelled}={value}" if kind < 0.97 else f"--{spelled}"


def _value(rng, name, flag) -> str:
  kind, _, _, bounds = flag or ("string", None, "", {})
  if rng.random() < 0.1:
    return nonsense.word(rng)
  if name in _PATHS:
    return nonsense.path(rng)
  if name == "space":
    return nonsense.space(rng)
  if package := bounds.get("factory"):
    return (nonsense.weighted_sum if name in SUMS else nonsense.call)(rng, package)
  if bounds.get("choices") and rng.random() < 0.7:
    return str(bounds["choices"][rng.integers(len(bounds["choices"]))])
  return nonsense.number(rng) if kind in ("integer", "float") else nonsense.word(rng)


def _parsed(definition, given, also_prepare) -> list[str]:
  """Everything that is checked before data is read; with `also_prepare` also what is checked with the data at hand.

  Returns what is wrong with the accepted values.
  """
  values = definition.parse(given)
  wrong = [f"--{name}={getattr(values, name)} is accepted" for name, flag in definition.flags.items()
           if _outside(getattr(values, name), flag[3])]
  if hasattr(values, "epochs"):
    options = cli.options_of(FitOptions, values)
    cli.options_of(ProcessOptions, values)
    setup.check(options)
    if hasattr(values, "space"):
      study.check(options, cli.options_of(cli.SearchOptions, values))
    elif values.seeds < 1000 and len(values.sweep) < 1000 and (values.seeds > 1 or values.sweep) and values.workdir:
      sweep.points(options, values.sweep, values.seeds)
    if also_prepare and pathlib.Path(str(options.workdir)).name != "teacher":
      setup.prepare(options)
  elif hasattr(values, "history"):
    cli.options_of(EvaluationOptions, values)
  return wrong


def _outside(value, bounds) -> bool:
  """Whether a number is not finite or outside the declared bounds."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return False
  least, above, below = (bounds.get(name) for name in ("least", "above", "below"))
  return not math.isfinite(value) or (least is not None and value < least) or (
      above is not None and value <= above) or (below is not None and value >= below)


def _whole(definition, main, given) -> list[str]:
  values = definition.parse(given)
  many = (getattr(values, "seeds", None) or 1) > 3 or getattr(values, "sweep", "")
  if not many:  # that would take minutes
    main(values)
  return []


def _wrong(found: list[str]) -> str:
  return "; ".join(found)
