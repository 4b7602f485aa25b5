"""Networks as programs of `jax.export` (StableHLO), for cpu, cuda and tpu. Weights are arguments, not constants."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from kd_jax.base import InputError
from kd_jax.serving import layout
from kd_jax.serving.layout import Contents

PLATFORMS = ("cpu", "cuda", "tpu")


def write(path: pathlib.Path, score: Callable[..., Any], weights: dict[str, np.ndarray],
          inputs: dict[str, tuple[str, Any]]) -> dict[str, np.ndarray]:
  """Exports `score(weights, **inputs) -> [b, I]`. Returns the weights that it reads, in the program's order.

  `inputs` are {name: (shape, dtype)}; shapes are texts such as "b, n", where letters stand for any size.
  """
  symbols = export.SymbolicScope()
  described = [jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=symbols), kind)
               for shape, kind in inputs.values()]

  def function(values, *arguments):
    return score(values, **dict(zip(inputs, arguments, strict=True)))

  used = _used(function, weights, described)
  absent = {name: np.broadcast_to(np.zeros((), x.dtype), x.shape) for name, x in weights.items() if name not in used}
  program = export.export(jax.jit(lambda values, *arguments: function(
      absent | dict(zip(used, values, strict=True)), *arguments)), platforms=PLATFORMS)
  with _without_locations():
    path.write_bytes(program([_described(weights[name]) for name in used], *described).serialize())
  return {name: weights[name] for name in used}


@contextlib.contextmanager
def _without_locations():
  """Leaves paths of source files, which are those of this machine, out of programs."""
  name = "jax_traceback_in_locations_limit"
  before = getattr(jax.config, name)
  jax.config.update(name, 0)
  try:
    yield
  finally:
    jax.config.update(name, before)


def _used(function, weights, described) -> list[str]:
  """The names of the weights on which the result depends."""
  names = list(weights)

  def of_leaves(values, *arguments):
    return function(dict(zip(names, values, strict=True)), *arguments)

  traced = jax.make_jaxpr(of_leaves)([_described(x) for x in weights.values()], *described).jaxpr
  needed = {id(x) for x in traced.outvars}
  for equation in reversed(traced.eqns):
    if any(id(x) in needed for x in equation.outvars):
      needed |= {id(x) for x in equation.invars}
  return [name for name, variable in zip(names, traced.invars, strict=False) if id(variable) in needed]


def _described(array) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(array.shape, array.dtype)


def read(contents: Contents, name: str = layout.PROGRAMS["stablehlo"],
         weights: Sequence[str] | None = None) -> Callable[..., np.ndarray]:
  """score(**inputs) -> [b, I], or what the program `name` with these weights returns.

  Raises InputError if this version of jax cannot read the program.
  """
  try:
    program = export.deserialize(bytearray((contents.directory / name).read_bytes()))
  except Exception as error:  # many types of exceptions are possible for a too new or too old format
    raise InputError(f"{contents.directory}: {unreadable(contents, error)}") from error
  if program.disabled_safety_checks:
    raise InputError(f"{contents.directory}: the program was exported with safety checks disabled")
  own = [jax.device_put(np.asarray(contents.weights[x])) for x in weights or contents.metadata["program"]]
  call = jax.jit(program.call)

  def score(**inputs):
    rows = len(next(iter(inputs.values())))
    size = 1 << (rows - 1).bit_length()  # every new batch size is compiled once
    padded = [np.pad(x, [(0, size - rows)] + [(0, 0)] * (x.ndim - 1)) for x in inputs.values()]
    try:
      return np.asarray(call(own, *padded))[:rows]
    except (TypeError, ValueError, jax.errors.JaxRuntimeError) as error:
      raise unreadable(contents, error) from error

  return score


def unreadable(contents: Contents, error: Exception) -> InputError:
  """The error of a program that does not run here."""
  reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
  return InputError(f"exported by jax {contents.metadata['jax']}, jax {jax.__version__} cannot "
                    f"run it: {reason}")
