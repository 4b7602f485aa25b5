"""The stored evaluation of a run: RUN/SPLIT_values, one artifact with the report and the metric values of every user.

The report is in the metadata of the artifact, so that means, values of users and options belong together.
RUN/SPLIT.json is a copy of the report for people, written after it; no program reads it.
"""

from __future__ import annotations

import os
import pathlib
import sys
from typing import Any, NamedTuple

import numpy as np

from kd_jax.base import InputError
from kd_jax.evaluation.options import EvaluationOptions
from kd_jax.storage import run_directory, sealed

_KIND = "values of users"
_FILE = "values.npz"
# What two evaluations must share, so that their results may stand in one report: {field of the report: in words}.
_IDENTITY = {"seal": "another training of this run", "options": "other options", "kd_jax": "another version of kd_jax"}
_DICTS = ("options", "metrics", "differences", "others")  # fields of every report
_BY_KEY = ("metrics", "differences", "transfer_ratio", "no_transfer")  # an earlier call may have had more of them
_OF_TEACHER = ("compression_ratio", "agreement", "overlap@10")  # measured against the `teacher` of the report
_OF_STUDENT = ("transfer_ratio", "no_transfer", "relative_improvement")  # and against its `student`, too


class Stored(NamedTuple):
  """A stored evaluation."""

  report: dict[str, Any]
  user_ids: np.ndarray  # [V] str, ids of the evaluated users
  values: dict[str, np.ndarray]  # {metric: [V] float64}, NaN if a user has no item in the group of the metric


def read(run: str | os.PathLike, split: str) -> Stored | None:
  """The stored evaluation of a run; None if there is none. Raises InputError if it is damaged."""
  folder = _folder(run, split)
  if folder.name not in sealed.names(run) and not folder.exists():
    return None
  try:
    metadata = sealed.read(folder, _KIND)
    with np.load(folder / _FILE, allow_pickle=False) as file:
      values = {name: file[name] for name in file.files}
    user_ids = values.pop("user_ids")
  except InputError as error:
    raise InputError(f"{error}; remove {folder} and evaluate again") from None
  except sealed.NOT_ARRAYS as error:
    raise InputError(f"{folder / _FILE}: {error}; remove {folder} and evaluate again") from None
  report = metadata.get("report")
  if not isinstance(report, dict) or "seal" not in report or not all(isinstance(report.get(x), dict) for x in _DICTS):
    raise InputError(f"{folder}: not the evaluation of a run; remove it and evaluate again")
  return Stored(report, user_ids, values)


def identity(seal: str | None, options: EvaluationOptions) -> dict[str, Any]:
  """The fields of a report that say of which training, with which options and by which version it is."""
  return {"seal": seal, "options": options.recorded(), "kd_jax": run_directory.version("kd_jax")}


def difference(stored: dict[str, Any], report: dict[str, Any]) -> str:
  """What two reports do not share, in words; "" if they belong together: same training, options and version."""
  for name, words in _IDENTITY.items():
    if stored.get(name) != report[name]:
      before = stored.get(name) if name == "options" else None
      return words + "".join(f" {k}={v}" for k, v in (before or {}).items() if report[name].get(k) != v)
  return ""


def write(run: str | os.PathLike, split: str, found: Stored) -> dict[str, Any]:
  """Stores an evaluation and returns its report.

  Results of earlier evaluations of the same training with the same options are kept. Others are replaced, and a line
  on standard error says why. Raises InputError if the directory cannot be written, or an earlier one is damaged.
  """
  folder, metadata = _folder(run, split), {}
  with sealed.writing(folder, _KIND, metadata) as temporary:  # locked, so that no result of another call is lost
    report, values = sealed.finite(found.report), found.values
    before = read(run, split)
    if before is not None and (why := difference(before.report, report)):
      print(f"{folder}: replaced, it was of {why}", file=sys.stderr)
    elif before is not None:
      report, values = _merged(folder, before.report, report), before.values | values
    metadata["report"] = report
    np.savez_compressed(temporary / _FILE, user_ids=found.user_ids.astype(np.str_), **values)
  copy(run, split, report)
  return report


def copy(run: str | os.PathLike, split: str, report: dict[str, Any]) -> None:
  """Writes RUN/SPLIT.json, unless it holds this report. Raises InputError if it cannot be written."""
  path = pathlib.Path(run) / f"{split}.json"
  try:
    if path.read_bytes() == sealed.to_json(report):
      return
  except OSError:
    pass  # missing; or writing says what is wrong
  sealed.write_json_atomic(path, report)


def _folder(run, split) -> pathlib.Path:
  return pathlib.Path(run) / f"{split}_values"


def _merged(folder, before, now) -> dict[str, Any]:
  """The report with results of both. Drops earlier results against runs that were trained again since."""
  moved = {run for run, seal in now["others"].items() if before["others"].get(run, seal) != seal}
  if moved:
    print(f"{folder}: replaces results against {', '.join(sorted(moved))}, trained again since", file=sys.stderr)

  def is_other(name):
    return now.get(name) not in (None, before.get(name)) or before.get(name) in moved

  dropped = {"teacher", *_OF_TEACHER, "student", *_OF_STUDENT} if is_other("teacher") else (
      {"student", *_OF_STUDENT} if is_other("student") else set())
  kept = {name: value for name, value in before.items() if name not in dropped}
  kept["differences"] = {run: found for run, found in before["differences"].items() if run not in moved}
  report = kept | now | {name: _by_key(kept.get(name, {}), now[name]) for name in _BY_KEY if name in now}
  named = {*report["differences"], report.get("teacher"), report.get("student")}
  return report | {"others": {run: seal for run, seal in (before["others"] | now["others"]).items() if run in named}}


def _by_key(before, now) -> dict[str, Any]:
  """`before | now`, and the same for the dicts inside."""
  return before | {key: _by_key(before.get(key, {}), value) if isinstance(value, dict) and key in before else value
                   for key, value in now.items()}
