"""The factories of kd_jax: public functions in the folder of their kind, whose return annotation is that kind.

A new factory needs no registration. Names and arguments are read from the source text without importing it, so that
errors appear quickly.
"""

from __future__ import annotations

import ast
import functools
import importlib
import pathlib
import warnings
from typing import Any, NamedTuple

from kd_jax.registry import bounds
from kd_jax.registry.bounds import Argument

_ROOT = pathlib.Path(__file__).parents[1]
# {folder: return annotation of its factories}
KINDS = {"data": "Recipe", "models": "nn.Module", "losses": "KD", "objectives": "Objective", "metrics": "Metric",
         "label_metrics": "LabelMetric", "optimizers": "optax.GradientTransformation", "schedules": "optax.Schedule",
         "callbacks": "Callback", "compression": "Compressor"}
# Arguments of factories that kd_jax supplies; the user cannot set them.
GIVEN = {"models": ("num_users", "num_items", "user_features", "item_features"),
         "optimizers": ("learning_rate", "weight_decay", "decayed"),
         "schedules": ("learning_rate", "steps_per_epoch", "epochs")}


class Found(NamedTuple):
  """A factory: its module, its arguments, and the text `SEARCH` of its file, which says what a search varies."""

  module: str
  arguments: dict[str, Argument]
  search: str = ""


def names(package: str) -> list[str]:
  """The names of all factories of `kd_jax.<package>`, sorted."""
  return sorted(found(package))


def bind(package: str, namespace: dict[str, Any]) -> None:
  """Adds the factories of a folder to its package: `kd_jax.losses.rrd` is then the function, not the file.

  Called from Python, they check their arguments as on the command line.
  """
  for name, of_name in found(package).items():
    namespace[name] = bounds.checking(getattr(importlib.import_module(of_name.module), name), of_name.arguments)


def signature(package: str, name: str) -> dict[str, Argument] | None:
  """The arguments of a factory, or None if there is no such factory."""
  one = found(package).get(name)
  return one and one.arguments


def search_space(package: str, name: str) -> str:
  """What a search varies of a factory, as a text; "" if its file does not say."""
  one = found(package).get(name)
  return one.search if one else ""


@functools.cache
def found(package: str) -> dict[str, Found]:
  """{name: factory} of a folder."""
  factories = {}
  for path in sorted((_ROOT / package).glob("[!_]*.py")):
    body = ast.parse(path.read_text()).body
    search = next((ast.literal_eval(x.value) for x in body
                   if isinstance(x, ast.Assign) and ast.unparse(x.targets[0]) == "SEARCH"), "")
    for node in body:
      is_public = isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
      if is_public and node.returns and ast.unparse(node.returns) == KINDS[package]:
        factories[node.name] = Found(f"kd_jax.{package}.{path.stem}", _arguments_of(node.args), search)
  return factories


def own_factories(package: str) -> dict[str, dict[str, Argument]]:
  """{dotted name: arguments} of the factories in the Python files of the working directory."""
  factories, kind = {}, KINDS[package].rpartition(".")[2]
  for path in sorted(pathlib.Path.cwd().glob("*.py")):
    try:
      text = path.read_text()
      with warnings.catch_warnings(action="ignore"):
        tree = ast.parse(text) if f"{kind}:" in text else None
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
      continue
    for node in tree.body if tree else ():
      if isinstance(node, ast.FunctionDef) and node.returns and ast.unparse(node.returns).rpartition(".")[2] == kind:
        factories[f"{path.stem}.{node.name}"] = _arguments_of(node.args)
  return factories


def _arguments_of(node) -> dict[str, Argument]:
  arguments = node.args + node.kwonlyargs
  defaults = [None] * (len(node.args) - len(node.defaults)) + node.defaults + node.kw_defaults

  def text(node):
    return ast.unparse(node) if node else ""

  return {a.arg: Argument(text(d), text(a.annotation)) for a, d in zip(arguments, defaults, strict=True)}
