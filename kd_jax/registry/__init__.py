"""From names to factory calls, for every kind of part: data sets, models, methods, base losses, metrics ...

`mf(dim=20)` calls `kd_jax.models.mf.mf(dim=20)`; `0.1*rrd(temperature=10) + kl()` is a weighted sum;
a dotted name, `my_file.my_loss(...)`, is a function in the user's own module. Arguments are Python literals.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from kd_jax.base import HEAVIEST, InputError, one_line
from kd_jax.registry import bounds, literals, own_code
from kd_jax.registry.factories import GIVEN, KINDS, bind, found, names, own_factories, search_space, signature
from kd_jax.registry.own_code import allow_code, refuse_code, source_hash

__all__ = ["GIVEN", "KINDS", "SCHEDULES", "Call", "accepts", "allow_code", "bind", "build", "build_schedule", "names",
           "own_factories", "parse", "parse_sum", "refuse_code", "search_space", "signature", "source_hash", "takes"]

_SHOWN = 200  # characters of a text in a message
# {folder: the option that names its factories}
_OPTIONS = {"data": "data", "models": "model", "losses": "kd", "objectives": "loss", "metrics": "metrics",
            "label_metrics": "metrics", "optimizers": "optimizer", "schedules": "schedule", "callbacks": "callbacks",
            "compression": "compress"}
# Schedules of optax that can be used as a weight; their steps are epochs.
SCHEDULES = ("linear_schedule", "cosine_decay_schedule", "exponential_decay", "polynomial_schedule")


class Call(NamedTuple):
  """One parsed call: `name(**arguments)`; `arguments` as sorted pairs, so that calls are hashable."""

  name: str
  arguments: tuple[tuple[str, Any], ...] = ()

  def __str__(self):
    return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.arguments)})"

  def changed(self, **arguments) -> Call:
    """The call with these arguments added or replaced."""
    return Call(self.name, tuple(sorted((dict(self.arguments) | arguments).items())))


def parse(package: str, text: str, argument: str) -> Call:
  """Parses one call and checks its name and arguments. Raises InputError, which names `argument`."""
  where = f"`{argument}={one_line(text, _SHOWN)}`"
  return _call(package, literals.tree(text, where, "a name or a call like name(argument=1)"), where)


def parse_sum(package: str, text: str, argument: str) -> tuple[tuple[float | Call, Call], ...]:
  """Parses `w*a(...) + b(...)` into ((w, a), (1.0, b)). The empty text is the empty sum.

  A weight is a number, or an optax schedule of the epoch: `linear_schedule(init_value=0, ...)*a(...)`.
  Raises InputError, which names `argument`.
  """
  if not text.strip():
    return ()
  where = f"`{argument}={one_line(text, _SHOWN)}`"
  node, terms = literals.tree(text, where, "a weighted sum like 0.1*name(argument=1) + name()"), []
  while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
    terms.insert(0, node.right)
    node = node.left
  return tuple(_weighted(package, term, where) for term in [node, *terms])


def build(package: str, call: Call, **given) -> Any:
  """Calls the factory. Of `given` (e.g. the number of users) it receives the arguments that it has.

  Raises InputError if an argument is outside its bounds, or the factory raises TypeError or ValueError.
  """
  factory = _factory(package, call.name)
  if "." not in call.name:
    where = f"`{_OPTIONS[package]}`: {call}"
    bounds.check(call.name, call.arguments, found(package)[call.name].arguments, where)
  if given:
    given = {name: value for name, value in given.items() if name in inspect.signature(factory).parameters}
  try:
    made = factory(**given, **dict(call.arguments))
  except (TypeError, ValueError) as error:
    where = "" if "`" in str(error) else f"`{_OPTIONS[package]}`: "
    raise InputError(f"{where}{call}: {error}") from error
  return own_code.check_made(package, made, call) if "." in call.name else made


def accepts(package: str, text: str, argument: str) -> bool:
  """Whether the factory of the call `text` has this argument."""
  return takes(package, parse(package, text, argument), argument)


def takes(package: str, call: Call, argument: str) -> bool:
  """Whether the factory of a call has this argument."""
  return argument in inspect.signature(_factory(package, call.name)).parameters


def build_schedule(call: Call) -> Callable[[Any], Any]:
  """An optax schedule: epoch (from 0) -> weight."""
  import optax

  try:
    return getattr(optax, call.name)(**dict(call.arguments))
  except (AttributeError, TypeError, ValueError) as error:
    raise InputError(f"`kd`: {call}: {error}") from None


def _weighted(package, node, where):
  if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)):
    return 1.0, _call(package, node, where)
  left = node.left
  if isinstance(left, ast.Call) and isinstance(left.func, ast.Name) and left.func.id in SCHEDULES:
    arguments = {k.arg: literals.literal(k.value, where) for k in _keywords(left, where)}
    return Call(left.func.id, tuple(sorted(arguments.items()))), _call(package, node.right, where)
  hint = f" (schedules of a weight: {', '.join(SCHEDULES)})" if isinstance(left, ast.Call) else ""
  weight = literals.literal(left, where, hint)
  if isinstance(weight, bool) or not isinstance(weight, int | float):
    raise InputError(f"{where}: the weight {literals.shown(left)} is not a number")
  if not 0 <= weight <= HEAVIEST:
    raise InputError(f"{where}: the weight {weight} is not in [0, {HEAVIEST}]")
  return float(weight), _call(package, node.right, where)


def _keywords(call, where):
  """The arguments of a call. Raises InputError for one without a name, or given twice."""
  if call.args:
    raise InputError(f"{where}: {literals.shown(call.args[0])} needs its argument's name")
  for keyword in call.keywords:
    if keyword.arg is None:
      raise InputError(f"{where}: **{literals.shown(keyword.value)} needs its argument's name")
  given = [keyword.arg for keyword in call.keywords]
  if twice := [k for k in given if given.count(k) > 1]:
    raise InputError(f"{where}: {literals.shown(call.func)} is given {twice[0]} twice")
  return call.keywords


def _call(package, node, where) -> Call:
  function, keywords = node, []
  if isinstance(node, ast.Call):
    function, keywords = node.func, _keywords(node, where)
  if not isinstance(function, ast.Name | ast.Attribute):
    raise InputError(f"{where}: {literals.shown(node)} is not a name or a call")
  name = literals.shown(function)
  known = _arguments(package, name, where)
  arguments = {}
  for keyword in keywords:
    if keyword.arg not in known:
      choices = ", ".join(f"{k}={v.default}" if v.default else k for k, v in known.items()) or "none"
      raise InputError(f"{where}: {name} has no argument {keyword.arg!r}; it has: {choices}")
    arguments[keyword.arg] = value = literals.literal(keyword.value, where)
    # A user's factory checks its arguments itself; only their types are known here.
    if wrong := bounds.wrong(name, keyword.arg, value, known[keyword.arg], bounded="." not in name):
      raise InputError(f"{where}: {name}: {keyword.arg}={value!r} {wrong}")
  missing = [k for k, v in known.items() if not v.default and k not in arguments]
  if missing:
    raise InputError(f"{where}: {name} needs {', '.join(missing)}")
  return Call(name, tuple(sorted(arguments.items())))


def _arguments(package, name, where) -> dict[str, bounds.Argument]:
  if "." in name:
    parameters = [p for p in inspect.signature(own_code.load(package, name, where)).parameters.values()
                  if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]

    def text(x):
      return x if isinstance(x, str) else getattr(x, "__name__", str(x))

    known = {p.name: bounds.Argument("" if p.default is p.empty else repr(p.default),
                                     "" if p.annotation is p.empty else text(p.annotation)) for p in parameters}
  elif name in names(package):
    known = signature(package, name)
  else:
    close = difflib.get_close_matches(name, names(package), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise InputError(f"{where}: no {name!r} among {', '.join(names(package))}{hint}")
  return {k: v for k, v in known.items() if k not in GIVEN.get(package, ())}


def _factory(package, name) -> Callable:
  if "." in name:
    return own_code.load(package, name, name)
  return getattr(importlib.import_module(found(package)[name].module), name)
