"""Factories in modules of the user, by dotted names: `mine.coverage` is the function `coverage` in mine.py.

A dotted name imports and calls code. On the command line, and in arguments of Python, the user asks for that. In a
file, for example in the run.json of somebody else, it is refused, unless the user has named the same factory in this
process, or allows the directory of its module.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

from kd_jax.base import InputError
from kd_jax.registry import literals
from kd_jax.registry.factories import KINDS

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*){1,19}")
_NAMED: set[str] = set()  # dotted names from the command line and from arguments of Python
_ALLOWED: list[pathlib.Path] = []  # directories of modules that files may name


def load(package: str, name: str, where: str) -> Callable[..., Any]:
  """The factory of kind `package` with a dotted name; the working directory is searched, too. Nothing is called.

  Raises InputError, which begins with `where`: no such module or function, or one that is no factory of this kind.
  """
  if not _NAME.fullmatch(name):
    raise InputError(f"{where}: {name[:100]} is not a name like module.factory")
  module, _, attribute = name.rpartition(".")
  if os.getcwd() not in sys.path:
    sys.path.insert(0, os.getcwd())
  try:
    factory = getattr(importlib.import_module(module), attribute)
  except ImportError as error:
    raise InputError(f"{where}: cannot import {module}: {error}") from None
  except SyntaxError as error:
    raise InputError(f"{where}: {error.filename}:{error.lineno}: {error.msg}") from None
  except AttributeError:
    raise InputError(f"{where}: {module} has no {attribute!r}") from None
  except SystemExit:
    raise InputError(f"{where}: importing {module} ends the process; is it a script?") from None
  if not _makes(package, factory):
    raise InputError(f"{where}: {name} is no function of a Python file with the return annotation {KINDS[package]}, as "
                     f"in def {attribute}(...) -> {KINDS[package]}")
  _NAMED.add(name)
  return factory


def _makes(package, factory) -> bool:
  """Whether something is a Python function that says that it returns this kind, or a class of this kind."""
  if inspect.isclass(factory):
    return _is_kind(package, factory)
  function = inspect.unwrap(factory) if callable(factory) else factory
  if not inspect.isfunction(function):
    return False
  returns = function.__annotations__.get("return")
  if not isinstance(returns, str):
    return _is_kind(package, returns)
  kind = KINDS[package].rpartition(".")[2]
  return returns.strip("'\"").rpartition(".")[2] == kind or _is_kind(package, function.__globals__.get(returns))


def _is_kind(package, annotation) -> bool:
  """Whether a type is the kind of factories of a folder. An alias such as optax.Schedule has no name of its own."""
  module, _, kind = KINDS[package].rpartition(".")
  if inspect.isclass(annotation):
    return kind in {base.__name__ for base in annotation.__mro__}
  return annotation is not None and annotation == getattr(sys.modules.get(module), kind, None)


def check_made(package: str, made: Any, call: Any) -> Any:
  """What a factory of the user returned. Raises InputError if it is of another kind."""
  if not (_is_kind(package, type(made)) or (package == "schedules" and callable(made))):
    raise InputError(f"{call}: returned {type(made).__name__}, not a {KINDS[package]}")
  return made


def source_hash(name: str, package: str = "data") -> str:
  """The sha256 of the source file of a factory with a dotted name; "" if there is no file."""
  path = inspect.getsourcefile(inspect.unwrap(load(package, name, name)))
  return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest() if path else ""


def allow_code(directory: str | os.PathLike | None) -> None:
  """From now on, files may name factories of modules in this directory. Raises InputError if there is none."""
  if not directory:
    return
  path = pathlib.Path(directory).absolute()
  if not path.is_dir():
    raise InputError(f"`allow_code={directory}`: no such directory")
  if str(path) not in sys.path:
    sys.path.append(str(path))  # last, so that it replaces no installed module
  _ALLOWED.append(path.resolve())


def refuse_code(file: str | os.PathLike, content: dict[str, Any]) -> None:
  """Raises InputError if `content`, read from a file of a run, names code that is not allowed.

  `data`, `model` and `peer` are calls, or descriptions of objects; `monitor` holds names of metrics.
  """
  for key in ("data", "model", "peer", "monitor"):
    text = content.get(key)
    if text is not None and not isinstance(text, str):
      raise InputError(f"{file}: damaged: {key} is {type(text).__name__}, not text")
    for name in _dotted(text or "", f"{file}: damaged: {key}", key == "monitor") - _NAMED:
      _refuse(file, name)


def _refuse(file, name):
  top = name.partition(".")[0]
  folder = _folder(top)
  if folder is None or not any(folder.is_relative_to(allowed) for allowed in _ALLOWED):
    place = f"`allow_code={folder}`" if folder else f"`allow_code=DIR`, the directory of {top}.py"
    raise InputError(f"{file}: names code of a file, {name}, which would be imported and called; if you trust it, give "
                     f"{place}")


def _dotted(text, where, is_metrics) -> set[str]:
  """The dotted names in a call, or in names of metrics. A text that is neither calls nothing."""
  if "." not in text:
    return set()
  text = re.sub(r"\(sampled \d+\)", "", text) if is_metrics else text  # mine.coverage@10(sampled 499)
  try:
    nodes = [literals.tree(text, where, "names")]
  except InputError:
    if is_metrics:  # its parts are parsed one by one
      raise
    return set()
  names = set()
  while nodes:
    node = nodes.pop()
    if isinstance(node, ast.Attribute):
      names.add(literals.shown(node))
    else:
      nodes += ast.iter_child_nodes(node)
  return names


def _folder(module: str) -> pathlib.Path | None:
  """The directory in which a module or package lies, which is not imported for this; None if it is not found."""
  sys.path.insert(0, os.getcwd())
  try:
    spec = importlib.util.find_spec(module)
  except (ImportError, ValueError):
    return None
  finally:
    sys.path.remove(os.getcwd())
  places = list(spec.submodule_search_locations or ()) if spec else []
  place = places[0] if places else spec.origin if spec and spec.has_location else None
  return pathlib.Path(place).resolve().parent if place else None
