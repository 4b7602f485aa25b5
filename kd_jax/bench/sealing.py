"""What hashes and their checks cost: their share of the time of a table."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from unittest import mock

from kd_jax.data import store
from kd_jax.evaluation import sealed_report
from kd_jax.runs import agreement
from kd_jax.storage import run_directory, sealed
from kd_jax.tables import make
from kd_jax.teachers import loading

# What there would be no need for without seals: to hash, to write hashes, to compare them.
_FUNCTIONS = (
    (sealed, ("hash_file", "hash_array", "read", "manifest", "_write_manifest")),
    (run_directory, ("seal", "read_finished", "check_flags", "hash_metrics", "truncate_metrics", "identity")),
    (store, ("_hash", "hashes_of")),
    (loading, ("hash_parameters",)),
    (agreement, ("of_options", "of_content")),
    (sealed_report, ("read", "write")))


def measure(table: str, workdir: str, seeds: int | None, data_dir: str | None,
            cache_dir: str | None) -> dict[str, float]:
  """Makes a table in this process: {"seconds": in all, "sealing": of these in hashes and their checks}.

  Raises InputError like `make.reproduce`.
  """
  spent: list[float] = []
  inside: list[None] = []
  begun = time.perf_counter()
  with contextlib.ExitStack() as stack:
    for module, names in _FUNCTIONS:
      for name in names:
        timed = _timed(getattr(module, name), spent, inside)
        stack.enter_context(mock.patch.object(module, name, timed))
    make.reproduce(table, workdir, seeds, data_dir, cache_dir)
  return {"seconds": time.perf_counter() - begun, "sealing": sum(spent)}


def _timed(function: Callable, spent: list[float], inside: list[None]) -> Callable:
  """`function`, whose time is added to `spent`, unless it is called by another one of these functions."""
  @functools.wraps(function)
  def called(*arguments, **named):
    begun = time.perf_counter()
    inside.append(None)
    try:
      return function(*arguments, **named)
    finally:
      inside.pop()
      if not inside:
        spent.append(time.perf_counter() - begun)

  return called
