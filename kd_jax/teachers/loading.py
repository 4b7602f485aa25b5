"""Teachers: the directory of a finished run, a directory of soft labels, or another framework's file."""

from __future__ import annotations

import pathlib
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import registry
from kd_jax.base import Dataset, Features, FeatureSpec, InputError, Ranked
from kd_jax.data import feature_files
from kd_jax.storage import checkpoint, run_directory, sealed
from kd_jax.teachers import imported, soft_labels
from kd_jax.training import windows


class Teacher(NamedTuple):
  """A live teacher has a module, parameters and constants; stored soft labels have lists."""

  module: nn.Module | None
  params: dict | None
  constants: dict | None
  stored: Ranked | None  # [U, K]
  exclude_seen: bool | None  # whether the stored lists leave out training items; None: unknown
  provenance: dict[str, Any]  # what it is and the sha256 that pins it
  scored: bool = True  # False: the stored lists are an order without scores


def load(path: str, dataset: Dataset, unknown_ids: int = 0) -> Teacher:
  """Loads a teacher and checks that it was made from the same training data and ids as `dataset`.

  `file:PATH` is a file of another framework, of which only ids can be checked: see imported.read.
  Raises InputError: nothing there, damaged, or made from other data.
  """
  if path.startswith(run_directory.FILE):
    return _from_file(path.removeprefix(run_directory.FILE), dataset, unknown_ids)
  directory = pathlib.Path(path)
  if (directory / run_directory.FLAGS).is_file():
    return _from_run(directory, dataset)
  if (directory / "manifest.json").is_file():
    labels = soft_labels.read(directory, dataset)
    sha256 = sealed.hash_file(directory / "manifest.json")
    return Teacher(None, None, None, Ranked(labels.items, labels.scores), labels.metadata["exclude_seen"],
                   {"soft_labels": sha256, "teacher": labels.metadata["provenance"]})
  what = "is neither a run directory nor soft labels" if directory.exists() else "does not exist"
  raise InputError(f"--teacher={path}: {what}; train one with scripts/train.py, write "
                   "labels with scripts/soft_labels.py, or name a file of your own, file:PATH")


def check_unchanged(run: str, flag: str, paths: list[str]) -> None:
  """Raises InputError if what a finished run learned from, --teacher or --init_from, is something else now.

  What is not there any more is no matter.
  """
  for path, before in zip(paths, run_directory.read_info(run).get(flag, []), strict=False):
    pin = _pin(path)
    if pin is not None and pin.is_file() and sealed.hash_file(pin) not in before.values():
      raise InputError(f"--{flag}={path}: not what the finished run in {run} learned from; choose another --workdir, "
                       "or remove that run")


def _pin(path) -> pathlib.Path | None:
  """The file whose sha256 is in the provenance of what `load` finds at `path`."""
  if path.startswith(run_directory.FILE):
    return pathlib.Path(path.removeprefix(run_directory.FILE))
  directory = pathlib.Path(path)
  if (directory / run_directory.FLAGS).is_file():
    return checkpoint.latest_manifest(directory)
  return directory / "manifest.json"


def _from_file(path, dataset, unknown_ids) -> Teacher:
  found = imported.read(path, dataset, unknown_ids)
  provenance = {"file": sealed.hash_file(path), "coverage": found.coverage}
  if found.lists is not None:
    return Teacher(None, None, None, found.lists, None, provenance, found.scored)
  if "scores" in found.tables:
    module = imported.Scores(dataset.num_users, dataset.num_items)
  else:
    module = build_module(f"mf(dim={found.tables['user'].shape[1]})", dataset)
  return Teacher(module, found.tables, constants(module, dataset), None, None, provenance)


def _from_run(directory, dataset) -> Teacher:
  info = run_directory.read_info(directory)
  for part in ("train", "user_ids", "item_ids"):
    if info["hashes"][part] != dataset.hashes[part]:
      raise InputError(f"{directory}: trained on other data than {dataset.name} ({part} of {info['data']} differs)")
  best, metadata = checkpoint.restore_best(directory)
  if not all(np.isfinite(x).all() for x in jax.tree.leaves(best)):
    raise InputError(f"{directory}: parameters of its best epoch are not finite")
  for part in feature_files.SIDES:
    if registry.accepts("models", info["model"], part) and info["hashes"].get(part) != dataset.hashes.get(part):
      raise InputError(f"{directory}: saw other {part} than {dataset.name} has; give --data={info['data']}")
  dataset = feature_files.reattach(dataset, info.get("features", []), directory)
  module = build_module(info["model"], dataset)
  return Teacher(module, best["student"], constants(module, dataset), None, None,
                 {"model": info["model"], "epoch": metadata["best_epoch"],
                  "checkpoint": sealed.hash_file(checkpoint.newest_manifest(directory))})


def network(directory: str, dataset: Dataset) -> tuple[nn.Module, dict]:
  """(module, variables) of the best epoch of a run, to score with. Raises InputError."""
  if not (pathlib.Path(directory) / run_directory.FLAGS).is_file():
    raise InputError(f"{directory}: no run directory ({run_directory.FLAGS} is missing)")
  teacher = _from_run(pathlib.Path(directory), dataset)
  return teacher.module, jax.tree.map(jnp.asarray, {"params": teacher.params, "constants": teacher.constants})


def windowed_network(directory: str, dataset: Dataset) -> tuple[windows.WindowedNetwork, dict]:
  """(module, parameters) of the best epoch of a run on streamed data, for parts of it. Raises InputError."""
  module, variables = network(directory, dataset)
  return windows.windowed(module, variables["params"], dataset), variables["params"]


def constants(module: nn.Module, dataset: Dataset) -> dict:
  """What the module needs of the data beside its size; {} for most. Raises InputError if the data is streamed."""
  if not hasattr(module, "constants"):
    return {}
  if dataset.stream is not None:
    raise InputError(f"--data_memory: {type(module).__name__} reads all interactions at once; they cannot be streamed")
  return module.constants(dataset)


def build_module(model: str, dataset: Dataset) -> nn.Module:
  """The Flax module of a model's call, for the sizes and the kinds of features of `dataset`."""
  call = registry.parse("models", model, "model")
  return registry.build(
      "models", call, num_users=dataset.num_users, num_items=dataset.num_items,
      user_features=_spec(dataset.user_features), item_features=_spec(dataset.item_features))


def _spec(features: Features | None) -> FeatureSpec | None:
  return features and FeatureSpec(features.fields, features.sizes,
                                  tuple((name, feature_files.shape[1]) for name, vectors in features.vectors.items()))
