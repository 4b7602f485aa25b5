"""Loads an export. Files are verified first, and programs are run in a process of their own before they run here."""

from __future__ import annotations

import datetime
import importlib.util
import os
import pathlib
import subprocess
import sys

from kd_jax.base import InputError
from kd_jax.serving import golden, layout, new_items
from kd_jax.serving.layout import Contents
from kd_jax.serving.recommender import Recommender

_NEEDS = {"stablehlo": "jax", "onnx": "onnxruntime", "npz": "numpy"}
_TRIAL_SECONDS = 120
_WINDOW = 180  # days: jax reads programs of earlier versions for six months


def load(directory: str | os.PathLike, format: str | None = None, *, trial: bool = True,
         index: bool = False) -> Recommender:
  """The recommender in the directory of an export.

  `format` is "stablehlo", "onnx" or "npz"; None takes the first format of the export whose library is installed.
  `trial` runs a program in a process of its own first: a program that was damaged on purpose, hashes included, may
  crash the process that runs it. `index` searches the approximate index of the export instead of all items.

  Raises InputError: a file is damaged; the export is too old for this version of jax; the program cannot be run, or
  answers differently from the training code.
  """
  contents = layout.read(directory)
  chosen = _format(contents, format)
  if index and not (contents.directory / layout.INDEX).is_file():
    raise InputError(f"`index`: {directory} has none; export it with `index=hnsw`")
  if chosen == "stablehlo":
    _check_window(contents)
  if trial and (chosen != "npz" or index or (contents.metadata.get("tower") and importlib.util.find_spec("jax"))):
    _try(directory, chosen, index)
  score, tower = _score(contents, chosen), new_items.tower(contents)
  recommender = Recommender(contents, score, tower=tower)
  golden.replay(recommender)
  return Recommender(contents, score, _index(contents), tower) if index else recommender


def _format(contents: Contents, wanted) -> str:
  formats = contents.metadata["formats"]
  if wanted is None:
    installed = [name for name in formats if importlib.util.find_spec(_NEEDS[name])]
    if not installed:
      raise InputError(f"{contents.directory}: needs one of {', '.join(_NEEDS[name] for name in formats)}, and none is "
                       "installed")
    return installed[0]
  if wanted not in formats:
    raise InputError(f"`format={wanted}`: {contents.directory} has {', '.join(formats)}")
  return wanted


def _check_window(contents):
  """Raises InputError for a program of another version of jax that is older than what jax promises to read."""
  import jax

  metadata = contents.metadata
  try:
    written = datetime.date.fromisoformat(metadata["written"])
  except ValueError:
    raise InputError(f"{contents.directory}: not an export: `written` in the manifest is not a date") from None
  age = (datetime.date.today() - written).days
  if age > _WINDOW and metadata["jax"] != jax.__version__:
    raise InputError(f"{contents.directory}: expired: exported {age} days ago by jax {metadata['jax']}, and jax "
                     f"{jax.__version__} promises to read programs of {_WINDOW} days; export the run again")


def _score(contents, chosen):
  if chosen == "npz":
    from kd_jax.serving import as_npz

    return as_npz.read(contents)
  if chosen == "onnx":
    from kd_jax.serving import as_onnx

    return as_onnx.read(contents)
  from kd_jax.serving import as_stablehlo

  return as_stablehlo.read(contents)


def _index(contents):
  from kd_jax.serving import approximate

  return approximate.read(contents.directory / layout.INDEX, *contents.weights["item"].shape)


def _try(directory, chosen, index):
  """Loads the export in a process of its own. Raises InputError if that refuses it, crashes or hangs."""
  package = os.fspath(pathlib.Path(__file__).parents[2])
  path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
  command = [sys.executable, "-m", "kd_jax.serving.trial", os.fspath(directory), chosen, str(int(index))]
  try:
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, stdin=subprocess.DEVNULL,
                          capture_output=True, timeout=_TRIAL_SECONDS)
  except subprocess.TimeoutExpired:
    raise InputError(f"{directory}: its program did not answer within {_TRIAL_SECONDS} seconds") from None
  if done.returncode:
    said = done.stderr.decode(errors="replace").strip().splitlines()
    reason = said[-1] if said and done.returncode == 2 else f"its program crashed (status {done.returncode})"
    raise InputError(reason if reason.startswith(os.fspath(directory)) else f"{directory}: {reason}")
