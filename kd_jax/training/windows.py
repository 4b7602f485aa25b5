"""Runs on interactions that stay on disk: an epoch goes from part to part of the users (`data.streams`).

A part is a data set of its own, whose users are counted from the first of its window. Networks have whole tables, of
which they read the rows of the window; so batches, targets and evaluation of a part are those of any data set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import STUDENT, Dataset, InputError, Ranked, parameter_name
from kd_jax.data import streams
from kd_jax.training import graph

_FIRST = "first_user"  # beside the constants of a network


@dataclasses.dataclass(frozen=True)
class WindowedNetwork:
  """A network that sees the users of a window, those from variables["constants"]["first_user"] on."""

  full: nn.Module
  module: nn.Module  # the same, of as many users as the window has
  tables: frozenset[str]  # parameters with a row for every user

  def apply(self, variables, *args, **options):
    constants = dict(variables["constants"])
    first = constants.pop(_FIRST)
    variables = variables | {"constants": constants}
    if "params" not in variables:  # it is being initialised
      return self.full.apply(variables, *args, **options)
    rows = lambda path, x: (jax.lax.dynamic_slice_in_dim(x, first, self.module.num_users)
                            if parameter_name(path) in self.tables else x)
    variables["params"] = jax.tree_util.tree_map_with_path(rows, variables["params"])
    return self.module.apply(variables, *args, **options)

  def __getattr__(self, name):
    return getattr(self.module, name)


def check(values, dataset: Dataset, networks: dict, kds: tuple) -> None:
  """Raises InputError for what would need all interactions at once."""
  where = f"--data_memory={values.data_memory}: the interactions are streamed: "
  if values.shard_tables or values.coordinator:
    raise InputError(f"{where}neither --shard_tables nor --coordinator goes with that")
  if hasattr(networks[STUDENT], "fit"):
    raise InputError(f"{where}--model={values.model} is computed of all at once")
  if any(kd.rows == "items" or kd.neighbours or kd.remember or kd.lists.every > 1 for _, kd in kds):
    raise InputError(f"{where}a method of --kd ranks users for items, needs neighbours, or keeps something from epoch "
                     "to epoch")


def split(run: graph.Run, given: graph.Given, shapes: dict, dataset: Dataset) -> tuple[graph.Run, graph.Given]:
  """The same for parts; `shapes` is {network: shapes of its parameters}."""
  networks = tuple((name, windowed(module, shapes[name], dataset)) for name, module in run.networks)
  return run._replace(networks=networks, parts=dataset.stream.parts), of_part(given, run, dataset, 0)


def windowed(module: nn.Module, shapes: dict, dataset: Dataset) -> WindowedNetwork:
  """The network for parts of a data set; its tables of users are those parameters that a window has fewer rows of."""
  small = module.clone(num_users=dataset.stream.users)
  example = {"users": jnp.zeros(1, jnp.int32), "items": jnp.zeros((1, 2), jnp.int32)}
  init = lambda: small.apply({}, example, rngs={"params": jax.random.key(0)}, mutable=["params"])[1].get("params", {})
  pairs = zip(jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(jax.eval_shape(init)), strict=True)
  tables = frozenset(parameter_name(path) for (path, a), b in pairs if a.shape != b.shape)
  return WindowedNetwork(module, small, tables)


def of_part(given: graph.Given, run: graph.Run, dataset: Dataset, number: int) -> graph.Given:
  """`given` where all networks see the window of a part."""
  return given._replace(constants={name: _window(dataset, number) for name, _ in run.networks})


def _window(dataset, number):
  return {_FIRST: jnp.int32(dataset.stream.first[number])}


def parts(module: WindowedNetwork, params: dict, dataset: Dataset) -> Iterator[tuple[Dataset, Any, dict, slice]]:
  """(the data, the network and its variables to be used with it, the users whose own part it is) of every part."""
  stream = dataset.stream
  for number in range(stream.parts):
    own = slice(*(int(bound - stream.first[number]) for bound in stream.bounds[number : number + 2]))
    yield streams.part(dataset, number), module, {"params": params, "constants": _window(dataset, number)}, own


def listed(stored: Ranked | None, dataset: Dataset, number: int) -> Ranked | None:
  """The rows of stored lists that are of the users of a part."""
  first = int(dataset.stream.first[number])
  return stored and jax.tree.map(lambda x: x[first : first + dataset.stream.users], stored)


def order(seed: int, epoch: int, dataset: Dataset) -> np.ndarray:
  """The parts in the order of an epoch."""
  return np.random.default_rng([seed, epoch]).permutation(dataset.stream.parts)
