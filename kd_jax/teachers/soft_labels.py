"""The soft-label store: a teacher's ranked list for every user, so that students need no live teacher.

For each user, it holds the K best items, their scores, and the teacher's total probability of all other items. Wrong
labels would train a worse student without any error. Therefore the store contains hashes of its data, and every value
is checked when it is written and when it is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from kd_jax.base import Dataset, InputError
from kd_jax.storage import sealed

KIND = "soft_labels"
# In this order, the first difference is the cause of later ones.
_COMPARED = ("item_ids", "user_ids", "train", "validation", "test")
_REQUIRED = ("item_ids", "user_ids", "train")


class SoftLabels(NamedTuple):
  """A whole store. Row u belongs to user index u of the data set."""

  items: np.ndarray  # [U, K] int32, best first; rows with fewer than K items end with -1
  scores: np.ndarray  # [U, K] float32, non-increasing; -inf if the item is -1
  tail_mass: np.ndarray  # [U] float32 in [0, 1], the softmax probability of all items not listed
  metadata: dict[str, Any]  # num_users, num_items, top_k, exclude_seen, users_per_shard, provenance


def write(
  directory: str | os.PathLike,
  blocks: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
  *,
  num_users: int,
  num_items: int,
  top_k: int,
  exclude_seen: bool,
  provenance: dict[str, Any],
  users_per_shard: int = 4096,
) -> None:
  """Writes a store from blocks (items [n, K], scores [n, K], tail_mass [n]) in user order; n may vary.

  `exclude_seen` states that the lists exclude each user's training items. `provenance` is JSON: "hashes"
  (`Dataset.hashes`; "train", "user_ids" and "item_ids" are required), and a description of the teacher, e.g. the
  sha256 of its manifest, its model call, and the call of the data set.

  Raises InputError, and leaves no file, if a value is invalid (with the user) or the disk is full. Clip rounding
  errors of the tail mass first: 1.0000001 is invalid.
  """
  missing = [key for key in _REQUIRED if not provenance.get("hashes", {}).get(key)]
  if missing:
    raise InputError(f"{directory}: the provenance has no hash of {', '.join(missing)}")
  metadata = {"num_users": num_users, "num_items": num_items, "top_k": top_k, "exclude_seen": exclude_seen}
  metadata |= {"users_per_shard": users_per_shard, "provenance": provenance}
  with sealed.writing(directory, KIND, metadata) as temporary:
    first = 0
    for number, shard in enumerate(_reblock(blocks, top_k, users_per_shard)):
      if first + len(shard[0]) > num_users:
        raise InputError(f"{directory}: more rows than the {num_users} users")
      checked = _checked(*shard, first_user=first, num_items=num_items, where=directory)
      np.savez(temporary / _shard_name(number), **checked)
      first += len(shard[0])
    if first != num_users:
      raise InputError(f"{directory}: rows of {first} users, expected {num_users}")


def read(directory: str | os.PathLike, dataset: Dataset) -> SoftLabels:
  """Reads a whole store into memory: U * (8 * K + 4) bytes, and twice this while reading.

  Raises InputError with one line if a file differs from the manifest, the store was made from other data (with the
  part that differs), or a value is invalid (with the user).
  """
  metadata = sealed.read(directory, KIND)
  try:
    num_users, num_items, top_k, size = (
      int(metadata[key]) for key in ("num_users", "num_items", "top_k", "users_per_shard")
    )
    hashes = dict(metadata["provenance"]["hashes"])
  except (KeyError, TypeError, ValueError) as error:
    raise InputError(f"{directory}: the metadata is not that of a soft-label store ({error!r})") from None
  _check_dataset(directory, num_users, num_items, metadata["provenance"].get("data"), hashes, dataset)
  parts = []
  for number, first in enumerate(range(0, num_users, max(1, size))):
    path = os.path.join(directory, _shard_name(number))
    shape = (min(size, num_users - first), top_k)
    parts.append(_checked(*_load(path, shape), first_user=first, num_items=num_items, where=path))
  names = ("items", "scores", "tail_mass")
  return SoftLabels(*(np.concatenate([part[name] for part in parts]) for name in names), metadata)


def truncation(labels: SoftLabels) -> dict[str, float]:
  """What the store does not contain: mean and maximum tail mass over users, and the number of rows shorter than K."""
  return {
    "top_k": labels.items.shape[1],
    "tail_mass_mean": float(labels.tail_mass.mean(dtype=np.float64)),
    "tail_mass_max": float(labels.tail_mass.max()),
    "short_rows": int((labels.items[:, -1] < 0).sum()),
  }


def _shard_name(number) -> str:
  return f"shard-{number:05d}.npz"


def _reblock(blocks, top_k, size) -> Iterator[tuple[np.ndarray, ...]]:
  """Cuts and joins blocks into shards of `size` users. Holds one shard and one block in memory."""
  if size < 1 or top_k < 1:
    raise InputError(f"users_per_shard={size} and top_k={top_k} must be positive")
  pending, count = [], 0
  for block in blocks:
    block = tuple(np.asarray(part) for part in block)
    n = len(block[0])
    if [part.shape for part in block] != [(n, top_k), (n, top_k), (n,)]:
      raise InputError(f"a block has shapes {[p.shape for p in block]}, expected [n, {top_k}] twice and [n]")
    start = 0
    while start < n:
      taken = min(size - count, n - start)
      pending.append(tuple(part[start : start + taken] for part in block))
      start, count = start + taken, count + taken
      if count == size:
        yield _join(pending)
        pending, count = [], 0
  if pending:
    yield _join(pending)


def _join(pending):
  return tuple(np.concatenate(parts) for parts in zip(*pending, strict=True))


def _checked(items, scores, tail_mass, *, first_user, num_items, where) -> dict[str, np.ndarray]:
  """Checks the arrays, and returns them as int32 and float32. Raises InputError with the first invalid row."""

  def refuse(bad, what):
    rows = bad.reshape(len(bad), -1)
    if rows.any():
      row = int(rows.any(axis=1).argmax())
      raise InputError(f"{where}: user {first_user + row}: {what}")

  if items.dtype.kind not in "iu":
    raise InputError(f"{where}: item ids are {items.dtype}, expected integers")
  refuse((items < -1) | (items >= num_items), f"an item id outside 0..{num_items - 1}")
  items = items.astype(np.int32)
  scores, tail_mass = scores.astype(np.float32), tail_mass.astype(np.float32)
  empty = items < 0
  refuse(empty[:, :-1] & ~empty[:, 1:], "-1 before the end of the row")
  refuse(np.isnan(scores) | (~empty & np.isinf(scores)), "a score is NaN or infinite")
  refuse(empty & (scores != -np.inf), "the score of an empty place is not -inf")
  refuse(scores[:, :-1] < scores[:, 1:], "scores increase along the row")
  ordered = np.sort(items, axis=1)
  refuse((ordered[:, :-1] == ordered[:, 1:]) & (ordered[:, 1:] >= 0), "an item is listed twice")
  refuse(~((tail_mass >= 0) & (tail_mass <= 1)), "the tail mass is outside 0..1")
  return {"items": items, "scores": scores, "tail_mass": tail_mass}


def _load(path, shape):
  expected = {"items": (shape, "int32"), "scores": (shape, "float32"), "tail_mass": (shape[:1], "float32")}
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
  except sealed.NOT_ARRAYS as error:
    raise InputError(f"{path}: not a shard of a soft-label store: {error}") from None
  found = {name: (array.shape, array.dtype.name) for name, array in arrays.items()}
  if found != expected:
    raise InputError(f"{path}: holds {found}, expected {expected}")
  return tuple(arrays[name] for name in expected)


def _check_dataset(directory, num_users, num_items, made_from, hashes, dataset):
  source = f" (made from {made_from})" if made_from else ""
  advice = f"give the data set it was made from{source}, or make it anew"
  for what, stored, present in (
    ("items", num_items, dataset.num_items),
    ("users", num_users, dataset.num_users),
  ):
    if stored != present:
      raise InputError(f"{directory}: made for {stored} {what}, {dataset.name} has {present}; {advice}")
  for key in _COMPARED:
    stored, present = hashes.get(key), dataset.hashes.get(key)
    if stored != present and ((stored and present) or key in _REQUIRED):
      raise InputError(
        f"{directory}: made for other data: {key} has sha256 {str(stored)[:12]}, in {dataset.name} "
        f"{str(present)[:12]}; {advice}"
      )
