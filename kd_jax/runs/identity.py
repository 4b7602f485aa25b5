"""What tells one object from another: a hash of its type, its numbers and the code of its functions.

Options may be objects. A run directory keeps the hash, so that a run with another object is not taken for the same run.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

_OF_FLAX = ("parent", "name")  # fields of a module that say where it is, not what it is


def describe(value: Any) -> str:
  """`<module.name hash>` of an object; equal for objects that were made by the same code with the same arguments."""
  named = getattr(value, "loss", value)  # of a method or a base loss its function
  if not isinstance(named, types.FunctionType):
    named = type(value)
  digest = hashlib.sha256("\n".join(_pieces(value, frozenset())).encode()).hexdigest()
  return f"<{named.__module__}.{named.__qualname__.partition('.<locals>')[0]} {digest[:12]}>"


def _pieces(value: Any, above: frozenset[int]) -> Iterator[str]:
  """What the hash is made of, depth first; `above` are the objects that hold this one."""
  if value is None or isinstance(value, str | bytes | int | float | complex):
    yield f"{type(value).__name__} {value!r}"
  elif isinstance(value, np.ndarray | np.generic) or type(value).__module__.startswith("jax"):
    array = np.asarray(value) if hasattr(value, "dtype") else np.zeros(0)
    yield f"{type(value).__qualname__} {getattr(value, '__qualname__', '')} {array.dtype}{array.shape}"
    yield hashlib.sha256(array.tobytes()).hexdigest() if array.dtype != object else ""
  elif id(value) not in above:
    inside = above | {id(value)}
    yield f"{type(value).__module__}.{type(value).__qualname__}"
    for part in _parts(value):
      yield from _pieces(part, inside)


def _parts(value: Any) -> Iterator[Any]:
  """What an object is made of."""
  if isinstance(value, types.FunctionType):
    yield from (value.__module__, value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__)
    yield from (cell.cell_contents for cell in value.__closure__ or () if _filled(cell))
  elif isinstance(value, types.CodeType):
    yield from (value.co_code, value.co_names, *value.co_consts)
  elif isinstance(value, functools.partial):
    yield from (value.func, value.args, value.keywords)
  elif isinstance(value, types.MethodType):
    yield from (value.__func__, value.__self__)
  elif isinstance(value, Mapping):
    yield from (pair for pair in sorted(value.items(), key=lambda pair: str(pair[0])))
  elif isinstance(value, set | frozenset):
    yield from sorted(value, key=str)
  elif isinstance(value, list | tuple):
    yield from value
  else:
    yield from _parts_of_object(value)


def _parts_of_object(value: Any) -> Iterator[Any]:
  if isinstance(value, type | types.ModuleType | types.BuiltinFunctionType):
    yield from (getattr(value, "__module__", ""), getattr(value, "__qualname__", getattr(value, "__name__", "")))
  elif dataclasses.is_dataclass(value):
    fields = (field.name for field in dataclasses.fields(value) if field.name not in _OF_FLAX)
    yield from ((name, getattr(value, name)) for name in fields)
    yield from (type(value).__dict__.get("__call__"), type(value).__dict__.get("setup"))
  elif hasattr(value, "__dict__"):
    yield vars(value)


def _filled(cell) -> bool:
  try:
    return cell.cell_contents is not cell
  except ValueError:  # of a function that is still being defined
    return False
