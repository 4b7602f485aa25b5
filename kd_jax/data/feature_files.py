"""Feature vectors of items or users from files, for example from a text or image model, or a spreadsheet.

  NAME.npz   `ids` [n], ids of the source in any order, and `vectors` [n, D]: rows are matched by id
  NAME.npy   vectors [I, D], or [U, D], in the order of the data's ids (`kd_jax.data.load(...).item_ids`)

NAME becomes the name of the vectors. A row of zeros means that the entity has no features.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from kd_jax.base import Dataset, Features, InputError
from kd_jax.storage import sealed

# {field of Dataset: (argument, field of the ids, name of the entities)}
SIDES = {"item_features": ("features", "item_ids", "items"), "user_features": ("user_features", "user_ids", "users")}


def attach(dataset: Dataset, files: dict[str, str | None]) -> tuple[Dataset, list[dict[str, Any]]]:
  """Adds the vectors of `files`, {argument: paths joined by commas}, to the features of the data set.

  Returns the data set, and for `reattach` a list of JSON values: side, path, sha256 and the number of known rows.
  Raises InputError naming argument and file: a missing file or array, a wrong shape, a value that is not
  finite, a repeated id, no id that is in the data, a name that is already used.
  """
  used = []
  for side, (argument, _, _) in SIDES.items():
    for path in filter(None, (files.get(argument) or "").split(",")):
      dataset, known = _add(dataset, side, pathlib.Path(path))
      used.append({"side": side, "path": path, "sha256": sealed.hash_file(path), "known": known})
  return dataset, used


def reattach(dataset: Dataset, used: list[dict[str, Any]], run: Any) -> Dataset:
  """Adds the vectors that `run` was trained with. Raises InputError if a file is missing or has changed."""
  for file in used:
    path = pathlib.Path(file["path"])
    if not path.is_file():
      raise InputError(f"{run}: its features {path} are missing (sha256 {file['sha256'][:12]})")
    if sealed.hash_file(path) != file["sha256"]:
      raise InputError(f"{run}: its features {path} have changed since (sha256 was {file['sha256'][:12]})")
    dataset, _ = _add(dataset, file["side"], path)
  return dataset


def check_unchanged(used: list[dict[str, Any]], run: Any) -> None:
  """Raises InputError if a file that `run` was trained with has changed. Files that no longer exist are not checked."""
  for file in used:
    if pathlib.Path(file["path"]).is_file() and sealed.hash_file(file["path"]) != file["sha256"]:
      raise InputError(f"{run}: its features {file['path']} have changed since (sha256 was {file['sha256'][:12]})")


def detach(dataset: Dataset, used: list[dict[str, Any]]) -> Dataset:
  """The data set without the vectors that `attach` added."""
  for file in used:
    features = getattr(dataset, file["side"])
    vectors = {name: x for name, x in features.vectors.items() if name != pathlib.Path(file["path"]).stem}
    kept = features._replace(vectors=vectors)
    dataset = dataset._replace(**{file["side"]: kept if kept.vectors or kept.fields else None})
  return dataset


def describe(dataset: Dataset, used: list[dict[str, Any]]) -> list[str]:
  """The coverage of every file, as lines of text."""
  lines = []
  for file in used:
    _, ids, what = SIDES[file["side"]]
    rows = len(getattr(dataset, ids))
    lines.append(f"{file['path']}: known of {file['known']:,} of {rows:,} {what} ({file['known'] / rows:.1%})")
  return lines


def _add(dataset, side, path) -> tuple[Dataset, int]:
  argument, ids, what = SIDES[side]
  vectors = _read(f"`{argument}={path}`", path, getattr(dataset, ids), what)
  features = getattr(dataset, side) or Features()
  if path.stem in features.vectors or path.stem in features.fields:
    raise InputError(f"`{argument}={path}`: there are features {path.stem!r} of {what} already; rename the file")
  features = features._replace(vectors=features.vectors | {path.stem: vectors})
  return dataset._replace(**{side: features}), int(np.any(vectors != 0, axis=1).sum())


def _read(where, path, ids, what) -> np.ndarray:
  """Vectors [len(ids), D] float32, in the order of `ids`."""
  arrays = _load(where, path)
  vectors = arrays["vectors"]
  if vectors.ndim != 2 or vectors.dtype.kind not in "fiu" or not vectors.size:
    raise InputError(f"{where}: vectors are {vectors.dtype}{list(vectors.shape)}, expected numbers [{what}, D]")
  with np.errstate(over="ignore"):
    vectors = vectors.astype(np.float32)
  if not np.isfinite(vectors).all():
    row = int(np.argmin(np.isfinite(vectors).all(axis=1)))
    raise InputError(f"{where}: row {row} (from 0) has a value that is not a finite float32")
  if "ids" in arrays:
    return _by_id(where, arrays["ids"], vectors, ids, what)
  if len(vectors) != len(ids):
    raise InputError(f"{where}: {len(vectors):,} rows, but the data has {len(ids):,} {what}; an .npz of ids and "
                     "vectors is matched by id")
  return vectors


def _load(where, path) -> dict[str, np.ndarray]:
  if path.suffix not in (".npy", ".npz"):
    raise InputError(f"{where}: a file .npy, or .npz of ids and vectors, is expected")
  try:
    if path.suffix == ".npy":
      return {"vectors": sealed.read_array(path)}
    with np.load(path, allow_pickle=False) as file:
      if not {"ids", "vectors"} <= set(file.files):
        raise InputError(f"{where}: holds {', '.join(file.files) or 'nothing'}; expected ids and vectors")
      return {name: file[name] for name in ("ids", "vectors")}
  except FileNotFoundError:
    raise InputError(f"{where}: no such file") from None
  except InputError:
    raise
  except sealed.NOT_ARRAYS as error:
    raise InputError(f"{where}: cannot be read: {' '.join(str(error).split())[:160]}") from None


def _by_id(where, own, vectors, ids, what) -> np.ndarray:
  if own.shape != vectors.shape[:1] or own.dtype.kind not in "Uiu":
    raise InputError(f"{where}: ids are {own.dtype}{list(own.shape)}, expected text or integers [{len(vectors)}]")
  own = own.astype(str)
  place = {name: number for number, name in enumerate(own.tolist())}
  if len(place) < len(own):
    repeated = next(name for number, name in enumerate(own.tolist()) if place[name] != number)
    raise InputError(f"{where}: id {repeated!r} is there twice")
  rows = np.array([place.get(name, -1) for name in ids.tolist()])
  if (rows < 0).all():
    raise InputError(f"{where}: none of its ids, such as {str(own[0])!r}, is in the data, whose {what} are like "
                     f"{str(ids[0])!r}")
  return np.where(rows[:, None] >= 0, vectors[rows], 0)
