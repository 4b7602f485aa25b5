"""Names on the command line -> factory calls.

`mf(dim=20)` calls `kd_jax.models.mf.mf(dim=20)`; `0.1*rrd(temperature=10) + kl()` is a weighted sum;
a dotted name, `my_file.my_loss(...)`, reaches a module of the user's own. The name of a file is its
key, so adding one needs no registry. Arguments are literals. Nothing of the package is imported to
check a name or an argument: signatures are read from the source, which keeps errors fast.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import inspect
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from kd_jax.base import InputError

# Schedules of optax that can stand for a weight; their steps are epochs.
SCHEDULES = ("linear_schedule", "cosine_decay_schedule", "exponential_decay", "polynomial_schedule")
_ROOT = pathlib.Path(__file__).parent


class Call(NamedTuple):
  """One parsed call: `name(**arguments)`; `arguments` as sorted pairs, so that calls are hashable."""

  name: str
  arguments: tuple[tuple[str, Any], ...] = ()

  def __str__(self):
    return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.arguments)})"

  def changed(self, **arguments) -> Call:
    """The call with these arguments in place of its own."""
    return Call(self.name, tuple(sorted((dict(self.arguments) | arguments).items())))


def names(package: str) -> list[str]:
  """The factories of `kd_jax.<package>`: one per file, named as the file."""
  files = (_ROOT / package).glob("*.py")
  return sorted(f.stem for f in files if not f.stem.startswith("_")
                and signature(package, f.stem) is not None)


class Argument(NamedTuple):
  """An argument of a factory, as source text; empty where it has none."""

  default: str
  annotation: str


@functools.cache
def signature(package: str, name: str) -> dict[str, Argument] | None:
  """The arguments of a factory, or None if the file has no factory."""
  tree = ast.parse((_ROOT / package / f"{name}.py").read_text())
  for node in tree.body:
    if isinstance(node, ast.FunctionDef) and node.name == name:
      arguments = node.args.args + node.args.kwonlyargs
      defaults = [None] * (len(node.args.args) - len(node.args.defaults))
      defaults += node.args.defaults + node.args.kw_defaults
      text = lambda node: ast.unparse(node) if node else ""
      return {a.arg: Argument(text(d), text(a.annotation)) for a, d in zip(arguments, defaults, strict=True)}
  return None


def parse(package: str, text: str, flag: str) -> Call:
  """Parses one call and checks its name and arguments. Raises InputError naming `flag`."""
  try:
    node = ast.parse(text.strip(), mode="eval").body
  except (SyntaxError, ValueError):
    raise InputError(f"--{flag}={text}: not a name or a call like name(argument=1)") from None
  return _call(package, node, f"--{flag}={text}")


def parse_sum(package: str, text: str, flag: str) -> tuple[tuple[float | Call, Call], ...]:
  """Parses `w*a(...) + b(...)` into ((w, a), (1.0, b)). The empty text is the empty sum.

  A weight is a number, or a schedule of optax by epoch: `linear_schedule(init_value=0, ...)*a(...)`.
  """
  if not text.strip():
    return ()
  where = f"--{flag}={text}"
  try:
    node = ast.parse(text.strip(), mode="eval").body
  except (SyntaxError, ValueError):
    raise InputError(f"{where}: not a weighted sum like 0.1*name(argument=1) + name()") from None
  terms = []
  while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
    terms.insert(0, node.right)
    node = node.left
  return tuple(_weighted(package, term, where) for term in [node, *terms])


def build(package: str, call: Call, **given) -> Any:
  """Calls the factory. `given` are what the frame knows, such as the number of users: it takes what it needs."""
  factory = _factory(package, call.name)
  if given:
    given = {name: value for name, value in given.items() if name in inspect.signature(factory).parameters}
  try:
    return factory(**given, **dict(call.arguments))
  except (TypeError, ValueError) as error:
    raise InputError(f"{call}: {error}") from error


def accepts(package: str, text: str, argument: str) -> bool:
  """Whether the factory of the call `text` takes an argument."""
  return argument in inspect.signature(_factory(package, parse(package, text, argument).name)).parameters


def build_schedule(call: Call) -> Callable[[Any], Any]:
  """An optax schedule: epoch (from 0) -> weight."""
  import optax

  try:
    return getattr(optax, call.name)(**dict(call.arguments))
  except (AttributeError, TypeError, ValueError) as error:
    raise InputError(f"--kd: {call}: {error}") from None


def _weighted(package, node, where):
  if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)):
    return 1.0, _call(package, node, where)
  left = node.left
  if isinstance(left, ast.Call) and isinstance(left.func, ast.Name) and left.func.id in SCHEDULES:
    arguments = {k.arg: _hashable(_literal(k.value, where)) for k in _keywords(left, where)}
    return Call(left.func.id, tuple(sorted(arguments.items()))), _call(package, node.right, where)
  weight = _literal(left, where)
  if isinstance(weight, bool) or not isinstance(weight, int | float):
    raise InputError(f"{where}: the weight {ast.unparse(left)} is not a number")
  if not abs(weight) < float("inf"):
    raise InputError(f"{where}: the weight {weight} is not finite")
  return float(weight), _call(package, node.right, where)


def _literal(node, where):
  try:
    return ast.literal_eval(node)
  except ValueError:
    schedules = f" (schedules of a weight: {', '.join(SCHEDULES)})" if isinstance(node, ast.Call) else ""
    raise InputError(f"{where}: {ast.unparse(node)} is not a literal{schedules}") from None


def _keywords(call, where):
  """The arguments of a call in the text: each with its name, and once."""
  if call.args:
    raise InputError(f"{where}: {ast.unparse(call.args[0])} needs its argument's name")
  for keyword in call.keywords:
    if keyword.arg is None:
      raise InputError(f"{where}: **{ast.unparse(keyword.value)} needs its argument's name")
  given = [keyword.arg for keyword in call.keywords]
  if twice := [k for k in given if given.count(k) > 1]:
    raise InputError(f"{where}: {ast.unparse(call.func)} is given {twice[0]} twice")
  return call.keywords


def _call(package, node, where) -> Call:
  function, keywords = node, []
  if isinstance(node, ast.Call):
    function, keywords = node.func, _keywords(node, where)
  if not isinstance(function, ast.Name | ast.Attribute):
    raise InputError(f"{where}: {ast.unparse(node)} is not a name or a call")
  name = ast.unparse(function)
  known = _arguments(package, name, where)
  arguments = {}
  for keyword in keywords:
    if keyword.arg not in known:
      choices = ", ".join(f"{k}={v.default}" if v.default else k for k, v in known.items()) or "none"
      raise InputError(f"{where}: {name} has no argument {keyword.arg!r}; it has: {choices}")
    value = _hashable(_literal(keyword.value, where))
    if wrong := _wrong(keyword.arg, value, known[keyword.arg]):
      raise InputError(f"{where}: {name}: {keyword.arg}={value!r} {wrong}")
    arguments[keyword.arg] = value
  missing = [k for k, v in known.items() if not v.default and k not in arguments]
  if missing:
    raise InputError(f"{where}: {name} needs {', '.join(missing)}")
  return Call(name, tuple(sorted(arguments.items())))


_KINDS = {"int": int, "float": (int, float), "str": str, "bool": bool, "None": type(None)}


def _wrong(name, value, argument) -> str:
  """What is wrong with a value, by the argument's annotation and the sign of its default; else ""."""
  kinds = [k.strip() for k in argument.annotation.split("|")]
  if any(k not in _KINDS and not k.startswith("tuple") for k in kinds):
    return ""  # an annotation of the user's own
  fits = [isinstance(value, _KINDS.get(k, tuple)) and (k == "bool" or not isinstance(value, bool)) for k in kinds]
  if not any(fits):
    return f"is not of type {argument.annotation}"
  if isinstance(value, bool) or not isinstance(value, int | float) or argument.default in ("", "None"):
    return ""
  if not abs(value) < float("inf"):
    return "is not finite"
  whole = kinds[0] == "int" and not argument.default.startswith("0")
  if (whole or "temperature" in name) and value <= 0 and not argument.default.startswith("-"):
    return "must be positive"
  return "must not be negative" if value < 0 and not argument.default.startswith("-") else ""


def _hashable(value):
  return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


# Arguments of model factories that the frame gives, never the user.
GIVEN = ("num_users", "num_items", "user_features", "item_features")


def _arguments(package, name, where) -> dict[str, str]:
  if "." in name:
    parameters = inspect.signature(_own(name, where)).parameters.values()
    text = lambda x: x if isinstance(x, str) else getattr(x, "__name__", str(x))
    known = {p.name: Argument("" if p.default is p.empty else repr(p.default),
                              "" if p.annotation is p.empty else text(p.annotation)) for p in parameters}
  elif name in names(package):
    known = signature(package, name)
  else:
    close = difflib.get_close_matches(name, names(package), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise InputError(f"{where}: no {name!r} among {', '.join(names(package))}{hint}")
  return {k: v for k, v in known.items() if k not in GIVEN}


def _factory(package, name) -> Callable:
  if "." in name:
    return _own(name, name)
  return getattr(importlib.import_module(f"kd_jax.{package}.{name}"), name)


def _own(name, where) -> Callable:
  """A factory in a module of the user's own, looked for in the working directory too."""
  module, _, attribute = name.rpartition(".")
  if os.getcwd() not in sys.path:
    sys.path.insert(0, os.getcwd())
  try:
    factory = getattr(importlib.import_module(module), attribute)
  except ImportError as error:
    raise InputError(f"{where}: cannot import {module}: {error}") from None
  except AttributeError:
    raise InputError(f"{where}: {module} has no {attribute!r}") from None
  if not callable(factory):
    raise InputError(f"{where}: {name} is no function")
  return factory
