"""The report of some finished runs: one HTML file."""

from __future__ import annotations

import os
from collections.abc import Sequence

from kd_jax import registry
from kd_jax.serving.card import read_titles
from kd_jax.storage import sealed
from kd_jax.tables import html_page, of_runs

_ABOUT = ("Runs on the same data, evaluated on its test split. Intervals are over users: they do not include the "
          "variation between training seeds.")


def write(out: str | os.PathLike, runs: Sequence[str], teacher: str | None = None, student: str | None = None,
          metrics: str = "", titles: str | None = None, data_dir: str | None = None, cache_dir: str | None = None,
          allow_code: str | None = None) -> int:
  """Writes the page to `out` and returns its size in bytes. Raises InputError as `of_runs.result` does."""
  registry.allow_code(allow_code)
  named = read_titles(titles) if titles else {}
  asked = of_runs.Asked([run.strip().rstrip("/") for run in runs if run.strip()], teacher, student, metrics, data_dir,
                        cache_dir, allow_code)
  result = of_runs.result(asked)
  names = [row["row"] for row in result["rows"]]
  directories = dict(zip(names, dict.fromkeys(run for run in (teacher, student, *asked.runs) if run), strict=True))
  page = html_page.write(result["title"], _ABOUT, result, of_runs.curves(directories, result["monitor"]),
                         of_runs.origins(asked, names), of_runs.lists(directories, data_dir, cache_dir, named))
  content = page.encode()
  sealed.write_atomic(out, content)
  return len(content)
