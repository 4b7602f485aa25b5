"""Tables split by rows over all devices: each holds its share of the rows, and of the moments of these.

Where devices do not divide the rows, rows of zeros follow, which networks never see and checkpoints do not hold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kd_jax.base import parameter_name
from kd_jax.training import graph

AXIS = "data"
_FEWEST = 64  # rows of a table that is split; smaller arrays, as of hidden layers, are copied


@dataclasses.dataclass(frozen=True)
class SplitNetwork:
  """A network whose tables have rows at the end that it never sees."""

  module: nn.Module
  rows: tuple[tuple[str, int], ...]  # (table, its own rows)

  def apply(self, variables, *args, **options):
    if "params" not in variables:  # it is being initialised
      out, made = self.module.apply(variables, *args, **options)
      return out, made | {"params": _pad(made.get("params", {}))}
    rows = dict(self.rows)
    own = lambda path, x: x[: rows[parameter_name(path)]] if _is_table(x) else x
    variables = variables | {"params": jax.tree_util.tree_map_with_path(own, variables["params"])}
    return self.module.apply(variables, *args, **options)

  def whole(self, scores):
    """`scores` [B, I], computed from the rows of each device, on every device; without the barrier tables would be."""
    scores = jax.lax.with_sharding_constraint(scores, over_mesh(None, AXIS))
    return jax.lax.with_sharding_constraint(jax.lax.optimization_barrier(scores), over_mesh())

  def __getattr__(self, name):
    return getattr(self.module, name)


def split(run: graph.Run, given: graph.Given, learners: dict) -> tuple[graph.Run, graph.Given]:
  """The same with tables split; `learners` is {learner: shapes of its parameters}."""
  rows = {name: tuple((parameter_name(path), x.shape[0]) for path, x in
                      jax.tree_util.tree_leaves_with_path(own) if _is_table(x))
          for name, own in (given.params | learners).items()}
  networks = tuple((name, SplitNetwork(module, rows[name])) for name, module in run.networks)
  return run._replace(networks=networks), given._replace(params=place_rows(given.params))


def is_split(run: graph.Run) -> bool:
  """Whether `run` is one of `split`."""
  return any(isinstance(module, SplitNetwork) for _, module in run.networks)


def over_mesh(*axes: str | None) -> NamedSharding:
  """The named axes of an array are split over all devices; without any it is on each of them."""
  return NamedSharding(Mesh(np.array(jax.devices()), (AXIS,)), PartitionSpec(*axes))


def by_rows(tree: Any) -> Any:
  """Where the arrays of `tree` are: tables split by rows, all else on every device."""
  divides = lambda x: _is_table(x) and x.shape[0] % jax.device_count() == 0
  return jax.tree.map(lambda x: over_mesh(AXIS) if divides(x) else over_mesh(), tree)


def place_rows(tree: Any) -> Any:
  """Splits the tables of `tree`, with rows of zeros at their ends; those of NumPy go to each device by its share."""
  tree = _pad(tree)
  return jax.device_put(tree, by_rows(tree))


def split_rows(tree: Any) -> Any:
  """`place_rows` inside a compiled function: each device computes its share of the tables."""
  tree = _pad(tree)
  return jax.lax.with_sharding_constraint(tree, by_rows(tree))


def initialise(run: graph.Run, init: Callable[[], graph.TrainState]) -> graph.TrainState:
  """`init()`; where `run` is split, no device ever holds a whole table."""
  return jax.jit(init, out_shardings=by_rows(jax.eval_shape(init)))() if is_split(run) else init()


def resize(tree: Any, like: Any) -> Any:
  """`tree` with the rows of `like`: rows of zeros are cut off, or added, on the host."""

  def rows(x, y):
    if x.shape == y.shape:
      return x
    x = np.asarray(x)[: y.shape[0]]
    return np.pad(x, [(0, y.shape[0] - x.shape[0])] + [(0, 0)] * (x.ndim - 1))

  return jax.tree.map(rows, tree, like)


def _is_table(x):
  return x.ndim >= 2 and x.shape[0] >= _FEWEST


def _pad(tree):
  rows = lambda x: -x.shape[0] % jax.device_count() if _is_table(x) else 0
  pad = lambda x: (np if isinstance(x, np.ndarray) else jnp).pad(x, [(0, rows(x))] + [(0, 0)] * (x.ndim - 1))
  return jax.tree.map(lambda x: pad(x) if rows(x) else x, tree)
