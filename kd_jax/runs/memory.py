"""Refuses runs that need more memory than there is, before it is allocated: the system would kill the process."""

from __future__ import annotations

import math
import os
import pathlib
from typing import Any

import jax

from kd_jax.base import STUDENT, InputError
from kd_jax.runs.options import FitOptions, text_of
from kd_jax.training import graph

_LIMIT = pathlib.Path("/sys/fs/cgroup/memory.max")  # of a container, in bytes or "max"


def check_batch(options: FitOptions, candidates: int, width: int = 3) -> None:
  """Raises InputError if a batch does not fit: `width` float32 numbers for each of the `candidates` of an example.

  The default is for items, weights and scores.
  """
  _check(f"`batch_size={options.batch_size}`, `negatives={options.negatives}`",
         4 * options.batch_size * candidates * width)


def check_state(options: FitOptions, shapes: graph.TrainState, candidates: int | None) -> None:
  """Raises InputError if the parameters, with what the optimiser keeps and the best parameters, do not fit, or the
  representations of the `candidates` of a batch; None: all items are candidates, and share theirs."""
  networks = jax.tree.leaves(shapes.params["networks"])
  _check(f"`model={text_of(options.model)}`", sum(map(_bytes, [*jax.tree.leaves(shapes), *networks])))
  widths = [x.shape[-1] for x in jax.tree.leaves(shapes.params["networks"][STUDENT]) if len(x.shape) > 1]
  if widths and candidates is not None:
    check_batch(options, candidates, min(widths))


def _bytes(leaf: Any) -> int:
  return math.prod(leaf.shape) * leaf.dtype.itemsize if hasattr(leaf.dtype, "itemsize") else 0  # not of random keys


def _check(what, needed):
  there = _available()
  if needed > there:
    raise InputError(f"{what}: at least {needed / 1e9:,.1f} GB of memory are needed, there are {there / 1e9:,.1f}")


def _available() -> int:
  """The memory of all devices, or of the host, if these are its cores, in bytes."""
  of_devices = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
  if jax.default_backend() != "cpu" and None not in of_devices:
    return sum(of_devices) * jax.process_count()
  there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  limit = _LIMIT.read_text().strip() if _LIMIT.is_file() else ""
  return min(there, int(limit)) if limit.isdecimal() else there
