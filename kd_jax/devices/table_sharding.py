"""Tables split by rows over all devices: each device holds its share of the rows and of their optimiser moments.

If the number of devices does not divide the number of rows, tables are padded with rows of zeros. Networks do not see
these rows, and checkpoints do not contain them.
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
_FEWEST = 64  # minimum number of rows of a split table; smaller arrays, such as hidden layers, are copied


@dataclasses.dataclass(frozen=True)
class SplitNetwork:
  """A network whose tables are padded; it gets them without the padding rows."""

  module: nn.Module
  rows: tuple[tuple[str, int], ...]  # (table, number of rows without padding)

  def apply(self, variables, *args, **options):
    if "params" not in variables:  # during initialisation
      out, made = self.module.apply(variables, *args, **options)
      return out, made | {"params": _pad(made.get("params", {}))}
    rows = dict(self.rows)

    def own(path, x):
      return x[: rows[parameter_name(path)]] if _is_table(x) else x

    variables = variables | {"params": jax.tree_util.tree_map_with_path(own, variables["params"])}
    return self.module.apply(variables, *args, **options)

  def whole(self, scores):
    """Replicates `scores` [B, I], computed by rows. The barrier makes XLA replicate the scores, not the tables."""
    scores = jax.lax.with_sharding_constraint(scores, over_mesh(None, AXIS))
    return jax.lax.with_sharding_constraint(jax.lax.optimization_barrier(scores), over_mesh())

  def __getattr__(self, name):
    return getattr(self.module, name)


def split(run: graph.Run, given: graph.Given, learners: dict) -> tuple[graph.Run, graph.Given]:
  """The same run with split tables; `learners` is {learner: shapes of its parameters}."""
  rows = {name: tuple((parameter_name(path), x.shape[0]) for path, x in
                      jax.tree_util.tree_leaves_with_path(own) if _is_table(x))
          for name, own in (given.params | learners).items()}
  networks = tuple((name, SplitNetwork(module, rows[name])) for name, module in run.networks)
  return run._replace(networks=networks), given._replace(params=place_rows(given.params))


def is_split(run: graph.Run) -> bool:
  """Whether `run` is a result of `split`."""
  return any(isinstance(module, SplitNetwork) for _, module in run.networks)


def over_mesh(*axes: str | None) -> NamedSharding:
  """A sharding that splits the named axes of an array over all devices; without axes the array is replicated."""
  return NamedSharding(Mesh(np.array(jax.devices()), (AXIS,)), PartitionSpec(*axes))


def by_rows(tree: Any) -> Any:
  """The shardings of the arrays of `tree`: tables are split by rows, everything else is replicated."""
  def divides(x):
    return _is_table(x) and x.shape[0] % jax.device_count() == 0

  return jax.tree.map(lambda x: over_mesh(AXIS) if divides(x) else over_mesh(), tree)


def place_rows(tree: Any) -> Any:
  """Pads and splits the tables of `tree`. Of a NumPy array, each device receives only its share."""
  tree = _pad(tree)
  return jax.device_put(tree, by_rows(tree))


def split_rows(tree: Any) -> Any:
  """`place_rows` for compiled functions: each device computes its share of the tables."""
  tree = _pad(tree)
  return jax.lax.with_sharding_constraint(tree, by_rows(tree))


def initialise(run: graph.Run, init: Callable[[], graph.TrainState]) -> graph.TrainState:
  """`init()`; if `run` is split, no device ever holds a full table."""
  return jax.jit(init, out_shardings=by_rows(jax.eval_shape(init)))() if is_split(run) else init()


def resize(tree: Any, like: Any) -> Any:
  """`tree` with the numbers of rows of `like`: padding rows are removed or added, on the host."""

  def rows(x, y):
    if x.shape == y.shape:
      return x
    x = np.asarray(x)[: y.shape[0]]
    return np.pad(x, [(0, y.shape[0] - x.shape[0])] + [(0, 0)] * (x.ndim - 1))

  return jax.tree.map(rows, tree, like)


def _is_table(x):
  return x.ndim >= 2 and x.shape[0] >= _FEWEST


def _pad(tree):
  def rows(x):
    return -x.shape[0] % jax.device_count() if _is_table(x) else 0

  def pad(x):
    return (np if isinstance(x, np.ndarray) else jnp).pad(x, [(0, rows(x))] + [(0, 0)] * (x.ndim - 1))

  return jax.tree.map(lambda x: pad(x) if rows(x) else x, tree)
