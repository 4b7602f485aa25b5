"""Training on streamed interactions: an epoch reads one part of the users after the other (`data.streams`).

A part is a separate data set; its user indices start at 0 with the first user of its window. Networks have whole
tables and read only the rows of the window, so the code for batches, targets and evaluation is the same for a part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Dataset, Ranked, parameter_name
from kd_jax.data import streams
from kd_jax.training import graph

_FIRST = "first_user"  # stored next to the constants of a network


@dataclasses.dataclass(frozen=True)
class WindowedNetwork:
  """A network for the users of a window; the window starts at variables["constants"]["first_user"]."""

  full: nn.Module
  module: nn.Module  # the same, with the number of users of the window
  tables: frozenset[str]  # parameters with a row for every user

  def apply(self, variables, *args, **options):
    constants = dict(variables["constants"])
    first = constants.pop(_FIRST)
    variables = variables | {"constants": constants}
    if "params" not in variables:  # initialisation
      return self.full.apply(variables, *args, **options)

    def rows(path, x):
      return (jax.lax.dynamic_slice_in_dim(x, first, self.module.num_users)
                                if parameter_name(path) in self.tables else x)

    variables["params"] = jax.tree_util.tree_map_with_path(rows, variables["params"])
    return self.module.apply(variables, *args, **options)

  def __getattr__(self, name):
    return getattr(self.module, name)


def split(run: graph.Run, given: graph.Given, shapes: dict, dataset: Dataset) -> tuple[graph.Run, graph.Given]:
  """Changes a run to train on parts; `shapes` is {network: shapes of its parameters}."""
  networks = tuple((name, windowed(module, shapes[name], dataset)) for name, module in run.networks)
  return run._replace(networks=networks, parts=dataset.stream.parts), of_part(given, run, dataset, 0)


def windowed(module: nn.Module, shapes: dict, dataset: Dataset) -> WindowedNetwork:
  """The network for parts of a data set. Its user tables are the parameters that are smaller for a window."""
  small = module.clone(num_users=dataset.stream.users)
  example = {"users": jnp.zeros(1, jnp.int32), "items": jnp.zeros((1, 2), jnp.int32)}

  def init():
    return small.apply({}, example, rngs={"params": jax.random.key(0)}, mutable=["params"])[1].get("params", {})

  pairs = zip(jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(jax.eval_shape(init)), strict=True)
  tables = frozenset(parameter_name(path) for (path, a), b in pairs if a.shape != b.shape)
  return WindowedNetwork(module, small, tables)


def of_part(given: graph.Given, run: graph.Run, dataset: Dataset, number: int) -> graph.Given:
  """`given` with all networks set to the window of a part."""
  return given._replace(constants={name: _window(dataset, number) for name, _ in run.networks})


def _window(dataset, number):
  return {_FIRST: jnp.int32(dataset.stream.first[number])}


def parts(module: WindowedNetwork, params: dict, dataset: Dataset) -> Iterator[tuple[Dataset, Any, dict, slice]]:
  """Yields (data, network, its variables, slice of the users that belong to the part) for every part."""
  stream = dataset.stream
  for number in range(stream.parts):
    own = slice(*(int(bound - stream.first[number]) for bound in stream.bounds[number : number + 2]))
    yield streams.part(dataset, number), module, {"params": params, "constants": _window(dataset, number)}, own


def listed(stored: Ranked | None, dataset: Dataset, number: int) -> Ranked | None:
  """The rows of stored lists for the users in the window of a part."""
  first = int(dataset.stream.first[number])
  return stored and jax.tree.map(lambda x: x[first : first + dataset.stream.users], stored)


def order(seed: int, epoch: int, dataset: Dataset) -> np.ndarray:
  """The random order of the parts in an epoch."""
  return np.random.default_rng([seed, epoch]).permutation(dataset.stream.parts)
