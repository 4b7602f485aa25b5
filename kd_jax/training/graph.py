"""A run as a graph: nodes are networks, and methods distil along edges (learner <- teacher).

A run without edges trains a teacher or a plain student. This module does not use devices or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import optax

from kd_jax.base import KD, Array, Objective


class Run(NamedTuple):
  """The static part of a run. Hashable: equal runs share one compilation."""

  networks: tuple[tuple[str, Any], ...]  # (name, Flax module), learners and live teachers
  learners: tuple[str, ...]
  edges: tuple[tuple[str, str], ...]  # (learner, teacher)
  kds: tuple[tuple[float | Callable, KD], ...]  # (weight or an optax schedule of the epoch, method)
  objective: Objective  # base loss
  optimizer: optax.GradientTransformation
  reduction: str  # "sum" or "mean" over the batch
  parts: int = 1  # parts of an epoch; `train_epoch` is called once per part
  loss_weight: float = 1.0  # weight of the base loss
  embedding_l2: float = 0.0  # weight of the L2 of embeddings in the base loss


OWN_LOSS = "own_loss"  # key in `TrainState.memory`: the last loss of every row, for methods with `own_loss`


class TrainState(NamedTuple):
  """The state that training changes."""

  step: Array  # [] int32
  params: dict  # {"networks": {learner: ...}, "adapters": {key: ...}}
  opt_state: optax.OptState
  memory: dict = {}  # noqa: RUF012 {edge key: {remembered field: [U]}}; changed between epochs


class Given(NamedTuple):
  """Arrays that training does not change. They are arguments, so that executables contain no tables as constants."""

  params: dict  # {frozen network: params}
  constants: dict  # {network: arrays computed from the data}
  neighbours: dict = {}  # noqa: RUF012 {number of chosen neighbours: {side: neighbours.Neighbours}}
  labels: Array | None = None  # [U, I] bool, for labelled data


class Edge(NamedTuple):
  """One method on one edge, or, with `all_teachers`, on all edges of a learner."""

  key: str
  weight: float | Callable
  kd: KD
  learner: str
  teachers: tuple[str, ...]


def edges(run: Run) -> Iterator[Edge]:
  """Yields every method on every edge."""
  for i, (weight, kd) in enumerate(run.kds):
    for learner in (name for name in run.learners if kd.learner in ("", name)):
      teachers = tuple(teacher for other, teacher in run.edges if other == learner)
      for group in [teachers] if kd.all_teachers and teachers else [(t,) for t in teachers]:
        yield Edge(f"{i}:{learner}<-{'+'.join(group)}", weight, kd, learner, group)


def variables(given: Given, params: dict, name: str) -> dict:
  """The Flax variables of a network."""
  return {"params": (given.params | params["networks"])[name], "constants": given.constants.get(name, {})}


def teaches_live(run: Run, edge: Edge) -> bool:
  """Whether a teacher of the edge is trained, too; its scores from an earlier epoch are then outdated."""
  return bool(set(edge.teachers) & set(run.learners))
