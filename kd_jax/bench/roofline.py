"""Counts the operations that a function needs, and measures the arithmetic rate and bandwidth of this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from kd_jax.base import Array


def with_gradient(function: Callable, arguments: tuple) -> int:
  """Floating-point operations of the matrix products in `function(*arguments)` and its gradient to all arguments.

  Operations of the gradient are counted in forward mode, since a product and its transpose cost the same. Values that
  the program recomputes to save memory are counted once. The result is 0, for unknown, if a loop whose length is only
  known at run time contains products.
  """
  floats = [x for x in jax.tree.leaves(arguments) if jnp.issubdtype(x.dtype, jnp.floating)]
  structure, leaves = jax.tree.structure(arguments), jax.tree.leaves(arguments)

  def of_floats(*changed):
    given = iter(changed)
    return function(*jax.tree.unflatten(structure, [
        next(given) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in leaves]))

  try:
    return _count(jax.make_jaxpr(lambda *x: jax.jvp(of_floats, x, x))(*floats).jaxpr)
  except _UnknownLengthError:
    return 0


class _UnknownLengthError(Exception):
  """The number of iterations of a loop with products is unknown."""


def _count(jaxpr) -> int:
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      left = equation.invars[0].aval.shape
      total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
    inner = [_count(program) for program in _programs(equation)]
    if equation.primitive.name == "while" and any(inner):
      raise _UnknownLengthError
    total += times * (max(inner, default=0) if equation.primitive.name == "cond" else sum(inner))
  return total


def _programs(equation):
  """The jaxprs inside an equation, for example the body of a loop or the branches of a condition."""
  for value in equation.params.values():
    for part in value if isinstance(value, tuple | list) else (value,):
      program = getattr(part, "jaxpr", part)  # unwraps a closed jaxpr
      if hasattr(program, "eqns"):
        yield program


def rate(size: int = 2048, repeats: int = 5) -> float:
  """Operations per second of the fastest of `repeats` products of square float32 matrices."""
  product = jax.jit(lambda x: x @ x)
  x: Array = jnp.ones((size, size))
  return 2 * size**3 / _best(lambda: product(x), repeats)


def bandwidth(size: int, repeats: int = 7) -> float:
  """Bytes per second, read and written, of the fastest of `repeats` array sums, with `size` bytes in three arrays."""
  times = max(8, 10**8 // size)  # enough iterations to make the launch time negligible
  x: Array = jnp.ones(max(1, size // 12))
  sums = jax.jit(lambda x, y: jax.lax.fori_loop(0, times, lambda _, x: 0.5 * x + y, x))
  return times * 12 * x.size / _best(lambda: sums(x, x), repeats)


def _best(function, repeats):
  function().block_until_ready()
  best = math.inf
  for _ in range(repeats):
    start = time.perf_counter()
    function().block_until_ready()
    best = min(best, time.perf_counter() - start)
  return best
