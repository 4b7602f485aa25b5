"""Storage format of the features of users and items: two tables, and JSON that describes their columns."""

from __future__ import annotations

from typing import Any

import numpy as np

from kd_jax.base import Features


def categorical(columns: dict[str, np.ndarray]) -> Features:
  """Categorical fields from columns of values [E]; a field's values are numbered in ascending order."""
  coded = [np.unique(values, return_inverse=True) for values in columns.values()]
  return Features(tuple(columns), tuple(len(values) for values, _ in coded),
                  np.stack([codes for _, codes in coded], axis=1).astype(np.int32))


def to_columns(features: Features) -> dict[str, np.ndarray]:
  """{"categories": [E, F] int32, "vectors": [E, sum of widths] float32}; absent ones left out. Raises ValueError."""
  columns = {}
  if features.fields:
    categories = features.categories
    if (categories < 0).any() or (categories >= np.array(features.sizes)).any():
      raise ValueError(f"a category is outside its field: {dict(zip(features.fields, features.sizes, strict=True))}")
    columns["categories"] = categories.astype(np.int32)
  if features.vectors:
    columns["vectors"] = np.concatenate(list(features.vectors.values()), axis=1).astype(np.float32)
    if not np.isfinite(columns["vectors"]).all():
      raise ValueError(f"a value of {', '.join(features.vectors)} is not finite")
  return columns


def describe(features: Features) -> dict[str, Any]:
  """The description that `from_columns` needs in addition to the tables, as JSON values."""
  return {"fields": list(features.fields), "sizes": [int(n) for n in features.sizes],
          "vectors": {name: vectors.shape[1] for name, vectors in features.vectors.items()}}


def from_columns(columns: dict[str, np.ndarray], about: dict[str, Any]) -> Features:
  """The inverse of `to_columns` and `describe`."""
  widths = about["vectors"]
  cuts = np.cumsum(list(widths.values()))[:-1]
  vectors = np.split(columns["vectors"], cuts, axis=1) if widths else []
  return Features(tuple(about["fields"]), tuple(about["sizes"]), columns["categories"] if about["fields"] else None,
                  dict(zip(widths, vectors, strict=True)))
