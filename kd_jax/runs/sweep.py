"""Several runs from one command: several seeds, and options with several values."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
import re
from collections.abc import Iterator

import numpy as np

from kd_jax.base import InputError
from kd_jax.runs.options import FIELDS, FitOptions, text_of, with_text

_NEVER = ("workdir", "data_dir", "cache_dir", "allow_code", "seed")
_MOST = 1000  # runs together


def points(options: FitOptions, sweep: str, seeds: int) -> list[tuple[str, list[FitOptions]]]:
  """[(name of the point, options of its seeds)] of a sweep, "FLAG=A|B; FLAG=C|D"; each run has its own directory.

  Raises InputError for an unknown flag or an invalid value, before anything is written.
  """
  if options.seed + seeds > 2**32:
    raise InputError(f"`seeds={seeds}`: seeds from `seed={options.seed}` on are more than 4,294,967,295, the largest")
  found, swept = [], list(_swept(sweep))
  if math.prod(map(len, swept)) * seeds > _MOST:
    raise InputError(f"`sweep={sweep}`: more than {_MOST:,} runs")
  names = [choices[0][0] for choices in swept]
  if len(set(names)) < len(names):
    raise InputError(f"`sweep={sweep}`: a flag is named twice; separate its values by |")
  for settings in itertools.product(*swept):
    name, one = ",".join(f"{flag}={value}" for flag, value in settings), options
    for flag, value in settings:
      try:
        one = with_text(one, flag, value)
      except InputError as error:
        raise InputError(f"`sweep`: {error}") from None

    def of_seed(seed, one=one, name=name):
      return dataclasses.replace(one, seed=seed, workdir=str(
            pathlib.Path(options.workdir) / re.sub(r"[^\w.=+-]+", "_", f"{name} seed{seed}".strip())))

    found.append((name, [of_seed(seed) for seed in range(options.seed, options.seed + seeds)]))
  every = [one for _, several in found for one in several]
  different = {(one.seed, *(text_of(getattr(one, name)) for name in names)) for one in every}
  if min(len(different), len({one.workdir for one in every})) < len(every):
    raise InputError(f"`sweep={sweep}`: two of its points are the same")
  return found


def _swept(sweep) -> Iterator[list[tuple[str, str]]]:
  for part in filter(None, (x.strip() for x in sweep.split(";"))):
    flag, equals, choices = (x.strip() for x in part.partition("="))
    if not equals or flag not in FIELDS or flag in _NEVER:
      raise InputError(f"`sweep={sweep}`: {part!r} is not FLAG=VALUE|VALUE of a flag of training")
    yield [(flag, value.strip()) for value in choices.split("|")]


def summary(names: list[str], results: list[list[dict | InputError]]) -> list[str]:
  """One line per point, sorted by the mean over seeds of the monitored validation metric, best first.

  Points with a diverged seed are listed at the end, without a mean: it would be over fewer seeds than the others.
  """
  from kd_jax.evaluation import metric_names

  ranked, diverged = [], []
  for name, of_seeds in zip(names, results, strict=True):
    words, errors = f"{name}: " if name else "", sum(isinstance(r, InputError) for r in of_seeds)
    if errors:
      diverged.append(f"{words}{errors} of {len(of_seeds)} runs diverged")
      continue
    chosen = metric_names.split(of_seeds[0]["monitor"])[0]
    values = [r["best_epoch"] if chosen == metric_names.LAST else r["validation"][chosen] for r in of_seeds]
    std = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    mean = float(np.mean(values))
    good = mean if chosen == metric_names.LAST else metric_names.goodness(metric_names.of_column(chosen), mean)
    ranked.append((-good, f"{words}validation {chosen} {np.mean(values):.4f}{std}"))
  return [line for _, line in sorted(ranked, key=lambda x: x[0])] + diverged


def check(results: list[dict | InputError]) -> None:
  """Raises InputError, with one line for all diverged runs, if there are any."""
  errors = [str(result) for result in results if isinstance(result, InputError)]
  if errors:
    raise InputError(f"{len(errors)} of {len(results)} runs diverged: {'; '.join(errors)}")
