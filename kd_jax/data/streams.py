"""Interactions that do not fit into memory: stored on disk by user, and read in parts with disjoint users."""

from __future__ import annotations

import mmap
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from kd_jax.base import Dataset, InputError, Interactions
from kd_jax.storage import sealed

BYTES = 320  # memory per interaction of a part; measured by scripts/scaling.py
_KIND = "interactions by user"
_ITEMS, _STARTS = "items.int32", "starts.npy"


class Stream(NamedTuple):
  """The locations of the interactions on disk, and the users of each part.

  Every part is a window with the same number of users, so that one compiled program serves all parts. Windows may
  overlap, but all interactions of a user are in one part.
  """

  folders: dict[str, pathlib.Path]  # by split
  starts: dict[str, np.ndarray]  # {split: [U + 1] int64, offset of each user's items}
  bounds: np.ndarray  # [parts + 1]: the interactions of users bounds[p]..bounds[p + 1] - 1 are in part p
  first: np.ndarray  # [parts], the first user of each window
  users: int  # number of users of a window

  @property
  def parts(self) -> int:
    return len(self.first)


def write(folder: pathlib.Path, blocks: Any, num_users: int, source: str) -> None:
  """Sorts interactions by user, in two passes over `blocks()`, which yields {"users", "items"} of some rows each.

  The interactions of a user keep their order. `source` is the sha256 of the split. Memory: 16 bytes per user, and one
  block. Raises InputError if the folder cannot be written.
  """
  counts = np.zeros(num_users, np.int64)
  for block in blocks():
    counts += np.bincount(block["users"], minlength=num_users)
  starts = np.concatenate([[0], np.cumsum(counts)])
  with sealed.writing(folder, _KIND, {"source": source}) as temporary:
    np.save(temporary / _STARTS, starts)
    if not starts[-1]:
      (temporary / _ITEMS).write_bytes(b"")
      return
    with open(temporary / _ITEMS, "wb") as file:  # on a full disk, writing to a file with holes would kill the process
      os.posix_fallocate(file.fileno(), 0, 4 * int(starts[-1]))
    items, free = np.memmap(temporary / _ITEMS, "<i4", "r+", shape=int(starts[-1])), starts[:-1].copy()
    for block in blocks():
      order = np.argsort(block["users"], kind="stable")
      users = block["users"][order]
      distinct, begin, size = np.unique(users, return_index=True, return_counts=True)
      items[free[users] + np.arange(len(users)) - np.repeat(begin, size)] = block["items"][order]
      free[distinct] += size
      items._mmap.madvise(mmap.MADV_DONTNEED)  # releases our memory; the page cache keeps the data
    items.flush()


def holds(folder: pathlib.Path, source: str) -> bool:
  """Whether the folder holds the split with the sha256 `source`. Raises InputError if its manifest is damaged."""
  return (folder / "manifest.json").exists() and sealed.manifest(folder, _KIND)["metadata"] == {"source": source}


def read(folders: dict[str, pathlib.Path], memory: float) -> Stream:
  """The stream of the splits in `folders`, which are verified, in parts that need at most `memory` bytes.

  Raises InputError: a damaged folder, or a user whose training interactions alone need more memory.
  """
  for folder in folders.values():
    sealed.read(folder, _KIND)
  starts = {split: sealed.read_array(folder / _STARTS) for split, folder in folders.items()}
  train, most = starts["train"], int(memory // BYTES)
  longest = np.diff(train).max()
  if longest > most:
    raise InputError(f"`data_memory`: a user has {longest:,} interactions, so {BYTES * longest / 1e9:.3g} GB are the "
                     "least")
  parts = -(-int(train[-1]) // (most - longest + 1))  # a part ends with the user at which it reaches an equal share
  shares = np.arange(1, parts) * (train[-1] / parts)
  bounds = np.unique(np.concatenate([[0], np.searchsorted(train, shares), [len(train) - 1]]))
  users = int(np.diff(bounds).max())
  return Stream(folders, starts, bounds, np.minimum(bounds[:-1], len(train) - 1 - users), users)


def steps(stream: Stream, batch_size: int) -> int:
  """The number of batches of every part, which is what the largest part needs."""
  return -(-int(np.diff(stream.starts["train"][stream.bounds]).max()) // batch_size)


def popularity(stream: Stream, split: str, num_items: int) -> np.ndarray:
  """The number of interactions of every item in a split, [I]."""
  counts = np.zeros(num_items, np.int64)
  for number in range(stream.parts):
    counts += np.bincount(_items(stream, split, number), minlength=num_items)
  return counts


def part(dataset: Dataset, number: int) -> Dataset:
  """The users of a window as a separate data set; user indices count from the first user of the window."""
  stream, first = dataset.stream, int(dataset.stream.first[number])
  users = np.arange(stream.bounds[number], stream.bounds[number + 1])
  of = {split: Interactions(np.repeat(users - first, np.diff(starts)[users]).astype(np.int32),
                            _items(stream, split, number)) for split, starts in stream.starts.items()}
  return dataset._replace(num_users=stream.users, user_ids=dataset.user_ids[first : first + stream.users], stream=None,
                          **of)


def _items(stream, split, number) -> np.ndarray:
  begin, end = stream.starts[split][stream.bounds[number : number + 2]]
  path = stream.folders[split] / _ITEMS
  return np.fromfile(path, "<i4", int(end - begin), offset=4 * int(begin))
