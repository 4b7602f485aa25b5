"""Evaluation on streamed interactions: one part of the users after the other, see `training.windows`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kd_jax.base import Dataset
from kd_jax.evaluation import metric_names, protocols
from kd_jax.evaluation.metric_names import Metrics
from kd_jax.training import windows


class Protocol(NamedTuple):
  """The arguments of `protocols.layout`. Each part of the data is prepared only when it is evaluated."""

  dataset: Dataset
  split: str
  mask_validation: bool = False
  sampled: int = 0
  sampled_seed: int = 0
  only_sampled: bool = False


def measure(module: windows.WindowedNetwork, params: dict, protocol: Protocol,
            metrics: Metrics | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """`protocols.measure` for streamed data: ranks each part of the users, then computes metrics from all ranks."""
  metrics = metric_names.usual("interactions") if metrics is None else metrics
  lists, found, dataset = max(metric.lists for metric in metrics.values()), [], protocol.dataset
  for first, (part, _, variables, _) in zip(dataset.stream.first, windows.parts(module, params, dataset), strict=True):
    ranks = protocols.ranked(module, variables, protocols.layout(part, *protocol[1:]), lists)
    if len(ranks.held.users):
      found.append(ranks._replace(held=ranks.held._replace(users=ranks.held.users + first)))
  if not found:
    return np.zeros(0, np.int64), {}
  return protocols.values(protocols.joined(found), metrics, dataset)
