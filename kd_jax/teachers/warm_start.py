"""Warm starts and freezing: a model starts from the parameters of another run, possibly on another domain.

Parameters are matched by name. Tables of users or items are copied row by row, by the ids of both data sets, so users
and items may differ and have another order. All other parameters must have the same shape.
"""

from __future__ import annotations

import fnmatch
from typing import Any, NamedTuple

import jax
import numpy as np

from kd_jax import data
from kd_jax.base import STUDENT, Dataset, InputError, parameter_name
from kd_jax.storage import checkpoint, run_directory


class Found(NamedTuple):
  """The initial values that were found for one parameter."""

  values: np.ndarray
  rows: np.ndarray | None  # the rows of the parameter that `values` replace; None: all


class WarmStart(NamedTuple):
  """The initial values that were found for the parameters of a model."""

  found: dict[str, Found]  # by name
  report: dict[str, str]  # {name: a description of what was found}, for all parameters
  provenance: dict[str, Any]  # the run, and a sha256 that identifies it


def load(directory: str, shapes: Any, dataset: Dataset, data_dir: str | None, cache_dir: str | None) -> WarmStart:
  """Finds initial values for the parameters `shapes` (a pytree of shapes, for `dataset`) in the best epoch of a run.

  Raises InputError if there is no run, no parameter fits, or the run's data, whose ids are needed, is not available.
  """
  run = run_directory.read_finished(directory)
  info, there = run.info, named(checkpoint.restore_pinned(directory, run.pin)[STUDENT])
  if not all(np.isfinite(x).all() for x in there.values()):
    raise InputError(f"`init_from={directory}`: parameters of its best epoch are not finite")
  sides = _sides(info, dataset, data_dir, cache_dir)
  found, report = {}, {}
  for name, here in named(shapes).items():
    match, report[name] = _match(name, here.shape, there.get(name), sides)
    if match is not None:
      found[name] = match
  if not found:
    reasons = "; ".join(f"{name} {what}" for name, what in report.items())
    raise InputError(f"`init_from={directory}`: nothing of {info['model']} fits: {reasons}")
  return WarmStart(found, report, {"model": info["model"], "data": info["data"], "found": report,
                                   "checkpoint": run.pin.sha256})


def check_frozen(patterns: tuple[str, ...], shapes: Any) -> None:
  """Raises InputError if a pattern of `freeze` matches no parameter, or all patterns together match all parameters."""
  names = list(named(shapes))
  for pattern in patterns:
    if not fnmatch.filter(names, pattern):
      raise InputError(f"`freeze={pattern}`: matches none of {', '.join(names) or 'no parameters'}")
  if patterns and all(any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) for name in names):
    raise InputError(f"`freeze={','.join(patterns)}`: leaves nothing of {', '.join(names)} to train")


def start(params: Any, found: dict[str, Found]) -> Any:
  """`params` with the values in `found` inserted. Done on the host: no device must hold the whole of a split table."""

  def replace(path, leaf):
    values, rows = found.get(parameter_name(path), (None, None))
    if values is None:
      return leaf
    if rows is not None or values.shape != leaf.shape:
      whole = np.array(leaf)
      whole[slice(len(values)) if rows is None else rows] = values  # a split table has padding rows at the end
      values = whole
    return jax.device_put(np.asarray(values, leaf.dtype), leaf.sharding if leaf.committed else None)

  return jax.tree_util.tree_map_with_path(replace, params)


def named(params: Any) -> dict[str, Any]:
  """{name: leaf} of a model's parameters."""
  return {parameter_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


class _Side(NamedTuple):
  """The ids of users, or of items, in both data sets."""

  name: str
  here: np.ndarray  # ids
  there: np.ndarray


def _sides(info, dataset, data_dir, cache_dir) -> list[_Side]:
  """The ids of users and items. Loads the other data set only if its ids differ."""
  ids = {"user": dataset.user_ids, "item": dataset.item_ids}
  if all(info["hashes"][f"{side}_ids"] == dataset.hashes[f"{side}_ids"] for side in ids):
    return [_Side(side, x, x) for side, x in ids.items()]
  expected = {f"{side}_ids": info["hashes"][f"{side}_ids"] for side in ids}
  other = data.load(info["data"], data_dir, cache_dir, splits=(), expected=expected)
  return [_Side(side, x, getattr(other, f"{side}_ids")) for side, x in ids.items()]


def _match(name, shape, there, sides) -> tuple[Found | None, str]:
  """(initial values of a parameter, or None; a description of the match)."""
  if there is None:
    return None, "not found"
  tables = [s for s in sides if shape[:1] == s.here.shape and there.shape[:1] == s.there.shape]
  # If there are as many users as items, the name of the parameter decides.
  table = next((s for s in tables if s.name in name), tables[0] if tables else None)
  if table is not None and shape[1:] == there.shape[1:]:
    _, here, other = np.intersect1d(table.here.astype(str), table.there.astype(str), return_indices=True)
    if len(here) == len(table.here):
      return Found(there[other[np.argsort(here)]], None), f"all {len(here):,} {table.name}s"
    return Found(there[other], here) if len(here) else None, f"{len(here):,} of {len(table.here):,} {table.name}s"
  if shape != there.shape:
    return None, f"not loaded, {list(there.shape)} there"
  return Found(there, None), "all of it"
