"""Loads teachers: a fitted model, a run directory, a directory of soft labels, or a file from another framework."""

from __future__ import annotations

import hashlib
import os
import pathlib
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import registry
from kd_jax.base import STUDENT, Dataset, Features, FeatureSpec, InputError, Ranked, parameter_name
from kd_jax.data import feature_files
from kd_jax.storage import checkpoint, run_directory, sealed
from kd_jax.teachers import imported, soft_labels
from kd_jax.teachers.fitted import Fitted
from kd_jax.training import windows


class Teacher(NamedTuple):
  """A live teacher (module, parameters and constants), or stored soft labels (ranked lists)."""

  module: nn.Module | None
  params: dict | None
  constants: dict | None
  stored: Ranked | None  # [U, K]
  exclude_seen: bool | None  # whether the stored lists exclude training items; None: unknown
  provenance: dict[str, Any]  # a description of the teacher, and a sha256 that identifies it
  scored: bool = True  # False: the stored lists have no scores


def load(source: str | os.PathLike | Fitted | Teacher, dataset: Dataset, unknown_ids: int = 0) -> Teacher:
  """Loads a teacher and checks that it was made from the same training data and ids as `dataset`.

  `file:PATH` is a file from another framework; only its ids can be checked, see imported.read. At most `unknown_ids`
  of its ids may be unknown to `dataset`. Raises InputError if the teacher is missing, damaged or made from other data.
  """
  if isinstance(source, Teacher):
    return source
  if isinstance(source, Fitted):
    _check_data(source.workdir or "the fitted teacher", source.info, dataset)
    return Teacher(source.module, source.params, source.constants, None, None,
                   {"model": source.info["model"], "epoch": source.result["best_epoch"], **_pin_of(source),
                    **private(source.info)})
  path = os.fspath(source)
  if path.startswith(run_directory.FILE):
    return _from_file(path.removeprefix(run_directory.FILE), dataset, unknown_ids)
  directory = pathlib.Path(path)
  if _is_run(directory):
    return _from_run(directory, dataset)
  sealed.recover(directory)
  if (directory / "manifest.json").is_file():
    labels = soft_labels.read(directory, dataset)
    sha256 = sealed.hash_file(directory / "manifest.json")
    provenance = labels.metadata["provenance"]
    return Teacher(None, None, None, Ranked(labels.items, labels.scores), labels.metadata["exclude_seen"],
                   {"soft_labels": sha256, "teacher": provenance, **private(provenance)})
  what = "is neither a run directory nor soft labels" if directory.exists() else "does not exist"
  raise InputError(f"`teacher={path}`: {what}; train one with scripts/train.py, write "
                   "labels with scripts/soft_labels.py, or name a file of your own, file:PATH")


def private(info: dict[str, Any]) -> dict[str, Any]:
  """{"privacy": the statement of run.json}, {} if the run is not private."""
  return {"privacy": info["privacy"]} if "privacy" in info else {}


def _is_run(directory) -> bool:
  return any((directory / name).is_file() for name in (run_directory.FLAGS, run_directory.SEAL))


def _pin_of(fitted: Fitted) -> dict[str, str]:
  """What identifies a fitted model: its checkpoint, or its parameters if it is not what its run directory holds."""
  if fitted.workdir is not None:
    run = run_directory.read_finished(fitted.workdir)
    if sealed.to_json(run.result) == sealed.to_json(fitted.result):
      return {"checkpoint": run.pin.sha256}
  return {"parameters": hash_parameters(fitted.params)}


def hash_parameters(params: dict) -> str:
  """The sha256 of a tree of parameters: names, types, shapes and values."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  digest = hashlib.sha256()
  for path, leaf in leaves:
    digest.update(f"{parameter_name(path)}={sealed.hash_array(np.asarray(leaf))}\n".encode())
  return digest.hexdigest()


def check_unchanged(run: run_directory.Finished, where: str | os.PathLike, argument: str, sources: list[Any]) -> None:
  """Raises InputError if the `teacher` or `init_from` of the finished run in `where` has changed since the run.

  Paths that no longer exist are not checked.
  """
  for source, before in zip(sources, run.info.get(argument, []), strict=False):
    pins = _pin_of(source) if isinstance(source, Fitted) else _pin(source)
    if pins and not set(pins.values()) & set(map(str, before.values())):
      named = f"{argument}={os.fspath(source)}" if isinstance(source, str | os.PathLike) else argument
      raise InputError(f"`{named}`: not what the finished run in {where} learned from; choose another `workdir`, or "
                       "remove that run")


def _pin(source) -> dict[str, str]:
  """The sha256 that the provenance of the teacher at this path has; {} if there is nothing at the path."""
  if not isinstance(source, str | os.PathLike):
    return {}
  path = os.fspath(source)
  directory = pathlib.Path(path)
  if _is_run(directory):
    return {"checkpoint": run_directory.read_finished(directory).pin.sha256}
  sealed.recover(directory)
  file = pathlib.Path(path.removeprefix(run_directory.FILE)) if path.startswith(run_directory.FILE) else (
      directory / "manifest.json")
  return {"file": sealed.hash_file(file)} if file.is_file() else {}


def _from_file(path, dataset, unknown_ids) -> Teacher:
  found = imported.read(path, dataset, unknown_ids)
  provenance = {"file": sealed.hash_file(path), "coverage": found.coverage}
  if found.lists is not None:
    return Teacher(None, None, None, found.lists, None, provenance, found.scored)
  module: nn.Module
  if "scores" in found.tables:
    module = imported.Scores(dataset.num_users, dataset.num_items)
  else:
    module = build_model(f"mf(dim={found.tables['user'].shape[1]})", dataset)
  return Teacher(module, found.tables, constants(module, dataset), None, None, provenance)


def _check_data(run, info, dataset):
  for part in ("train", "user_ids", "item_ids"):
    if info["hashes"].get(part) != dataset.hashes.get(part):
      raise InputError(f"{run}: trained on other data than {dataset.name} ({part} of {info['data']} differs)")


class _Model(NamedTuple):
  """The best epoch of a run."""

  module: nn.Module
  params: dict
  constants: dict
  provenance: dict[str, Any]
  run: run_directory.Finished


def _from_run(directory, dataset) -> Teacher:
  model = _model(directory, dataset)
  return Teacher(model.module, model.params, model.constants, None, None, model.provenance)


def _model(directory, dataset, module=None) -> _Model:
  run = run_directory.read_finished(directory)
  info = run.info
  _check_data(directory, info, dataset)
  best = checkpoint.restore_pinned(directory, run.pin)
  if not all(np.isfinite(x).all() for x in jax.tree.leaves(best)):
    raise InputError(f"{directory}: parameters of its best epoch are not finite")
  pin = {"model": info["model"], "epoch": run.result["best_epoch"], "checkpoint": run.pin.sha256, **private(info)}
  if module is not None:
    return _Model(module, best[STUDENT], constants(module, dataset), pin, run)
  if info["model"].startswith("<"):
    raise InputError(f"{directory}: its model was an object, {info['model']}, which no file can name; give what fit "
                     "returned")
  for part in feature_files.SIDES:
    if registry.accepts("models", info["model"], part) and info["hashes"].get(part) != dataset.hashes.get(part):
      raise InputError(f"{directory}: saw other {part} than {dataset.name} has; give `data={info['data']}`")
  dataset = feature_files.reattach(dataset, info.get("features", []), directory)
  module = build_model(info["model"], dataset)
  return _Model(module, best[STUDENT], constants(module, dataset), pin, run)


def open_run(directory: str | os.PathLike, dataset: Dataset, module: nn.Module | None = None) -> Fitted:
  """Loads a finished run, as `fit` returned it; `module` is its model if that was an object. Raises InputError."""
  model = _model(pathlib.Path(directory), dataset, module)
  run = model.run
  state = checkpoint.restore_pinned(directory, run.pin, "state")
  dataset = feature_files.reattach(dataset, run.info.get("features", []), directory)
  return Fitted(model.module, model.params, state.get("params", {}).get("adapters", {}), model.constants, dataset,
                run.history, run.result, run.info, os.fspath(directory))


def network(run: str | os.PathLike | Fitted, dataset: Dataset) -> tuple[nn.Module, dict]:
  """(module, variables) of the best epoch of a run, for scoring. Raises InputError."""
  if isinstance(run, Fitted):
    _check_data(run.workdir or "the fitted run", run.info, dataset)
    described = dataset._replace(user_features=run.dataset.user_features, item_features=run.dataset.item_features)
    module, params, own = run.module, run.params, constants(run.module, described)
  else:
    module, params, own, *_ = _model(pathlib.Path(run), dataset)
  return module, jax.tree.map(jnp.asarray, {"params": params, "constants": own})


def windowed_network(directory: str, dataset: Dataset) -> tuple[windows.WindowedNetwork, dict]:
  """(module, parameters) of the best epoch of a run, for evaluation of streamed data by parts. Raises InputError."""
  module, variables = network(directory, dataset)
  return windows.windowed(module, variables["params"], dataset), variables["params"]


def constants(module: nn.Module, dataset: Dataset) -> dict:
  """Arrays that the module computes from the data, e.g. a graph; {} for most modules.

  Raises InputError if the module needs such arrays and the data is streamed.
  """
  if not hasattr(module, "constants"):
    return {}
  if dataset.stream is not None:
    raise InputError(f"`data_memory`: {type(module).__name__} reads all interactions at once; they cannot be streamed")
  return module.constants(dataset)


def build_model(model: str | nn.Module, dataset: Dataset) -> nn.Module:
  """Builds the Flax module of a call such as "mf(dim=20)", for the sizes and features of `dataset`.

  Returns a module unchanged. Raises InputError for a wrong call.
  """
  if not isinstance(model, str):
    return model
  call = registry.parse("models", model, "model")
  return registry.build(
      "models", call, num_users=dataset.num_users, num_items=dataset.num_items,
      user_features=_spec(dataset.user_features), item_features=_spec(dataset.item_features))


def _spec(features: Features | None) -> FeatureSpec | None:
  return features and FeatureSpec(features.fields, features.sizes,
                                  tuple((name, vectors.shape[1]) for name, vectors in features.vectors.items()))
