"""The files of an export, and the checks before any of them is used.

  README.md                     the model card, for people
  weights/NAME.npy              arrays of the network; a table in int8 has its scales [rows] in NAME_scale.npy
  program.stablehlo             the scores from weights and inputs, as a program of `jax.export`
  program.onnx                  the same for ONNX Runtime; it reads weights/ itself
  items.stablehlo               the vector of an item from its features, if the model has content
  users.json, items.json        ids, in the order of the rows of the weights
  history_starts.npy [U + 1], history_items.npy [N]   what is known of users (compressed sparse rows), oldest first
  popularity.npy [I]            training interactions of each item
  priority.npy [I]              the order of items with equal scores, see `data.order`
  golden.npz                    answers of the training code for some users
  titles.json                   {item id: title}, if they were given
  index.faiss                   an approximate index of the item vectors, if it was asked for
  manifest.json, manifest.sha256   sizes, sha256 and versions
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from kd_jax.base import InputError
from kd_jax.storage import sealed

KIND = "export"
VERSION = 2  # of these files
FORMATS = ("stablehlo", "onnx", "npz")
# What a network reads of a request: the user's vector, the last items in order, the set of items, the user's index.
QUERY, HISTORY, SET, USERS = INPUTS = ("query", "history", "set", "users")
PROGRAMS = {"stablehlo": "program.stablehlo", "onnx": "program.onnx"}
TOWER = "items.stablehlo"  # a program
INDEX, TITLES, CARD = "index.faiss", "titles.json", "README.md"
_ARRAYS = {"history_starts": np.int64, "history_items": np.int32, "popularity": np.int64, "priority": np.int32}
GOLDEN = ("users", "items", "scores")


class Contents(NamedTuple):
  """An export, read and checked; nothing of it has been run."""

  directory: pathlib.Path
  sha256: str  # of its manifest: the identity of the export
  metadata: dict[str, Any]
  user_ids: list[str]  # [U]
  item_ids: list[str]  # [I]
  weights: dict[str, np.ndarray]  # in the order in which the program takes them
  history_starts: np.ndarray  # [U + 1]
  history_items: np.ndarray  # [N]
  popularity: np.ndarray  # [I]
  priority: np.ndarray  # [I]
  golden: dict[str, np.ndarray]  # users [g], items [g, K], scores [g, K]
  titles: dict[str, str]  # {item id: title}

  def history(self, user: int) -> np.ndarray:
    """The items [n] that are known of a user (index)."""
    return self.history_items[self.history_starts[user] : self.history_starts[user + 1]]


def table(weights: Mapping[str, Any], name: str, rows: Any = slice(None)) -> Any:
  """The rows of a table of vectors, [n, D] float32: in int8, a row is its scale times its integers. NumPy or JAX."""
  found, scale = weights[name][rows], weights.get(f"{name}_scale")
  return found if scale is None else found * scale[rows][..., None]


def write_arrays(folder: pathlib.Path, weights: dict[str, np.ndarray], arrays: dict[str, np.ndarray],
                 golden: dict[str, np.ndarray]) -> None:
  """Writes the arrays of an export to its folder."""
  (folder / "weights").mkdir()
  for name, value in weights.items():
    np.save(folder / "weights" / f"{name}.npy", np.ascontiguousarray(value), allow_pickle=False)
  for name, kind in _ARRAYS.items():
    np.save(folder / f"{name}.npy", np.asarray(arrays[name], kind), allow_pickle=False)
  np.savez(folder / "golden.npz", allow_pickle=False, **golden)


def write_ids(folder: pathlib.Path, user_ids: list[str], item_ids: list[str], titles: dict[str, str]) -> None:
  """Writes ids, and titles if there are any. Raises InputError if an id occurs twice."""
  for name, ids in (("users", user_ids), ("items", item_ids)):
    if len(set(ids)) != len(ids):
      raise InputError(f"{name}.json: an id occurs twice")
    (folder / f"{name}.json").write_bytes(sealed.to_json(ids, indent=None))
  if titles:
    (folder / TITLES).write_bytes(sealed.to_json(titles, indent=None))


def read(directory: str | os.PathLike) -> Contents:
  """Compares the sha256 of every file with the manifest, then reads them. Weights are memory-mapped.

  Raises InputError: a file is damaged, missing or unlisted; or the files do not fit together.
  """
  folder = pathlib.Path(directory)
  metadata = sealed.read(folder, KIND)
  _check_metadata(folder, metadata)
  user_ids, item_ids = (_ids(folder / f"{name}.json") for name in ("users", "items"))
  try:
    weights = {name: sealed.read_array(folder / "weights" / f"{name}.npy", mmap_mode="r")
               for name in metadata["weights"]}
    arrays = {name: sealed.read_array(folder / f"{name}.npy") for name in _ARRAYS}
    with np.load(folder / "golden.npz", allow_pickle=False) as file:
      golden = {name: file[name] for name in GOLDEN}
  except sealed.NOT_ARRAYS as error:
    raise InputError(f"{folder}: not an export: {error}") from None
  _check_arrays(folder, arrays, golden, len(user_ids), len(item_ids))
  _check_weights(folder, metadata, weights, len(user_ids), len(item_ids))
  return Contents(folder, sealed.hash_file(folder / "manifest.json"), metadata, user_ids, item_ids, weights,
                  golden=golden, titles=_titles(folder), **arrays)


def _check_metadata(folder, metadata):
  if metadata.get("version") != VERSION:
    raise InputError(f"{folder}: an export of version {metadata.get('version')!r}, and this program reads {VERSION}; "
                     "export the run again")
  lists = {"formats": FORMATS, "weights": None, "program": metadata.get("weights")}
  for name, known in lists.items():
    value = metadata.get(name)
    if not isinstance(value, list) or not all(isinstance(x, str) and (known is None or x in known) for x in value):
      raise _not_fitting(folder, f"`{name}` in the manifest")
  if not metadata["formats"] or any("/" in name or name.startswith(".") for name in metadata["weights"]):
    raise _not_fitting(folder, "formats or weights in the manifest")
  length = metadata.get("length")
  if metadata.get("inputs") not in INPUTS or (metadata["inputs"] == HISTORY and not _is_count(length)):
    raise _not_fitting(folder, "`inputs` or `length` in the manifest")
  if not all(isinstance(metadata.get(name), bool) for name in ("exclude_seen", "synthetic")):
    raise _not_fitting(folder, "`exclude_seen` or `synthetic` in the manifest")
  texts = ("model", "data", "history", "compress", "written", "jax")
  if not all(isinstance(metadata.get(name), str) for name in texts):
    raise _not_fitting(folder, "names in the manifest")


def _is_count(value) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1_000_000


def _ids(path) -> list[str]:
  found = _json(path)
  if not isinstance(found, list) or not all(isinstance(x, str) for x in found) or len(set(found)) != len(found):
    raise InputError(f"{path}: not a list of distinct ids")
  return found


def _titles(folder) -> dict[str, str]:
  path = folder / TITLES
  found = _json(path) if path.is_file() else {}
  if not isinstance(found, dict) or not all(isinstance(x, str) for x in found.values()):
    raise InputError(f"{path}: not a table of ids and titles")
  return found


def _json(path):
  try:
    return sealed.from_json(path.read_bytes())
  except (OSError, ValueError, RecursionError) as error:
    raise InputError(f"{path}: {error}") from None


def _check_arrays(folder, arrays, golden, users, items):
  for name, kind in _ARRAYS.items():
    if arrays[name].dtype != kind or arrays[name].ndim != 1:
      raise _not_fitting(folder, f"{name}.npy")
  starts, known, priority = (arrays[name] for name in ("history_starts", "history_items", "priority"))
  if len(starts) != users + 1 or starts[0] != 0 or starts[-1] != len(known) or (np.diff(starts) < 0).any():
    raise _not_fitting(folder, "history_starts.npy")
  if not _within(known, items) or len(arrays["popularity"]) != items:
    raise _not_fitting(folder, "history_items.npy or popularity.npy")
  if not np.array_equal(np.sort(priority), np.arange(items)):
    raise _not_fitting(folder, "priority.npy")
  listed, scores = golden["items"], golden["scores"]
  if golden["users"].dtype.kind != "i" or golden["users"].ndim != 1 or not _within(golden["users"], users):
    raise _not_fitting(folder, "golden.npz")
  if listed.shape != scores.shape or listed.ndim != 2 or len(listed) != len(golden["users"]) or (
      listed.dtype.kind != "i" or scores.dtype.kind != "f" or not _within(listed + 1, items + 1)):
    raise _not_fitting(folder, "golden.npz")


def _within(values, count) -> bool:
  return not len(values) or bool(((values >= 0) & (values < count)).all())


def _check_weights(folder, metadata, weights, users, items):
  """Tables of users and items have their rows. Other networks check their weights when they run."""
  if not all(x.dtype.kind in "fiub" for x in weights.values()):
    raise _not_fitting(folder, "weights")
  if metadata["inputs"] == QUERY:
    tables = [weights.get(name) for name in ("user", "item")]
    if any(x is None or x.ndim != 2 for x in tables) or [x.shape for x in tables] != [
        (users, tables[0].shape[1]), (items, tables[0].shape[1])]:
      raise _not_fitting(folder, "weights/user.npy or weights/item.npy")
    for name, rows in (("user", users), ("item", items)):
      if not _is_table(weights[name], weights.get(f"{name}_scale"), rows):
        raise _not_fitting(folder, f"weights/{name}.npy")
  tower = metadata.get("tower")
  if tower is not None and (not isinstance(tower, dict) or not isinstance(tower.get("weights"), list) or not all(
      isinstance(x, str) and x in weights for x in tower["weights"]) or not all(
      isinstance(tower.get(name), dict) and all(_is_count(n) for n in tower[name].values())
      for name in ("fields", "vectors"))):
    raise _not_fitting(folder, "`tower` in the manifest")
  vectors = metadata.get("vectors")
  if vectors is not None and (not isinstance(vectors, str) or vectors not in weights or weights[vectors].ndim != 2 or
                              len(weights[vectors]) != items):
    raise _not_fitting(folder, "`vectors` in the manifest")


def _is_table(table, scale, rows) -> bool:
  """Vectors in float32, or in int8 with a scale for each."""
  if scale is None:
    return table.dtype == np.float32
  return table.dtype == np.int8 and scale.dtype == np.float32 and scale.shape == (rows,)


def _not_fitting(folder, what) -> InputError:
  return InputError(f"{folder}: not an export: {what} is not as expected")
