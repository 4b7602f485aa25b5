"""Batches of histories: a model encodes a history once for all examples of it, which are consecutive in a row."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import jax
import numpy as np

from kd_jax.base import Batch, InputError, Interactions
from kd_jax.training import batches


class Packing(NamedTuple):
  """Segments of histories, longest first, and their places in rows of `length`."""

  length: int
  order: np.ndarray  # [N] interactions by user and time
  position: np.ndarray  # [N] position of each interaction in its user's history
  starts: np.ndarray  # [segments] start of each segment in `order`
  sizes: np.ndarray  # [segments], descending
  places: np.ndarray  # [segments] place for a segment of that size: row * length + column
  num_rows: int


def pack(train: Interactions, length: int) -> Packing:
  """Cuts every history, from its end, into segments of `length`. Its first item is not an example: nothing precedes it.

  A row holds several segments of different users. The number of rows depends only on the sizes of the segments, so
  that every epoch has the same number of steps.
  """
  order, position = batches.by_time(train)
  users, place = train.users[order], position[order]
  from_end = np.bincount(train.users)[users] - 1 - place
  predicted = np.flatnonzero(place > 0)
  if not len(predicted):
    raise InputError("`data`: no user has two training interactions, and a sequence model learns from no less")
  key = np.stack([users, from_end // length])[:, predicted]
  begins = np.flatnonzero(np.any(np.diff(key, axis=1, prepend=-1), axis=0))
  sizes = np.diff(begins, append=len(predicted))
  longest = np.argsort(-sizes, kind="stable")
  places, num_rows = _fill(np.bincount(sizes, minlength=length + 1), length)
  return Packing(length, order, position, predicted[begins][longest], sizes[longest], places, num_rows)


def _fill(counts: np.ndarray, length: int) -> tuple[np.ndarray, int]:
  """Places for `counts[s]` segments of every size s, longest first: a row takes the longest segment that still fits."""
  left, places, num_rows = counts.tolist(), [[] for _ in counts], 0
  for largest in range(length, 0, -1):
    while left[largest]:
      size, column = largest, 0
      while size:
        while size and not left[size]:
          size -= 1
        if size:
          left[size] -= 1
          places[size].append(num_rows * length + column)
          column += size
        size = min(size, length - column)
      num_rows += 1
  return np.concatenate(places[::-1]).astype(np.int64), num_rows


def plan(seed: int, epoch: int, train: Interactions, packing: Packing, batch_size: int, kd_per: str,
         distilled: Collection[str] = ("users", "items")) -> Batch:
  """Like `batches.plan`, with batches of whole rows: B is the largest multiple of `packing.length` <= `batch_size`.

  Also returns `position` [S, B], the position of an example in its user's history, and `place` [S, B], the position
  of the preceding item in the input of the model, which has `packing.length` positions: a segment ends at the last one.
  """
  rng, length = np.random.default_rng([seed, epoch]), packing.length
  per_step = rows_per_step(batch_size, length)
  steps = -(-packing.num_rows // per_step)
  shuffled = np.lexsort((rng.random(len(packing.sizes)), -packing.sizes))  # shuffles segments of equal size
  row = rng.permutation(packing.num_rows)[packing.places // length]

  def spread(x):
    return np.repeat(x, packing.sizes)

  nth = np.arange(packing.sizes.sum()) - spread(np.cumsum(packing.sizes) - packing.sizes)
  where = spread(row * length + packing.places % length) + nth
  shape = steps, per_step * length
  rows, position, place, weight = (np.zeros(shape, t) for t in (np.int32, np.int32, np.int32, np.float32))
  rows.flat[where] = packing.order[spread(packing.starts[shuffled]) + nth]
  position.flat[where] = packing.position[rows.flat[where]]
  place.flat[where] = length - spread(packing.sizes) + nth
  weight.flat[where] = 1
  batch = {"rows": rows, "weight": weight, "position": position, "place": place}
  return batch | batches.distinct(train, rows, weight, kd_per, distilled)


def rows_per_step(batch_size: int, length: int) -> int:
  """The number of rows of `length` in a batch. Raises InputError if it is 0 or not divisible by the devices."""
  rows = batch_size // length
  if not rows or rows % jax.device_count():
    raise InputError(f"`batch_size={batch_size}`: holds {rows} sequences of {length}, for {jax.device_count()} devices")
  return rows
