"""New items of models with content: an item's vector from its features, without training, by a program of its own."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kd_jax.base import InputError
from kd_jax.serving import layout
from kd_jax.serving.layout import Contents
from kd_jax.serving.recommender import Recommender

_CATEGORIES = "categories"
_MOST = 1e15  # of a feature: the square of its length is a number in float32


def write(path: Any, module: Any, variables: dict[str, Any]) -> dict[str, Any] | None:
  """Writes the program of the tower of items. Returns its weights by name, its fields and its vectors.

  None, and nothing is written, if the module has no such tower or items have no features.
  """
  import jax
  import jax.numpy as jnp

  from kd_jax.serving import as_stablehlo

  features = getattr(module, "item_features", None)
  if not features or not (features.fields or features.vectors):
    return None
  tower = module.bind(variables).item.clone(count=1, parent=None)
  params = dict(variables["params"]["item"])
  if "ids" in params:  # untrained: it is left out of the fusion
    params["ids"] = np.zeros((1, module.dim), np.float32)
  leaves, structure = jax.tree_util.tree_flatten(params)
  weights = {f"tower.{number}": np.asarray(leaf) for number, leaf in enumerate(leaves)}

  def vector(weights, **given):
    own = jax.tree_util.tree_unflatten(structure, list(weights.values()))
    for name, _ in features.vectors:
      length = jnp.linalg.norm(given[name], axis=1, keepdims=True)
      given[name] = given[name] / jnp.maximum(length, np.finfo(np.float32).tiny)
    return tower.apply({"params": own}, given | {"trained": jnp.zeros(1, bool)})

  shapes = {_CATEGORIES: (f"1, {len(features.fields)}", np.int32)} if features.fields else {}
  shapes |= {name: (f"1, {width}", np.float32) for name, width in features.vectors}
  used = as_stablehlo.write(path, vector, weights, shapes)
  return {"weights": used, "fields": dict(zip(features.fields, features.sizes, strict=True)),
          "vectors": dict(features.vectors)}


def tower(contents: Contents) -> Callable[..., np.ndarray] | None:
  """vectors(count, {name: [n, width]}, {field: [n]}) -> [n, D] of an export; None if it has no program for this.

  The program is read by the first call. Raises InputError, then, if jax is not installed or the features are wrong.
  """
  about = contents.metadata.get("tower")
  if not about:
    return None

  @functools.cache
  def program():
    if not importlib.util.find_spec("jax"):
      raise InputError("`new_items`: vectors of new items are computed by jax, which is not installed")
    from kd_jax.serving import as_stablehlo

    return as_stablehlo.read(contents, layout.TOWER, about["weights"])

  def vectors(count, features, categories):
    given = _features(about, count, features, categories)
    made = [program()(**{name: x[place : place + 1] for name, x in given.items()})[0] for place in range(count)]
    return np.array(made, np.float32).reshape(count, -1)

  return vectors


def add(recommender: Recommender, ids: Sequence[str], vectors: Mapping[str, Any] | None = None,
        categories: Mapping[str, Sequence[int]] | None = None) -> Recommender:
  """A recommender that also knows the items `ids` [n], from their features.

  `vectors` is {name: [n, width]}, `categories` is {field: [n]} with codes as in the training data; the names are those
  of the model's item features. A vector of zeros is an unknown one. Scores are computed by NumPy. Raises InputError:
  the export has no program for this; a feature is missing or has another shape; an id is known already.
  """
  if recommender.tower is None:
    raise InputError(f"`new_items`: {recommender.metadata['model']} cannot make vectors of new items from features")
  if isinstance(ids, str) or not len(ids) or any(
      not isinstance(x, str) or recommender.knows_item(x) for x in ids) or len({*ids}) != len(ids):
    raise InputError("`new_items`: a list of distinct ids is expected, none of which the export has")
  return recommender.with_items(list(ids), recommender.tower(len(ids), vectors or {}, categories or {}))


def run_once(recommender: Recommender) -> None:
  """Runs the program on zeros, if there is one and jax is installed: it is compiled, or shows what it does."""
  about = recommender.metadata.get("tower")
  if about and importlib.util.find_spec("jax"):
    add(recommender, ["\0"], {name: np.zeros((1, width)) for name, width in about["vectors"].items()},
        {name: [0] for name in about["fields"]})


def _features(tower, count, vectors, categories) -> dict[str, np.ndarray]:
  if {*vectors} != {*tower["vectors"]} or {*categories} != {*tower["fields"]}:
    raise InputError(f"`vectors`, `categories`: expected are {', '.join([*tower['vectors'], *tower['fields']])}")
  found = {name: _array(vectors[name]) for name in tower["vectors"]}
  for name, width in tower["vectors"].items():
    if found[name].shape != (count, width) or found[name].dtype.kind not in "fiu" or not (
        np.abs(found[name]) < _MOST).all():
      raise InputError(f"`vectors`: {name}: numbers of shape ({count}, {width}), below {_MOST:g}, are expected")
    found[name] = found[name].astype(np.float32)
  codes = [_array(categories[name]) for name in tower["fields"]]
  for name, code in zip(tower["fields"], codes, strict=True):
    if code.shape != (count,) or code.dtype.kind not in "iu" or not (
        (code >= 0) & (code < tower["fields"][name])).all():
      raise InputError(f"`categories`: {name}: {count} codes of 0 to {tower['fields'][name] - 1} are expected")
  columns = {_CATEGORIES: np.stack(codes, axis=1).astype(np.int32)} if codes else {}
  return columns | found


def _array(values) -> np.ndarray:
  try:
    return np.asarray(values)
  except (ValueError, TypeError, OverflowError):  # lists of different lengths
    return np.zeros((), object)
