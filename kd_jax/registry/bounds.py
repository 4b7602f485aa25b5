"""The valid values of arguments of factories: their types, and the intervals of numbers.

An argument with the same name has the same bounds in every factory; `factory.argument` is for one of them alone. Upper
bounds are far above what is useful: they refuse what can only be a mistake, or would fill the memory.
"""

from __future__ import annotations

import ast
import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from kd_jax.base import InputError

_COUNT, _SMALL, _FACTOR, _POSITIVE, _SHARE, _SEED = (
    "[1, 1000000]", "[1, 1000]", "[0, 1000000]", "(0, 1000000]", "[0, 1]", "[0, 4294967295]")
# Intervals, as in mathematics: [ and ] include the end, ( and ) do not.
BOUNDS = {
    # lists and samples
    **dict.fromkeys(("k", "depth", "sampled", "unseen", "uninteresting", "observed", "dynamic_samples", "pairs",
                     "anchors", "neighbours", "every", "period"), _COUNT),
    "cutoff": _FACTOR, "start_epoch": _FACTOR, "epochs": "[1, 10000000]",
    # sizes of networks
    "dim": "[1, 65536]", "hidden": "[1, 65536]", "length": "[1, 65536]", "fitnet.hidden": "[0, 65536]",
    "freqd.hidden": "(0, 1000]",
    **dict.fromkeys(("layers", "blocks"), "[1, 100]"), **dict.fromkeys(("heads", "experts", "groups"), _SMALL),
    # shares and probabilities
    **dict.fromkeys(("dropout", "id_dropout", "corruption", "b1", "b2", "momentum", "validation_ratio"), "[0, 1)"),
    **dict.fromkeys(("alpha", "final", "ratios"), _SHARE), "keep": "(0, 1]", "eps": "(0, 1]",
    # temperatures, scales and weights
    **dict.fromkeys(("temperature", "start_temperature", "end_temperature", "sampling_temperature", "softness",
                     "sharpness", "peer_sharpness", "decay", "seconds"), _POSITIVE),
    "exponential.decay": "(0, 1]", "hetcomp.decay": "(0, 1]", "shift": "[-1000000, 1000000]",
    **dict.fromkeys(("beta", "item_weight", "distance_weight", "angle_weight", "position", "confidence", "consistency",
                     "threshold", "warmup"), _FACTOR),
    "init_std": "[0, 1000]", "l2": "(0, 1000000000]",
    # compression
    "rank": _COUNT, "remainders": _COUNT, "share": _SHARE, "parts": "[1, 256]", "codes": "[2, 256]",
    "scale": "[0, 1000]",
    # differential privacy
    "epsilon": _POSITIVE, "delta": "(0, 1)", "cap": _COUNT,
    # data
    **dict.fromkeys(("seed", "split_seed", "negatives_seed"), _SEED),
    **dict.fromkeys(("min_user", "min_item", "min_uses", "tags", "words", "interactions_per_user"), _COUNT),
    "users": "[1, 100000000]", "items": "[1, 100000000]", "min_rating": "[-1000000, 1000000]",
    "folds": "[0, 1000]", "fold": "[0, 999]", "negatives": "[0, 1000]", "popularity": "[0, 100]", "drift": _SHARE,
    "synthetic.dim": "[0, 65536]", "hashed": "[0, 2147483647]", "skip": "[0, 1000000]",
}


class Argument(NamedTuple):
  """An argument of a factory, as source text; "" if there is no default or no annotation."""

  default: str
  annotation: str

  def types(self, inferred: bool) -> list[str]:
    """The names of the types that it takes. Without an annotation, that of its default if `inferred`; []: any."""
    if self.annotation or not inferred:
      return [name.strip() for name in self.annotation.split("|") if name]
    try:
      kind = type(ast.literal_eval(self.default))
    except (ValueError, SyntaxError):  # no default, or not a literal
      return []
    return [kind.__name__] if kind in (int, float, str, bool) else []


_TYPES = {"int": int, "float": (int, float), "str": str, "bool": bool, "None": type(None)}


def wrong(factory: str, name: str, value: Any, argument: Argument, bounded: bool = True) -> str:
  """What is wrong with the value of an argument, or "". Of a factory of the user (not `bounded`), only types are known.
  """
  value = value.item() if isinstance(value, np.generic) else value
  kinds = argument.types(inferred=bounded)
  if kinds and all(kind in _TYPES or kind.startswith("tuple") for kind in kinds):
    if not any(_is(value, _TYPES.get(kind, (tuple, list))) for kind in kinds):
      return f"is not of type {' | '.join(kinds)}"
  bound = interval(factory, name) if bounded else None
  if bound and isinstance(value, tuple | list):
    element = int if "." not in argument.default else (int, float)
    if not all(_is(x, element) for x in value):
      return f"does not hold {'whole ' * (element is int)}numbers alone"
  numbers = [x for x in (value if isinstance(value, tuple | list) else (value,)) if _is(x, (int, float))]
  if not all(abs(number) < math.inf for number in numbers):
    return "is not finite"
  return f"is not in {bound}" if bound and not all(within(number, bound) for number in numbers) else ""


def _is(value, kind) -> bool:
  return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def interval(factory: str, name: str) -> str | None:
  """The interval of the argument `name` of a factory; None if it has none."""
  return BOUNDS.get(f"{factory}.{name}", BOUNDS.get(name))


def within(value: float, bound: str) -> bool:
  """Whether a number is in an interval such as "[0, 1)"."""
  least, most = (float(end) for end in bound[1:-1].split(","))
  return (value > least or (value == least and bound[0] == "[")) and (
      value < most or (value == most and bound[-1] == "]"))


def check(factory: str, values: Iterable[tuple[str, Any]], arguments: dict[str, Argument], where: str) -> None:
  """Raises InputError, which begins with `where`, for the first value that its argument does not take."""
  for name, value in values:
    if name in arguments and (what := wrong(factory, name, value, arguments[name])):
      raise InputError(f"{where}: {name}={value!r} {what}")


def checking(factory: Callable, arguments: dict[str, Argument]) -> Callable:
  """The factory; it raises InputError for a wrong argument."""
  @functools.wraps(factory)
  def checked(*given, **named):
    bound = inspect.signature(factory).bind(*given, **named).arguments
    check(factory.__name__, bound.items(), arguments, factory.__name__)
    return factory(*given, **named)

  return checked
