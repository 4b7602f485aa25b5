"""Says how a user's own file is read, and the call that reads it so."""

from __future__ import annotations

import ast
import pathlib
from typing import Any

from kd_jax import registry
from kd_jax.data.formats import delimited, json_lines, parquet, raw

_MARKS = {"\t": "tabs", ",": "commas", " ": "spaces", ";": "semicolons", "|": "bars"}


def short(call: registry.Call) -> str:
  """The call without the arguments that have their default."""
  known = registry.signature("data", call.name) or {}
  return str(registry.Call(call.name, tuple((name, value) for name, value in call.arguments if name not in known or not
                                            known[name].default or ast.literal_eval(known[name].default) != value)))


def describe(call: registry.Call) -> str | None:
  """The format and the columns, of a complete call; None for data sets that are not the user's own file."""
  if call.name not in ("interactions", "labelled"):
    return None
  given = dict(call.arguments)
  path = pathlib.Path(given["path"])
  suffix = raw.unpacked(path).suffix.lower()
  if given.get("layout"):
    said = [f"one line per user, '{given['layout']}'", _separated(given["delimiter"] or "white space")]
  elif suffix == parquet.SUFFIX:
    said = ["Parquet"]
  elif suffix in json_lines.SUFFIXES:
    said = ["JSON lines"]
  else:
    said = ["one row per line", _separated(given["delimiter"] or delimited.DELIMITERS.get(suffix) or "?"),
            "no header" if given["header"] is False else "with a header"]
  said += [f"{given['skip']} lines skipped"] if given["skip"] else []
  said += [f"packed as {path.suffix}"] if path.suffix.lower() in raw.PACKED else []
  return "; ".join([", ".join(said), *_columns(given)])


def _separated(mark) -> str:
  return f"separated by {_MARKS.get(mark, mark if mark == 'white space' else repr(mark))}"


def _columns(given: dict[str, Any]) -> list[str]:
  """What is read from which column."""
  if given.get("layout"):
    return []
  roles = [(role, given[role]) for role in ("user", "item", "rating", "timestamp", "split_column", "labels", "fields",
                                            "numeric") if given.get(role) not in (None, ())]
  said = [", ".join(f"{role} from column {column!r}" if isinstance(column, str | int) else f"{role} {list(column)}"
                    for role, column in roles)]
  return said + ([f"time stamps in {given['unit']}"] if given.get("unit") else [])
