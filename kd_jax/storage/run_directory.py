"""The directory of a run: everything that is needed to repeat it.

  flags.txt       the flags, as a flagfile
  run.json        versions, commit, devices, hashes of data and features, model size, teacher
  metrics.jsonl   one line per epoch
  checkpoints/    the latest state and the best parameters, with sha256
  result.json     written last: best epoch, validation metrics, seconds
  test.json       written by evaluate.py
  after/EPOCH     with `keep_every`, a run directory as if the run had ended after this epoch
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import platform
import subprocess
from importlib import metadata
from typing import Any

from kd_jax.base import InputError
from kd_jax.storage import sealed

FLAGS, INFO, METRICS, RESULT, TEST = "flags.txt", "run.json", "metrics.jsonl", "result.json", "test.json"
# Flags in flags.txt of older runs that do not change the result of a run; they are ignored.
_PLACES = ("flagfile", "workdir", "data_dir", "cache_dir", "profile", "seeds", "sweep", "coordinator", "num_processes",
           "process_id")
FILE = "file:"  # prefix of the path of a teacher in a file from another framework
_PATHS = ("teacher", "init_from")  # compared as absolute paths; run.json has the hashes of their content
_WRITTEN = {INFO: {"model", "data", "hashes", "parameters", "versions", "devices"},  # the required keys of each file
            RESULT: {"epochs", "best_epoch", "monitor", "seconds"}, TEST: {"metrics", "options", "epochs"}}
_PACKAGES = ("kd_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")


def check_flags(directory: str | os.PathLike, now: dict[str, str], defaults: dict[str, str], epochs: int,
                extendable: bool) -> None:
  """Compares options, as texts, with the run in the directory, if there is one. Raises InputError if one has changed.

  An option that an older run did not have counts as its default. `epochs` may be larger if the run is `extendable`.
  """
  path = pathlib.Path(directory) / FLAGS
  if path.exists():
    before = {name: defaults[name] for name in now if name in defaults} | _read_flags(path)
    changed = sorted(k for k in now.keys() | before.keys()
                     if (k != "epochs" or not extendable) and _meant(k, now) != _meant(k, before))
    if changed == ["epochs"]:
      raise InputError(f"`epochs={epochs}`: the run in {directory} was started for {before['epochs']}, on which its "
                       "`schedule` depends; choose another directory")
    if changed:
      was = ", ".join(f"`{k}={now.get(k, '')}` (there: {before.get(k, '')})" for k in changed)
      raise InputError(f"`workdir={directory}` holds a run with other flags: {was}; choose another directory")
    if (done := _epochs_done(directory)) > epochs:
      raise InputError(f"`epochs={epochs}`: the run in {directory} has had {done}; choose another directory "
                       "(`keep_every` keeps what a run is after fewer)")
  elif path.parent.exists() and (not path.parent.is_dir() or {p.name for p in path.parent.iterdir()} - {".lock"}):
    raise InputError(f"`workdir={directory}`: not empty, and no run is in it")


def _meant(name, values) -> str | list[tuple[bool, str]] | None:
  """The value of a flag, in comparable form: paths are resolved."""
  if name not in _PATHS or name not in values:
    return values.get(name)
  return [(path.startswith(FILE), os.path.realpath(path.removeprefix(FILE))) for path in values[name].split(",")]


def _epochs_done(directory) -> int:
  path = pathlib.Path(directory) / METRICS
  lines = path.read_text().splitlines() if path.exists() else []
  return next((epoch for line in reversed(lines) if math.isfinite(epoch := _epoch(line))), 0)


def finished(directory: str | os.PathLike, epochs: int) -> dict[str, Any] | None:
  """The content of result.json if the run has finished with this maximum number of epochs, else None."""
  path = pathlib.Path(directory) / RESULT
  if not path.exists() or _read_flags(path.with_name(FLAGS)).get("epochs") != str(epochs):
    return None
  return read_json(path)


def start(directory: str | os.PathLike, flags: dict[str, str], info: dict[str, Any]) -> dict[str, Any]:
  """Writes flags.txt and run.json, and returns the content of run.json.

  Raises InputError if the directory holds a run with other data, teacher, features or `init_from`.
  """
  path = pathlib.Path(directory) / INFO
  if path.exists():
    before = read_info(directory)
    compared = {"hashes": "data", "teacher": "teacher", "features": "features", "init_from": "`init_from`"}
    for key, what in compared.items():
      if before.get(key, []) != json.loads(json.dumps(info[key])):
        raise InputError(f"`workdir={directory}`: its run used other {what}; choose another directory")
    if before["versions"] != info["versions"] or before["devices"] != info["devices"]:
      print(f"{directory}: goes on with other versions or devices; numbers may differ in the last bits")
  path.with_name(RESULT).unlink(missing_ok=True)  # if a finished run is extended
  _write_flags(path.with_name(FLAGS), flags)
  sealed.write_json_atomic(path, info)
  return info


def versions() -> dict[str, Any]:
  """What a run is made by: Python, packages, and the commit of a checkout."""
  return {"python": platform.python_version(), "versions": {p: _version(p) for p in _PACKAGES},
          "commit": commit(pathlib.Path(__file__).parents[2])}


def after(directory: str | os.PathLike, epoch: int) -> pathlib.Path:
  """The directory of the copy of a run after `epoch` epochs, see `keep_every`."""
  return pathlib.Path(directory) / "after" / str(epoch)


def start_after(directory: str | os.PathLike, epoch: int) -> pathlib.Path:
  """Creates `after(directory, epoch)` with flags.txt and run.json of the run, and returns it."""
  made = after(directory, epoch)
  made.mkdir(parents=True, exist_ok=True)
  _write_flags(made / FLAGS, _read_flags(pathlib.Path(directory) / FLAGS) | {"epochs": str(epoch)})
  sealed.write_json_atomic(made / INFO, read_info(directory))
  return made


def _write_flags(path, flags_of_run):
  path.write_text("".join(f"--{name}={value}\n" for name, value in flags_of_run.items()))


def _read_flags(path) -> dict[str, str]:
  pairs = (line[2:].split("=", 1) for line in path.read_text().splitlines() if line.startswith("--"))
  return {name: value for name, value in pairs if name not in _PLACES}


def commit(root: pathlib.Path) -> str | None:
  """The commit that is checked out in `root`, with "+" if files differ from it; None if it is not a repository."""
  def git(*words):
    return subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=True).stdout

  try:
    if not (root / ".git").exists():  # ignores a repository that only contains our environment
      return None
    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "--short=10", "HEAD").strip() + ("+" if changed else "")
  except (OSError, subprocess.CalledProcessError):
    return None


def _version(package):
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return "not installed"


def read_info(directory: str | os.PathLike) -> dict[str, Any]:
  """The content of run.json. Raises InputError if it is missing or damaged."""
  return read_json(pathlib.Path(directory) / INFO)


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The content of a JSON file of a run. Raises InputError if it is missing or damaged."""
  try:
    found = json.loads(path.read_text())
  except (FileNotFoundError, NotADirectoryError):
    raise InputError(f"{path}: missing; is this the directory of a finished run?") from None
  except ValueError as error:
    raise InputError(f"{path}: damaged: {error}") from None
  if missing := _WRITTEN.get(path.name, set()) - set(found if isinstance(found, dict) else ()):
    raise InputError(f"{path}: damaged: it has no {', '.join(sorted(missing))}")
  return found


def truncate_metrics(directory: str | os.PathLike, epoch: int) -> None:
  """Removes the lines of metrics.jsonl after `epoch`, because these epochs are run again."""
  path = pathlib.Path(directory) / METRICS
  if path.exists():
    kept = [line for line in path.read_text().splitlines() if _epoch(line) <= epoch]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept))
    os.replace(temporary, path)


def _epoch(line):
  try:
    return json.loads(line)["epoch"]
  except (ValueError, KeyError):  # an incomplete last line
    return float("inf")


def append_metrics(directory: str | os.PathLike, line: dict[str, Any]) -> None:
  """Appends one line to metrics.jsonl."""
  with open(pathlib.Path(directory) / METRICS, "a") as file:
    file.write(json.dumps(line) + "\n")


def read_metrics(directory: str | os.PathLike) -> list[dict[str, Any]]:
  """All lines of metrics.jsonl. Raises InputError if one is damaged."""
  path = pathlib.Path(directory) / METRICS
  try:
    return [json.loads(line) for line in path.read_text().splitlines()]
  except ValueError as error:
    raise InputError(f"{path}: damaged: {error}") from None
