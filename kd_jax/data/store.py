"""Prepared data sets on disk: one verified folder per call, source files and format version."""

from __future__ import annotations

import ast
import contextlib
import fcntl
import functools
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


def load(call: registry.Call, data_dir, cache_dir, wanted: tuple[str, ...], memory: float = 0.0,
         expected: dict[str, str] | None = None) -> Dataset:
  """Prepares the data set of a canonical call if necessary, and reads it. Raises InputError, also as `read` does.

  Data with other hashes than `expected` is refused.
  """
  try:
    call = complete(call, data_dir)
    folder = prepare(call, data_dir, cache_dir)
  except sources.NoSourceError as error:
    where = f"; no prepared copy of it is in {cache_folder(cache_dir) / 'data'}" if expected else ""
    raise sources.NoSourceError(f"{error}{where}") from None
  if expected and (other := differing(hashes(folder), expected)):
    raise InputError(f"{_found(call, data_dir)}: gives other {', '.join(other)} than the run had from {call}; no "
                     f"prepared copy of what it had is in {folder.parent}")
  return read(folder, str(call), cache_dir, wanted, memory)


def find(text: str, expected: dict[str, str], cache_dir) -> pathlib.Path | None:
  """The prepared folder of a data set with the hashes `expected`, made by the factory of the call `text`, or None.

  Its source may have been in another place. Imports nothing.
  """
  name, root = _stem(text.partition("(")[0].strip()), cache_folder(cache_dir) / "data"
  for path in sorted(root.glob("*/manifest.json")):
    if path.parent.name.rpartition("-")[0] == name:
      with contextlib.suppress(InputError):  # a damaged folder is reported if the call leads to it
        if not differing(hashes(path.parent), expected):
          return path.parent
  return None


def hashes(folder: pathlib.Path) -> dict[str, str]:
  """The `Dataset.hashes` of a prepared folder, from its manifest. Raises InputError if that is damaged."""
  return _public(_manifest(folder)["metadata"]["hashes"])


def differing(found: dict[str, str], expected: dict[str, str]) -> list[str]:
  """The parts of `expected` that have another hash in `found`."""
  return sorted(part for part, value in expected.items() if found.get(part) != value)


def _found(call, data_dir) -> str:
  """The files that the call leads to now."""
  recipe, local = registry.build("data", call), sources.data_folder(data_dir)
  own = [sources.find(x, local, pathlib.Path(), bool(data_dir)) for x in recipe.sources if x.sha256 is None]
  return ", ".join(str(path.absolute()) for path in own) or str(call)


def canonical(call: registry.Call) -> registry.Call:
  """The call with all defaults, so that equivalent calls give the same data set."""
  if "." in call.name:
    return call
  signature = registry.signature("data", call.name)
  defaults = {k: ast.literal_eval(v.default) for k, v in signature.items() if v.default}
  return call.changed(**(defaults | dict(call.arguments)))


def complete(call: registry.Call, data_dir) -> registry.Call:
  """The canonical call with the arguments that its source files decide. Raises InputError: a file cannot be found, or
  it is not clear how to read it."""
  recipe = registry.build("data", call)
  if recipe.complete is None:
    return call
  local = sources.data_folder(data_dir)
  paths = [sources.find(source, local, pathlib.Path(), bool(data_dir)) for source in recipe.sources]
  return call.changed(**recipe.complete(paths))


def cache_folder(cache_dir) -> pathlib.Path:
  """The folder for downloads and prepared data. Raises InputError if its ~ is not known."""
  return sources.expanded(cache_dir or os.environ.get("KD_JAX_CACHE") or _DEFAULT_CACHE, "cache_dir")


def prepare(call: registry.Call, data_dir, cache_dir) -> pathlib.Path:
  """The folder of the prepared data set of a canonical, complete call; prepares it on first use. Raises InputError."""
  recipe, chosen = registry.build("data", call), bool(data_dir)
  local, cache = sources.data_folder(data_dir), cache_folder(cache_dir)
  read = [sources.identity(source, local, chosen) for source in recipe.sources]
  identity = [str(call), *read, str(FORMAT)] + ([f"revision {recipe.revision}"] if recipe.revision else [])
  if "." in call.name:  # a loader of the user: changed code may give other data
    identity.append(registry.source_hash(call.name))
  short = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:12]
  folder = cache / "data" / f"{_stem(call.name)}-{short}"
  if (folder / "manifest.json").exists():
    return folder
  with _waiting(cache / "data" / f".{folder.name}.lock"):
    if not (folder / "manifest.json").exists():  # otherwise, another process has just prepared it
      if folder.is_dir() and any(folder.iterdir()):
        raise InputError(_damaged(folder, "manifest.json is missing"))
      if recipe.terms:
        print(f"{call.name}: {recipe.terms}", file=sys.stderr)
      paths = [sources.find(source, local, cache, chosen) for source in recipe.sources]
      _make(call, recipe, paths, read, folder)
  return folder


def _stem(name: str) -> str:
  """The beginning of the names of prepared folders of the data set `name`."""
  return name[:60]  # a dotted name may be longer than a file system allows


def _make(call, recipe, paths, read, folder):
  """Prepares the data set in `folder` from the files `paths`; `read` are the sha256 of the sources."""
  try:
    log, parts, report = process(recipe, recipe.read(paths))
  except MemoryError:
    raise InputError(f"`data`: {call}: does not fit into memory") from None
  report["sources"] = {source.name: sources.content(path) for source, path in zip(recipe.sources, paths, strict=True)}
  for source, path, sha256 in zip(recipe.sources, paths, read, strict=True):
    if source.sha256 is None and report["sources"][source.name] != sha256:
      raise InputError(f"`data`: {path}: changed while it was read; start again")
  contents = _contents(log, parts)
  metadata = {"call": str(call), "synthetic": recipe.synthetic, "report": report,
              "features": {side: features.describe(getattr(log, side)) for side in _FEATURES if side in contents},
              "hashes": {split: _hash(columns) for split, columns in contents.items()}}
  del log, parts  # `contents` has copies
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
  held = [log]
  del log  # `clean` alone holds the log, and can free what it leaves out
  log, cleaned = cleaning.clean(held.pop(), recipe.min_rating, recipe.min_user, recipe.min_item, recipe.repeated)
  if not len(log.users):
    raise InputError(f"`data`: no interaction is left after cleaning: {_why_nothing(recipe, cleaned)}")
  if recipe.repeated == "keep":
    left, parts = splits.split_repeated(log, recipe.split, recipe.ratios, recipe.split_seed)
    log = cleaning.take(log, left)
  else:
    parts = splits.split_rows(log, recipe.split, recipe.ratios, recipe.split_seed)
  asked = ("validation",) if recipe.ratios[1] == 0 and recipe.split in splits.BY_RATIO else ()
  splits.check_parts(log, parts, recipe.may_be_empty + asked, _why_empty(log, recipe))
  audited = audit.inspect_split(log, parts, recipe.split)
  audited["warnings"] += [*log.notes, *([audit.SYNTHETIC] if recipe.synthetic else [])]
  rule = {"rule": recipe.split, "ratios": list(recipe.ratios), "seed": recipe.split_seed}
  rule |= {} if log.moved is None else {"validation_from_train": log.moved}
  return log, parts, {"cleaning": cleaned, "split": rule, "audit": audited, "unordered": log.unordered}


def _why_nothing(recipe, cleaned) -> str:
  """What removed the last interaction."""
  core, rows = cleaned["k_core"], cleaned["rows"] - cleaned["bad_rows"] - cleaned.get("missing_rows", 0)
  if core["interactions"]:
    return (f"the k-core of min_user={recipe.min_user}, min_item={recipe.min_item} leaves none of "
            f"{core['interactions']:,} interactions of {core['users']:,} users and {core['items']:,} items; lower them")
  if cleaned.get("below_min_rating"):
    return f"no rating of {rows:,} is at least min_rating={recipe.min_rating}"
  return f"none of {rows:,} rows is left"


def _why_empty(log, recipe) -> str:
  """Why a split by these arguments may be empty."""
  most = int(np.bincount(log.users).max())
  if recipe.split == "given":
    return f"; validation_ratio={log.moved} of no user's training rows is one: raise it" if log.moved else ""
  return f"; no user has more than {'one interaction' if most == 1 else f'{most} interactions'}" if most < 20 else ""


def _check_arguments(recipe):
  for name, least in (("min_user", 1), ("min_item", 1), ("split_seed", 0), ("folds", 0), ("fold", 0)):
    value = getattr(recipe, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
      raise InputError(f"`data`: {name}={value!r}: must be an integer of at least {least}")
  rating = recipe.min_rating
  if rating is not None and (isinstance(rating, bool) or not isinstance(rating, int | float)):
    raise InputError(f"`data`: min_rating={rating!r}: must be a number or None")
  splits.check_ratios(recipe.ratios)


def _contents(log, parts):
  columns = {"users": log.users.astype(np.int32, copy=False), "items": log.items.astype(np.int32, copy=False),
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


def read(folder: pathlib.Path, name: str, cache_dir, wanted: tuple[str, ...], memory: float = 0.0) -> Dataset:
  """Reads the `wanted` splits of a prepared folder, as the data set `name`.

  Streams them if training interactions need more than `memory` GB (0: no limit). Raises InputError for an unknown
  split, or damaged files.
  """
  if unknown := [split for split in wanted if split not in splits.NAMES]:
    raise InputError(f"no split {unknown[0]!r} among {', '.join(splits.NAMES)}")
  try:
    return _read(folder, name, wanted, cache_folder(cache_dir) / "streams" / folder.name, 1e9 * memory)
  except (InputError, MemoryError):
    raise
  except Exception as error:  # files that match their manifest, but were not written by us: of many types
    what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    raise InputError(_damaged(folder, f"cannot be read: {what}")) from error


def _read(folder, name, wanted, by_user, memory) -> Dataset:
  from kd_jax.data import builder

  manifest = _manifest(folder)
  metadata, hashes = manifest["metadata"], manifest["metadata"]["hashes"]
  about = metadata["report"]["audit"]
  streamed = "labels" not in about and 0 < memory < about["train"] * streams.BYTES
  needed = (*(() if streamed else wanted), *(x for x in _WHOLE if x in hashes))
  _verify(folder, manifest["files"], (*wanted, *_WHOLE, *(("train",) if streamed else ())))
  columns = {split: builder.read_split(folder, folder.name, split) for split in needed}
  for split in needed:
    if _hash(columns[split]) != hashes[split]:
      raise InputError(_damaged(folder, f"split {split} does not have the stored sha256"))
  empty = Interactions(np.zeros(0, np.int32), np.zeros(0, np.int32))
  of = {split: empty if streamed else _interactions(columns[split]) for split in wanted}
  users, items = columns["users"]["ids"], columns["items"]["ids"]
  described = {side: features.from_columns(columns[side], about) for side, about in
               metadata.get("features", {}).items()}
  labelled = {split: columns[split]["contexts"] for split in wanted if split in columns}
  stream = _stream(folder, hashes, wanted, by_user, len(users), memory) if streamed else None
  popularity = streams.popularity(stream, "train", len(items)) if streamed else None
  return Dataset(
      name=name, num_users=len(users), num_items=len(items), train=of.get("train", empty),
      validation=of.get("validation", empty), test=of.get("test"), user_ids=users, item_ids=items,
      hashes=_public(hashes), report=metadata["report"],
      synthetic=metadata["synthetic"], contexts=labelled if any(map(len, labelled.values())) else None,
      stream=stream, popularity=popularity, **described)


def _public(hashes) -> dict[str, str]:
  """`Dataset.hashes` from the hashes of the stored splits."""
  names = {"user_ids": "users", "item_ids": "items"} | {x: x for x in (*splits.NAMES, *_FEATURES) if x in hashes}
  return {name: hashes[split] for name, split in names.items()}


def _stream(folder, hashes, wanted, by_user, num_users, memory) -> streams.Stream:
  """The splits as a stream. Sorts them by user on first use."""
  from kd_jax.data import builder

  folders = {split: by_user / split for split in ("train", *(x for x in wanted if x != "train"))}
  with _waiting(by_user.parent / f".{by_user.name}.lock"):
    for split, target in folders.items():
      if not streams.holds(target, hashes[split]):
        blocks = functools.partial(builder.read_blocks, folder, folder.name, split)
        streams.write(target, blocks, num_users, hashes[split])
  return streams.read(folders, memory)


def _manifest(folder) -> dict[str, Any]:
  """The manifest of a prepared folder. Raises InputError if it is damaged, or of another folder."""
  try:
    manifest = sealed.manifest(folder, _KIND)
    hashes = manifest["metadata"].get("hashes")
    if not isinstance(hashes, dict) or not {*splits.NAMES, "users", "items"} <= hashes.keys():
      raise InputError("manifest.json is not of prepared data")
    if any(folder.name not in path.split("/") for path in manifest["files"]):
      raise InputError("manifest.json is of another folder")
  except (InputError, RecursionError) as error:
    raise InputError(_damaged(folder, str(error))) from None
  return manifest


def _verify(folder, listed, needed) -> None:
  """Checks all `listed` files except those of splits that are not `needed`; there must be no others."""
  from kd_jax.data import builder

  found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
  if unknown := sorted(found - listed.keys() - {"manifest.json", "manifest.sha256", ".lock"}):
    raise InputError(_damaged(folder, f"{unknown[0]} is not listed in manifest.json"))
  for name, entry in listed.items():
    split = builder.split_of(name)
    if split is not None and split not in needed:
      continue
    path = folder / name
    if not path.is_file() or sealed.hash_file(path) != entry["sha256"]:
      what = f"split {split}" if split else "description"
      raise InputError(_damaged(folder, f"{what}: {path.name} is missing or does not have its sha256"))
  builder.check_classes(folder, folder.name)


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
