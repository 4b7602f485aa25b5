"""A run is a graph: networks, and edges (learner <- teacher) along which methods distil.

Without edges it trains a teacher or a plain student. Nothing here knows of devices or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import optax

from kd_jax.base import KD, Array, Batch, Outputs


class Run(NamedTuple):
  """Everything static about a run. Hashable: equal runs share one compilation."""

  networks: tuple[tuple[str, Any], ...]  # (name, Flax module), learners and live teachers
  learners: tuple[str, ...]
  edges: tuple[tuple[str, str], ...]  # (learner, teacher)
  kds: tuple[tuple[float | Callable, KD], ...]  # (weight, or an optax schedule of it by epoch, method)
  loss: Callable[[Outputs, Batch], Array]  # base loss
  optimizer: optax.GradientTransformation
  reduction: str  # "sum" or "mean" over the batch
  all_items: bool = False  # does the base loss take scores of all items, not of the positive and negatives alone?
  parts: int = 1  # of an epoch, each a call of `train_epoch`
  loss_weight: float = 1.0  # of the base loss
  embedding_l2: float = 0.0  # L2 of embeddings, in the base loss


class TrainState(NamedTuple):
  """What training changes."""

  step: Array  # [] int32
  params: dict  # {"networks": {learner: ...}, "adapters": {key: ...}}
  opt_state: optax.OptState
  memory: dict = {}  # noqa: RUF012 {edge key: what samplers remember, {field: [U]}}; changed between epochs


class Given(NamedTuple):
  """What training does not change; arguments, so that no table is baked into an executable."""

  params: dict  # {frozen network: params}
  constants: dict  # {network: arrays computed from the data}
  neighbours: dict = {}  # noqa: RUF012 {how many are chosen: {side: neighbours.Neighbours}}
  labels: Array | None = None  # [U, I] bool, of labelled data


class Edge(NamedTuple):
  """One method on one edge, or on all edges of a learner if it wants all teachers at once."""

  key: str
  weight: float | Callable
  kd: KD
  learner: str
  teachers: tuple[str, ...]


def edges(run: Run) -> Iterator[Edge]:
  """Every method on every edge."""
  for i, (weight, kd) in enumerate(run.kds):
    for learner in (name for name in run.learners if kd.learner in ("", name)):
      teachers = tuple(teacher for other, teacher in run.edges if other == learner)
      for group in [teachers] if kd.all_teachers and teachers else [(t,) for t in teachers]:
        yield Edge(f"{i}:{learner}<-{'+'.join(group)}", weight, kd, learner, group)


def variables(given: Given, params: dict, name: str) -> dict:
  """The Flax variables of a network."""
  return {"params": (given.params | params["networks"])[name], "constants": given.constants.get(name, {})}


def teaches_live(run: Run, edge: Edge) -> bool:
  """Whether a teacher of the edge learns itself, so that its scores of an epoch ago are stale."""
  return bool(set(edge.teachers) & set(run.learners))
