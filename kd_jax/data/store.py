"""Prepared data sets on disk: one verified folder per call, source files and format version."""

from __future__ import annotations

import ast
import contextlib
import fcntl
import hashlib
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from kd_jax import registry
from kd_jax.base import Dataset, InputError, Interactions
from kd_jax.data import audit, cleaning, contexts, features, sources, splits, streams
from kd_jax.data.recipe import Log, Recipe
from kd_jax.storage import sealed

FORMAT = 1  # increase it if preparation gives other arrays for the same call and sources
_KIND = "data set"
_FEATURES = ("user_features", "item_features")
_WHOLE = ("users", "items", *_FEATURES)  # always read; features only if they exist
_DEFAULT_CACHE = "~/.cache/kd_jax"


def load(call: registry.Call, data_dir, cache_dir, wanted: tuple[str, ...], memory: float = 0.0) -> Dataset:
  """Prepares the data set if necessary, and reads the `wanted` splits.

  Streams them if training interactions need more than `memory` GB (0: no limit). Raises InputError for an unknown
  split, invalid data, or damaged files.
  """
  unknown = [split for split in wanted if split not in splits.NAMES]
  if unknown:
    raise InputError(f"no split {unknown[0]!r} among {', '.join(splits.NAMES)}")
  call = canonical(call)
  folder = prepare(call, data_dir, cache_dir)
  return _read(folder, call, wanted, cache_folder(cache_dir) / "streams" / folder.name, 1e9 * memory)


def canonical(call: registry.Call) -> registry.Call:
  """The call with all defaults, so that equivalent calls give the same data set."""
  if "." in call.name:
    return call
  signature = registry.signature("data", call.name)
  defaults = {k: ast.literal_eval(v.default) for k, v in signature.items() if v.default}
  return call.changed(**(defaults | dict(call.arguments)))


def cache_folder(cache_dir) -> pathlib.Path:
  """The folder for downloads and prepared data."""
  return pathlib.Path(cache_dir or os.environ.get("KD_JAX_CACHE") or _DEFAULT_CACHE).expanduser()


def prepare(call: registry.Call, data_dir, cache_dir) -> pathlib.Path:
  """The folder of the prepared data set of a canonical call; prepares it on first use. Raises InputError."""
  recipe = registry.build("data", call)
  local, cache = sources.data_folder(data_dir), cache_folder(cache_dir)
  identity = [str(call), *(sources.identity(source, local) for source in recipe.sources), str(FORMAT)]
  if "." in call.name:  # a loader of the user: changed code may give other data
    identity.append(registry.source_hash(call.name))
  short = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:12]
  folder = cache / "data" / f"{call.name}-{short}"
  if (folder / "manifest.json").exists():
    return folder
  with _waiting(cache / "data" / f".{folder.name}.lock"):
    if not (folder / "manifest.json").exists():  # otherwise, another process has just prepared it
      if folder.is_dir() and any(folder.iterdir()):
        raise InputError(_damaged(folder, "manifest.json is missing"))
      _make(call, recipe, local, cache, folder)
  return folder


def _make(call, recipe, local, cache, folder):
  if recipe.terms:
    print(f"{call.name}: {recipe.terms}", file=sys.stderr)
  paths = [sources.find(source, local, cache) for source in recipe.sources]
  log, parts, report = process(recipe, recipe.read(paths))
  report["sources"] = {source.name: sealed.hash_file(path) for source, path in zip(
      recipe.sources, paths, strict=True)}
  contents = _contents(log, parts)
  metadata = {"call": str(call), "synthetic": recipe.synthetic, "report": report,
              "features": {side: features.describe(getattr(log, side)) for side in _FEATURES if side in contents},
              "hashes": {split: _hash(columns) for split, columns in contents.items()}}
  from kd_jax.data import builder

  with sealed.writing(folder, _KIND, metadata) as temporary:
    builder.write_splits(temporary, folder.name, contents)


def process(recipe: Recipe, log: Log) -> tuple[Log, np.ndarray, dict[str, Any]]:
  """Cleans, splits, checks and audits: (cleaned log, split of each row [N] int8, report as JSON values).

  Raises InputError for invalid arguments of the recipe, or if nothing is left.
  """
  _check_arguments(recipe)
  if log.contexts is not None:
    return contexts.process(recipe, log)
  log, cleaned = cleaning.clean(log, recipe.min_rating, recipe.min_user, recipe.min_item)
  if not len(log.users):
    raise InputError(f"`data`: no interaction is left after cleaning: {cleaned}")
  parts = splits.split_rows(log, recipe.split, recipe.ratios, recipe.split_seed)
  asked = ("validation",) if recipe.ratios[1] == 0 and recipe.split in splits.BY_RATIO else ()
  splits.check_parts(log, parts, recipe.may_be_empty + asked)
  audited = audit.inspect_split(log, parts, recipe.split)
  if recipe.synthetic:
    audited["warnings"].append("SYNTHETIC data: generated, no result on it says anything about people")
  rule = {"rule": recipe.split, "ratios": list(recipe.ratios), "seed": recipe.split_seed}
  return log, parts, {"cleaning": cleaned, "split": rule, "audit": audited}


def _check_arguments(recipe):
  for name in ("min_user", "min_item", "split_seed"):
    value, least = getattr(recipe, name), 0 if name == "split_seed" else 1
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
      raise InputError(f"`data`: {name}={value!r}: must be an integer of at least {least}")
  rating = recipe.min_rating
  if rating is not None and (isinstance(rating, bool) or not isinstance(rating, int | float)):
    raise InputError(f"`data`: min_rating={rating!r}: must be a number or None")
  splits.check_ratios(recipe.ratios)


def _contents(log, parts):
  columns = {"users": log.users.astype(np.int32), "items": log.items.astype(np.int32),
             "ratings": log.ratings, "timestamps": log.timestamps}
  columns = {name: column for name, column in columns.items() if column is not None}
  contents = {split: {name: column[parts == value] for name, column in columns.items()}
              for value, split in enumerate(splits.NAMES)}
  if log.contexts is not None:
    for value, split in enumerate(splits.NAMES):
      contents[split]["contexts"] = np.flatnonzero(log.contexts.parts == value).astype(np.int32)
  contents |= {"users": {"ids": np.array(log.user_ids, object)}, "items": {"ids": np.array(log.item_ids, object)}}
  return contents | {side: features.to_columns(getattr(log, side)) for side in _FEATURES
                     if getattr(log, side) is not None}


def _hash(columns) -> str:
  """The sha256 of names, types, shapes and values of the non-empty columns."""
  digest = hashlib.sha256()
  for name, column in sorted(columns.items()):
    if len(column):
      column = column.astype(np.str_) if column.dtype == object else column
      digest.update(f"{name}={sealed.hash_array(column)}\n".encode())
  return digest.hexdigest()


def hashes_of(dataset: Dataset) -> dict[str, str]:
  """The hashes of a data set that was created in memory."""
  splits_of = {name: log for name in splits.NAMES if (log := getattr(dataset, name)) is not None}
  columns = {name: {k: v for k, v in log._asdict().items() if v is not None} for name, log in splits_of.items()}
  for name, indices in (dataset.contexts or {}).items():
    if name in columns:
      columns[name]["contexts"] = indices
  columns |= {name: {"ids": np.asarray(getattr(dataset, name)).astype(np.str_)} for name in ("user_ids", "item_ids")}
  columns |= {side: features.to_columns(getattr(dataset, side)) for side in _FEATURES if getattr(dataset, side)}
  return {name: _hash(x) for name, x in columns.items()}


def _read(folder, call, wanted, by_user, memory) -> Dataset:
  from kd_jax.data import builder

  metadata = _verify(folder, (*wanted, *_WHOLE))
  about = metadata["report"]["audit"]
  streamed = "labels" not in about and 0 < memory < about["train"] * streams.BYTES
  needed = (*(() if streamed else wanted), *(x for x in _WHOLE if x in metadata["hashes"]))
  columns = {split: builder.read_split(folder, folder.name, split) for split in needed}
  hashes = metadata["hashes"]
  for split in needed:
    if _hash(columns[split]) != hashes[split]:
      raise InputError(_damaged(folder, f"split {split} does not have the stored sha256"))
  empty = Interactions(np.zeros(0, np.int32), np.zeros(0, np.int32))
  of = {split: empty if streamed else _interactions(columns[split]) for split in wanted}
  users, items = columns["users"]["ids"], columns["items"]["ids"]
  names = {"user_ids": "users", "item_ids": "items"} | {x: x for x in (*splits.NAMES, *_FEATURES) if x in hashes}
  described = {side: features.from_columns(columns[side], about) for side, about in
               metadata.get("features", {}).items()}
  labelled = {split: columns[split]["contexts"] for split in wanted if split in columns}
  stream = _stream(folder, wanted, by_user, len(users), memory) if streamed else None
  popularity = streams.popularity(stream, "train", len(items)) if streamed else None
  return Dataset(
      name=str(call), num_users=len(users), num_items=len(items), train=of.get("train", empty),
      validation=of.get("validation", empty), test=of.get("test"), user_ids=users, item_ids=items,
      hashes={name: hashes[split] for name, split in names.items()}, report=metadata["report"],
      synthetic=metadata["synthetic"], contexts=labelled if any(map(len, labelled.values())) else None,
      stream=stream, popularity=popularity, **described)


def _stream(folder, wanted, by_user, num_users, memory) -> streams.Stream:
  """The splits as a stream. Sorts them by user on first use."""
  from kd_jax.data import builder

  folders = {split: by_user / split for split in ("train", *(x for x in wanted if x != "train"))}
  with _waiting(by_user.parent / f".{by_user.name}.lock"):
    for split, target in folders.items():
      if not (target / "manifest.json").exists():
        streams.write(target, lambda split=split: builder.read_blocks(folder, folder.name, split), num_users)
  return streams.read(folders, memory)


def _verify(folder, needed) -> dict[str, Any]:
  """Checks all files except those of splits that are not `needed`, and returns the metadata."""
  from kd_jax.data import builder

  try:
    manifest = sealed.manifest(folder, _KIND)
  except InputError as error:
    raise InputError(_damaged(folder, str(error))) from None
  for name, entry in manifest["files"].items():
    split = builder.split_of(name)
    if split is not None and split not in needed:
      continue
    path = folder / name
    if not path.is_file() or sealed.hash_file(path) != entry["sha256"]:
      what = f"split {split}" if split else "description"
      raise InputError(_damaged(folder, f"{what}: {path.name} is missing or does not have its sha256"))
  return manifest["metadata"]


def _damaged(folder, what) -> str:
  return f"{folder}: damaged prepared data: {what}; delete this folder and start again"


def _interactions(columns) -> Interactions:
  optional = {name: columns[name] if len(columns[name]) else None for name in ("ratings", "timestamps")}
  return Interactions(columns["users"], columns["items"], **optional)


@contextlib.contextmanager
def _waiting(path) -> Iterator[None]:
  """Holds the lock file `path`; waits while another process prepares the same data set."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a")
  except OSError as error:
    raise InputError(f"`cache_dir`: cannot write {path.parent}: {error.strerror}") from None
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      print("waiting for another process that prepares the same data set", file=sys.stderr)
      fcntl.flock(file, fcntl.LOCK_EX)
    yield
