"""From names to factory calls, for every kind of part: data sets, models, methods, base losses, metrics ...

`mf(dim=20)` calls `kd_jax.models.mf.mf(dim=20)`; `0.1*rrd(temperature=10) + kl()` is a weighted sum;
a dotted name, `my_file.my_loss(...)`, is a function in the user's own module. Arguments are Python literals.

A factory of kd_jax is a public function in the folder of its kind, and its return annotation is that kind, for example
`-> KD`. A new factory needs no registration. Names and arguments are checked against the source text without importing
it, so that errors appear quickly.
"""

from __future__ import annotations

import ast
import difflib
import functools
import hashlib
import importlib
import inspect
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from kd_jax.base import InputError

# Schedules of optax that can be used as a weight; their steps are epochs.
SCHEDULES = ("linear_schedule", "cosine_decay_schedule", "exponential_decay", "polynomial_schedule")
_ROOT = pathlib.Path(__file__).parent


class Call(NamedTuple):
  """One parsed call: `name(**arguments)`; `arguments` as sorted pairs, so that calls are hashable."""

  name: str
  arguments: tuple[tuple[str, Any], ...] = ()

  def __str__(self):
    return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.arguments)})"

  def changed(self, **arguments) -> Call:
    """The call with these arguments added or replaced."""
    return Call(self.name, tuple(sorted((dict(self.arguments) | arguments).items())))


# {folder: return annotation of its factories}
KINDS = {"data": "Recipe", "models": "nn.Module", "losses": "KD", "objectives": "Objective", "metrics": "Metric",
         "label_metrics": "LabelMetric", "optimizers": "optax.GradientTransformation", "schedules": "optax.Schedule",
         "callbacks": "Callback"}


def names(package: str) -> list[str]:
  """The names of all factories of `kd_jax.<package>`, sorted."""
  return sorted(_factories(package))


def bind(package: str, namespace: dict[str, Any]) -> None:
  """Adds the factories of a folder to its package: `kd_jax.losses.rrd` is then the function, not the file."""
  for name, found in _factories(package).items():
    namespace[name] = getattr(importlib.import_module(found.module), name)


class Argument(NamedTuple):
  """An argument of a factory, as source text; "" if there is no default or no annotation."""

  default: str
  annotation: str


class Found(NamedTuple):
  """A factory: its module and its arguments."""

  module: str
  arguments: dict[str, Argument]


@functools.cache
def _factories(package: str) -> dict[str, Found]:
  found = {}
  for path in sorted((_ROOT / package).glob("[!_]*.py")):
    for node in ast.parse(path.read_text()).body:
      is_public = isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
      if is_public and node.returns and ast.unparse(node.returns) == KINDS[package]:
        found[node.name] = Found(f"kd_jax.{package}.{path.stem}", _arguments_of(node.args))
  return found


def _arguments_of(node) -> dict[str, Argument]:
  arguments = node.args + node.kwonlyargs
  defaults = [None] * (len(node.args) - len(node.defaults)) + node.defaults + node.kw_defaults

  def text(node):
    return ast.unparse(node) if node else ""

  return {a.arg: Argument(text(d), text(a.annotation)) for a, d in zip(arguments, defaults, strict=True)}


def own_factories(package: str) -> dict[str, dict[str, Argument]]:
  """{dotted name: arguments} of the factories in the Python files of the working directory."""
  found, kind = {}, KINDS[package].rpartition(".")[2]
  for path in sorted(pathlib.Path.cwd().glob("*.py")):
    try:
      text = path.read_text()
      tree = ast.parse(text) if f"{kind}:" in text else None
    except (OSError, ValueError, SyntaxError):
      continue
    for node in tree.body if tree else ():
      if isinstance(node, ast.FunctionDef) and node.returns and ast.unparse(node.returns).rpartition(".")[2] == kind:
        found[f"{path.stem}.{node.name}"] = _arguments_of(node.args)
  return found


def signature(package: str, name: str) -> dict[str, Argument] | None:
  """The arguments of a factory, or None if there is no such factory."""
  found = _factories(package).get(name)
  return found and found.arguments


def parse(package: str, text: str, argument: str) -> Call:
  """Parses one call and checks its name and arguments. Raises InputError, which names `argument`."""
  try:
    node = ast.parse(text.strip(), mode="eval").body
  except (SyntaxError, ValueError):
    raise InputError(f"`{argument}={text}`: not a name or a call like name(argument=1)") from None
  return _call(package, node, f"`{argument}={text}`")


def parse_sum(package: str, text: str, argument: str) -> tuple[tuple[float | Call, Call], ...]:
  """Parses `w*a(...) + b(...)` into ((w, a), (1.0, b)). The empty text is the empty sum.

  A weight is a number, or an optax schedule of the epoch: `linear_schedule(init_value=0, ...)*a(...)`.
  Raises InputError, which names `argument`.
  """
  if not text.strip():
    return ()
  where = f"`{argument}={text}`"
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
  """Calls the factory. Of `given` (e.g. the number of users) it receives the arguments that it has.

  Raises InputError if the factory raises TypeError or ValueError.
  """
  factory = _factory(package, call.name)
  if given:
    given = {name: value for name, value in given.items() if name in inspect.signature(factory).parameters}
  try:
    return factory(**given, **dict(call.arguments))
  except (TypeError, ValueError) as error:
    raise InputError(f"{call}: {error}") from error


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
  """The arguments of a call. Raises InputError for one without a name, or given twice."""
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
    # The sign of our own defaults implies a bound. A user's factory checks its arguments itself.
    if wrong := _wrong(keyword.arg, value, known[keyword.arg], bounded="." not in name):
      raise InputError(f"{where}: {name}: {keyword.arg}={value!r} {wrong}")
    arguments[keyword.arg] = value
  missing = [k for k, v in known.items() if not v.default and k not in arguments]
  if missing:
    raise InputError(f"{where}: {name} needs {', '.join(missing)}")
  return Call(name, tuple(sorted(arguments.items())))


_KINDS = {"int": int, "float": (int, float), "str": str, "bool": bool, "None": type(None)}


def _wrong(name, value, argument, bounded) -> str:
  """The error of a value, or "". Checks the annotation and, if `bounded`, the sign that the default implies."""
  kinds = [k.strip() for k in argument.annotation.split("|")]
  if any(k not in _KINDS and not k.startswith("tuple") for k in kinds):
    return ""  # an annotation that we do not check
  fits = [isinstance(value, _KINDS.get(k, tuple)) and (k == "bool" or not isinstance(value, bool)) for k in kinds]
  if not any(fits):
    return f"is not of type {argument.annotation}"
  if isinstance(value, bool) or not isinstance(value, int | float) or argument.default in ("", "None"):
    return ""
  if not abs(value) < float("inf"):
    return "is not finite"
  if not bounded:
    return ""
  whole = kinds[0] == "int" and not argument.default.startswith("0")
  if (whole or "temperature" in name) and value <= 0 and not argument.default.startswith("-"):
    return "must be positive"
  return "must not be negative" if value < 0 and not argument.default.startswith("-") else ""


def _hashable(value):
  return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


# Arguments of factories that kd_jax supplies; the user cannot set them.
GIVEN = {"models": ("num_users", "num_items", "user_features", "item_features"),
         "optimizers": ("learning_rate", "weight_decay", "decayed"),
         "schedules": ("learning_rate", "steps_per_epoch", "epochs")}


def _arguments(package, name, where) -> dict[str, str]:
  if "." in name:
    parameters = inspect.signature(_own(name, where)).parameters.values()

    def text(x):
      return x if isinstance(x, str) else getattr(x, "__name__", str(x))

    known = {p.name: Argument("" if p.default is p.empty else repr(p.default),
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
    return _own(name, name)
  return getattr(importlib.import_module(_factories(package)[name].module), name)


def source_hash(name: str) -> str:
  """The sha256 of the source file of a factory with a dotted name; "" if there is no file."""
  path = inspect.getsourcefile(inspect.unwrap(_own(name, name)))
  return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest() if path else ""


def _own(name, where) -> Callable:
  """A factory in the user's own module; the working directory is searched, too. Raises InputError."""
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
    raise InputError(f"{where}: {name} is not a function")
  return factory
