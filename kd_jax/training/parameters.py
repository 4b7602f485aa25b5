"""Selects parameters for training and weight decay, by patterns of names such as "networks/student/user"."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kd_jax.base import STUDENT, parameter_name


def matching(patterns: Sequence[str]) -> Callable[[Any], Any]:
  """Returns params -> tree of bool: whether the name of a parameter matches one of the shell patterns."""
  def matches(path):
    return any(fnmatch.fnmatchcase(parameter_name(path), pattern) for pattern in patterns)

  return lambda params: jax.tree_util.tree_map_with_path(lambda path, _: matches(path), params)


def freeze(optimizer: optax.GradientTransformation, patterns: Sequence[str]) -> optax.GradientTransformation:
  """The optimiser, except that parameters of the student that match a pattern are not updated."""
  if not patterns:
    return optimizer
  frozen = matching([f"networks/{STUDENT}/{pattern}" for pattern in patterns])

  def kinds(params):
    return jax.tree.map(lambda x: "frozen" if x else "trained", frozen(params))

  return optax.multi_transform({"trained": optimizer, "frozen": optax.set_to_zero()}, kinds)


@functools.cache  # equal runs need the same object
def keep_zeros(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
  """The optimiser, except that parameters of the student that are exactly 0 are not updated."""
  ours = matching([f"networks/{STUDENT}/*"])

  def masked(tree, params):
    return jax.tree.map(lambda x, p, own: jnp.where(p == 0, 0, x) if own else x, tree, params, ours(params))

  def update(updates, state, params=None, **extra):
    found, state = optimizer.update(masked(updates, params), state, params, **extra)
    return masked(found, params), state

  return optax.GradientTransformation(optimizer.init, update)
