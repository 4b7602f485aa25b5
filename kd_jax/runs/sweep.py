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

_NEVER = ("flagfile", "workdir", "data_dir", "cache_dir", "seed", "seeds", "sweep", "coordinator", "num_processes",
          "process_id")


def points(values: flags.FlagValues) -> list[tuple[str, list[flags.FlagValues]]]:
  """[(what differs, the flags of its seeds)] of --sweep and --seeds; each run has its directory in --workdir.

  Raises InputError for a flag or value that is none, before anything is written.
  """
  found, swept = [], list(_swept(values))
  names = [choices[0][0] for choices in swept]
  if len(set(names)) < len(names):
    raise InputError(f"--sweep={values.sweep}: a flag is named twice; its values are to be separated by |")
  for settings in itertools.product(*swept):
    name, several = ",".join(f"{flag}={value}" for flag, value in settings), []
    for seed in range(values.seed, values.seed + values.seeds):
      one = copy.deepcopy(values)
      for flag, value in settings:
        _set(one, flag, value)
      one.seed = seed
      one.workdir = str(pathlib.Path(values.workdir) / re.sub(r"[^\w.=+-]+", "_", f"{name} seed{seed}".strip()))
      several.append(one)
    found.append((name, several))
  every = [one for _, several in found for one in several]
  different = {(one.seed, *(one[name].value for name in names)) for one in every}
  if min(len(different), len({one.workdir for one in every})) < len(every):
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


def summary(names: list[str], results: list[list[dict | InputError]]) -> list[str]:
  """A line for every point, the best first by the mean over seeds of what --monitor chose on validation.

  Last, those of which a seed diverged: a mean over the others would compare unlike seeds.
  """
  from kd_jax.evaluation import model_selection
  from kd_jax.objectives import tasks

  ranked, diverged = [], []
  for name, of_seeds in zip(names, results, strict=True):
    words, errors = f"{name}: " if name else "", sum(isinstance(r, InputError) for r in of_seeds)
    if errors:
      diverged.append(f"{words}{errors} of {len(of_seeds)} runs diverged")
      continue
    chosen = model_selection.names(of_seeds[0]["monitor"])[0]
    values = [r["best_epoch"] if chosen == model_selection.LAST else r["validation"][chosen] for r in of_seeds]
    std = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    sign = -1 if tasks.better(chosen, 1.0, 0.0) else 1
    ranked.append((sign * np.mean(values), f"{words}validation {chosen} {np.mean(values):.4f}{std}"))
  return [line for _, line in sorted(ranked, key=lambda x: x[0])] + diverged


def check(results: list[dict | InputError]) -> None:
  """Raises InputError, one line that names them all, if there are runs that diverged."""
  errors = [str(result) for result in results if isinstance(result, InputError)]
  if errors:
    raise InputError(f"{len(errors)} of {len(results)} runs diverged: {'; '.join(errors)}")
