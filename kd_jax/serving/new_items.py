"""New items of models with content: an item's vector from its features, without training, by a program of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kd_jax.base import InputError
from kd_jax.serving import as_npz, as_stablehlo, int8, layout
from kd_jax.serving.recommender import Recommender

_CATEGORIES = "categories"


def write(path: Any, module: Any, variables: dict[str, Any]) -> dict[str, Any] | None:
  """Writes the program of the tower of items. Returns its weights by name, its fields and its vectors.

  None, and nothing is written, if the module has no such tower or items have no features.
  """
  import jax
  import jax.numpy as jnp

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


def add(recommender: Recommender, ids: Sequence[str], vectors: Mapping[str, Any] | None = None,
        categories: Mapping[str, Sequence[int]] | None = None) -> Recommender:
  """A recommender that also knows the items `ids` [n], from their features.

  `vectors` is {name: [n, width]}, `categories` is {field: [n]} with codes as in the training data; the names are those
  of the model's item features. A vector of zeros is an unknown one. Scores are computed by NumPy. Raises InputError:
  the export has no program for this; a feature is missing or has another shape; an id is known already.
  """
  contents, tower = recommender.contents, recommender.metadata.get("tower")
  if not tower:
    raise InputError(f"`ids`: {recommender.metadata['model']} cannot make vectors of new items from features")
  known = {*contents.item_ids}
  if isinstance(ids, str) or any(not isinstance(x, str) or x in known for x in ids) or len({*ids}) != len(ids):
    raise InputError("`ids`: a list of distinct ids is expected, none of which the export has")
  given = _features(tower, len(ids), vectors or {}, categories or {})
  score = as_stablehlo.read(contents, layout.TOWER, tower["weights"])
  made = [score(**{name: value[place : place + 1] for name, value in given.items()})[0] for place in range(len(ids))]
  table = int8.restore(contents.weights["item"], contents.weights.get("item_scale"))
  item = np.concatenate([table, np.array(made, np.float32).reshape(-1, table.shape[1])])
  weights = {name: x for name, x in contents.weights.items() if name != "item_scale"} | {"item": item}
  more = np.zeros(len(ids), np.int64)
  contents = contents._replace(
      item_ids=[*contents.item_ids, *ids], weights=weights, popularity=np.concatenate([contents.popularity, more]),
      priority=np.concatenate([contents.priority, len(table) + np.arange(len(ids), dtype=np.int32)]))
  return Recommender(contents, as_npz.read(contents))


def _features(tower, count, vectors, categories) -> dict[str, np.ndarray]:
  if {*vectors} != {*tower["vectors"]} or {*categories} != {*tower["fields"]}:
    raise InputError(f"`vectors`, `categories`: expected are {', '.join([*tower['vectors'], *tower['fields']])}")
  found = {name: np.asarray(vectors[name]) for name in tower["vectors"]}
  for name, width in tower["vectors"].items():
    if found[name].shape != (count, width) or found[name].dtype.kind not in "fiu" or not np.isfinite(found[name]).all():
      raise InputError(f"`vectors`: {name}: finite numbers of shape ({count}, {width}) are expected")
    found[name] = found[name].astype(np.float32)
  codes = [np.asarray(categories[name]) for name in tower["fields"]]
  for name, code in zip(tower["fields"], codes, strict=True):
    if code.shape != (count,) or code.dtype.kind not in "iu" or not (
        (code >= 0) & (code < tower["fields"][name])).all():
      raise InputError(f"`categories`: {name}: {count} codes of 0 to {tower['fields'][name] - 1} are expected")
  columns = {_CATEGORIES: np.stack(codes, axis=1).astype(np.int32)} if codes else {}
  return columns | found
