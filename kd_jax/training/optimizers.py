"""Optimisers by name, see --optimizer."""

from __future__ import annotations

import fnmatch

import jax
import optax

from kd_jax.base import STUDENT, parameter_name


def make(name: str, learning_rate: float, weight_decay: float,
         frozen: tuple[str, ...] = ()) -> optax.GradientTransformation:
  """adam and sgd with coupled L2, decayed dense at every step as the literature's Adam does; or adamw.

  Parameters of the student whose names match one of the shell patterns `frozen` stay as they are.
  """
  if name == "adamw":
    optimizer = optax.adamw(learning_rate, weight_decay=weight_decay)
  else:
    optimizer = {"adam": optax.adam, "sgd": optax.sgd}[name](learning_rate)
    optimizer = optax.chain(optax.add_decayed_weights(weight_decay), optimizer) if weight_decay else optimizer
  if not frozen:
    return optimizer
  patterns = [f"networks/{STUDENT}/{pattern}" for pattern in frozen]
  matches = lambda path: any(fnmatch.fnmatchcase(parameter_name(path), pattern) for pattern in patterns)
  kinds = lambda params: jax.tree_util.tree_map_with_path(lambda p, _: "frozen" if matches(p) else "trained", params)
  return optax.multi_transform({"trained": optimizer, "frozen": optax.set_to_zero()}, kinds)
