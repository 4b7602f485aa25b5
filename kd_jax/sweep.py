"""Several runs of one command: seeds, and flags that take several values."""

from __future__ import annotations

import copy
import itertools
import pathlib
import re
from collections.abc import Iterator

import numpy as np
from absl import flags

from kd_jax import cli
from kd_jax.base import InputError

_NEVER = ("flagfile", "workdir", "data_dir", "cache_dir", "seed", "seeds", "sweep")


def points(values: flags.FlagValues) -> list[tuple[str, list[flags.FlagValues]]]:
  """[(what differs, the flags of its seeds)] of --sweep and --seeds; each run has its directory in --workdir.

  Raises InputError for a flag or value that is none, before anything is written.
  """
  found = []
  for settings in itertools.product(*_swept(values)):
    name, several = ",".join(f"{flag}={value}" for flag, value in settings), []
    for seed in range(values.seed, values.seed + values.seeds):
      one = copy.deepcopy(values)
      for flag, value in settings:
        _set(one, flag, value)
      one.seed = seed
      one.workdir = str(pathlib.Path(values.workdir) / re.sub(r"[^\w.=+-]+", "_", f"{name} seed{seed}".strip()))
      several.append(one)
    found.append((name, several))
  directories = [one.workdir for _, several in found for one in several]
  if len(set(directories)) < len(directories):
    raise InputError(f"--sweep={values.sweep}: two of its points are the same")
  return found


def _swept(values) -> Iterator[list[tuple[str, str]]]:
  for part in filter(None, (x.strip() for x in values.sweep.split(";"))):
    flag, equals, choices = (x.strip() for x in part.partition("="))
    if not equals or flag not in values or flag in _NEVER:
      raise InputError(f"--sweep={values.sweep}: {part!r} is not FLAG=VALUE|VALUE of a flag of training")
    yield [(flag, value.strip()) for value in choices.split("|")]


def _set(values, flag, value):
  try:
    values[flag].parse(value)
  except (flags.Error, ValueError) as error:
    raise InputError(f"--sweep: {' '.join(str(error).split())}") from None
  cli.check(values)


def summary(names: list[str], results: list[list[dict]]) -> list[str]:
  """A line for every point, the best first by the mean over seeds of what --monitor chose on validation."""
  from kd_jax import monitoring, tasks

  chosen = monitoring.names(results[0][0]["monitor"])[0]
  values = [[r["best_epoch"] if chosen == monitoring.LAST else r["validation"][chosen] for r in of] for of in results]
  sign = -1 if tasks.better(chosen, 1.0, 0.0) else 1
  lines = []
  for n in sorted(range(len(names)), key=lambda n: sign * np.mean(values[n])):
    std = f" ± {np.std(values[n], ddof=1):.4f}" if len(values[n]) > 1 else ""
    lines.append(f"{names[n] + ': ' if names[n] else ''}validation {chosen} {np.mean(values[n]):.4f}{std}")
  return lines
