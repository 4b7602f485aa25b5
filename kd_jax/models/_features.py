"""Shared by models that read features of the context: their inputs, and dense layers."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Array, Dataset, FeatureSpec, InputError

SMALL = nn.initializers.normal(0.01)  # for embeddings, biases and weights of linear models


class Inputs(NamedTuple):
  """The fields and vectors that a model reads. One table holds the rows of all fields, field after field."""

  fields: tuple[str, ...]
  sizes: tuple[int, ...]
  vectors: tuple[tuple[str, int], ...]  # (name, width)

  @property
  def rows(self) -> int:
    """Number of rows of the table."""
    return sum(self.sizes)

  @property
  def width(self) -> int:
    """Total width of all vectors."""
    return sum(width for _, width in self.vectors)


def inputs_of(model: str, features: FeatureSpec | None, fields: tuple[str, ...]) -> Inputs:
  """The inputs of a model: all features of the context, or those named in `fields`. Raises InputError."""
  if features is None:
    raise InputError(f"`model={model}`: the model reads features of the context, and the data has none")
  known = (*features.fields, *(name for name, _ in features.vectors))
  if wrong := [name for name in fields if name not in known]:
    raise InputError(f"`model={model}`: fields: no {wrong[0]!r} among {', '.join(known)}")

  def kept(name):
    return not fields or name in fields

  return Inputs(tuple(f for f in features.fields if kept(f)),
                tuple(n for f, n in zip(features.fields, features.sizes, strict=True) if kept(f)),
                tuple(v for v in features.vectors if kept(v[0])))


def check_widths(model: str, hidden: tuple, least: int = 0) -> None:
  """Raises InputError unless `hidden` has at least `least` layer widths, all of them positive integers."""
  if len(hidden) < least or not all(isinstance(n, int) and n > 0 for n in hidden):
    raise InputError(f"`model={model}`: hidden={hidden}: {least} or more widths of layers are needed, e.g. (128, 64)")


def constants(module: nn.Module, dataset: Dataset) -> dict[str, np.ndarray]:
  """For a module with `inputs`: `rows` [U, F], rows of the table, and `numbers` [U, W], all vectors side by side.

  Vectors of width 1 are quantities. They are scaled to mean 0 and variance 1 over the training contexts.
  """
  features, inputs = dataset.user_features, module.inputs
  offsets = np.cumsum((0, *inputs.sizes))[:-1].astype(np.int32)
  columns = [features.fields.index(f) for f in inputs.fields]
  rows = features.categories[:, columns] + offsets if columns else np.zeros((dataset.num_users, 0), np.int32)
  training = np.unique(dataset.train.users) if dataset.contexts is None else dataset.contexts["train"]
  vectors = [features.vectors[name] for name, _ in inputs.vectors]
  vectors = [_standardise(v, training) if v.shape[1] == 1 else v for v in vectors]
  return {"rows": rows, "numbers": np.concatenate([np.zeros((dataset.num_users, 0), np.float32), *vectors], axis=1)}


def _standardise(vectors, training):
  mean, deviation = vectors[training].mean(), vectors[training].std()
  return ((vectors - mean) / max(deviation, 1e-6)).astype(np.float32)


def read(module: nn.Module, users: Array) -> tuple[Array, Array]:
  """(rows of the table [B, F], numbers [B, W]) of the contexts `users`."""
  return tuple(module.get_variable("constants", k)[users] for k in ("rows", "numbers"))


def tables(module: nn.Module) -> None:
  """Returns None: these models have no table of representations that batches could share."""
  del module


def linear(module: nn.Module, rows: Array, numbers: Array) -> Array:
  """Linear scores [B, I] from a module's parameters `linear` [inputs, I] and `bias` [I]."""
  return module.bias + module.linear[rows].sum(axis=1) + numbers @ module.linear[module.inputs.rows :]


def embedded(module: nn.Module, rows: Array, numbers: Array) -> Array:
  """The embeddings of the fields, if the model has fields, and the numbers, side by side [B, width]."""
  fields = [module.embedding[rows].reshape(rows.shape[0], -1)] if module.inputs.rows else []
  return jnp.concatenate([*fields, numbers], axis=1)


def interactions(embedding: Array, rows: Array, numbers: Array) -> Array:
  """sum over pairs i < j of x_i v_i * x_j v_j -> [B, D], in linear time: Rendle, ICDM 2010, lemma 3.1."""
  values = embedding[rows]
  of_numbers = embedding[-numbers.shape[1] :] if numbers.shape[1] else embedding[:0]
  total = values.sum(axis=1) + numbers @ of_numbers
  squares = (values**2).sum(axis=1) + numbers**2 @ of_numbers**2
  return (total**2 - squares) / 2


class Tower(nn.Module):
  """Dense layers with ReLU, and with dropout in training."""

  hidden: tuple[int, ...]
  dropout: float

  @nn.compact
  def __call__(self, x):
    for width in self.hidden:
      x = nn.relu(nn.Dense(width, kernel_init=nn.initializers.glorot_uniform(), bias_init=SMALL)(x))
      x = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(x)
    return x
