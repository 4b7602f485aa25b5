"""Runs on interactions that stay on disk: an epoch goes from part to part of the users (`data.streams`).

A part is a data set of its own, whose users are counted from the first of its window. Networks have whole tables, of
which they read the rows of the window; so batches, targets and evaluation of a part are those of any data set.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kd_jax.base import Dataset
from kd_jax.evaluation import protocols
from kd_jax.training import windows

_FIRST = "first_user"  # beside the constants of a network


class Protocol(NamedTuple):
  """What `evaluate.layout` is told of a split."""

  dataset: Dataset
  split: str
  mask_validation: bool = False
  sampled: int = 0
  sampled_seed: int = 0
  only_sampled: bool = False


def measure(module: windows.WindowedNetwork, params: dict, protocol: Protocol,
            cutoffs: tuple[int, ...] = protocols.CUTOFFS) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """`evaluate.measure` of a network for all users, part by part."""
  found, dataset = [], protocol.dataset
  for first, (part, _, variables, _) in zip(dataset.stream.first, windows.parts(module, params, dataset), strict=True):
    users, values = protocols.measure(module, variables, protocols.layout(part, *protocol[1:]), cutoffs)
    if len(users):
      found.append((users + first, values))
  if not found:
    return np.zeros(0, np.int64), {}
  return np.concatenate([users for users, _ in found]), protocols.joined([values for _, values in found])
