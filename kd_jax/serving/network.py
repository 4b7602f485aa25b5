"""A trained network as a function of weights and of what it reads of a request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import parameter_name
from kd_jax.serving.layout import HISTORY, QUERY, SET, USERS

_BLOCK = 4096  # users whose vectors are computed at a time


class Network(NamedTuple):
  """`score(weights, **inputs) -> [b, I]`."""

  inputs: str  # one of `layout.INPUTS`
  weights: dict[str, np.ndarray]
  score: Callable[..., Any]
  shapes: dict[str, tuple[str, Any]]  # {input: (shape, dtype)}
  length: int | None = None  # of the histories that it reads
  vectors: np.ndarray | None = None  # [I, D] of items, if scores are inner products


def of(module: Any, variables: dict[str, Any], num_users: int) -> Network:
  """The network of a module and its variables, which hold what it needs of the data but no history of a user."""
  tables = module.apply(variables, method="tables")
  if getattr(module, "reads_sequences", False):
    return _of_sequences(module, variables["params"], tables)
  if module.inner_product:
    return _of_products(module, variables, tables, num_users)
  if variables.get("constants", {}).keys() == {"history"}:
    return _of_sets(module, variables["params"], tables)
  weights, rebuild = _named({"variables": variables, "tables": tables})

  def score(weights, users):
    own = rebuild(weights)
    return module.apply(own["variables"], {"users": users}, own["tables"]).scores

  return Network(USERS, weights, score, {"users": ("b", np.int32)})


def _of_products(module, variables, tables, num_users):
  blocks = [np.arange(start, min(start + _BLOCK, num_users)) for start in range(0, num_users, _BLOCK)]
  query = jax.jit(lambda users: module.apply(variables, {"users": users}, tables).query)
  user = np.concatenate([np.asarray(query(block)) for block in blocks])
  item = np.asarray(module.apply(variables, {"users": blocks[0][:1]}, tables).items)
  return Network(QUERY, {"user": user, "item": item}, lambda weights, query: query @ weights["item"].T,
                 {"query": (f"b, {item.shape[1]}", np.float32)}, vectors=item)


def _of_sequences(module, params, tables):
  """Histories of one batch stand one after another, as those of all users do in the module's constants."""
  weights, rebuild = _named({"params": params, "tables": tables})

  def score(weights, history, lengths):
    return outputs(rebuild(weights), history, lengths).scores

  def outputs(own, history, lengths):
    ends = (1 + jnp.arange(history.shape[0], dtype=jnp.int32)) * module.length
    starts = jnp.stack([ends - lengths, ends], axis=1).reshape(-1)  # "user" 2 n has the history of row n
    constants = {"starts": starts, "items": history.reshape(-1)}
    return module.apply({"params": own["params"], "constants": constants},
                        {"users": 2 * jnp.arange(history.shape[0])}, own["tables"])

  empty = np.zeros((1, module.length), np.int32), np.ones(1, np.int32)
  vectors = np.asarray(outputs({"params": params, "tables": tables}, *empty).items)
  return Network(HISTORY, weights, score, {"history": (f"b, {module.length}", np.int32), "lengths": ("b", np.int32)},
                 module.length, vectors)


def _of_sets(module, params, tables):
  weights, rebuild = _named({"params": params, "tables": tables})

  def score(weights, history):
    own = rebuild(weights)
    return module.apply({"params": own["params"], "constants": {"history": history}},
                        {"users": jnp.arange(history.shape[0])}, own["tables"]).scores

  return Network(SET, weights, score, {"history": ("b, n", np.int32)})


def _named(tree):
  """({name: array} of the leaves of a tree, a function that makes the tree of such arrays)."""
  leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
  names = [parameter_name(path).replace("/", ".") for path, _ in leaves]
  weights = {name: np.asarray(leaf) for name, (_, leaf) in zip(names, leaves, strict=True)}
  return weights, lambda values: jax.tree_util.tree_unflatten(structure, [values[name] for name in names])
