"""Calls and literals in texts, as syntax trees; nothing is evaluated.

A text may be anything, for example of a stranger: every error is an InputError.
"""

from __future__ import annotations

import ast
import math
import warnings
from typing import Any

from kd_jax.base import InputError

LONGEST = 10_000  # characters of a text
_WIDEST = 2**63  # an integer is smaller


def tree(text: str, where: str, expected: str) -> ast.expr:
  """The syntax tree of an expression. Raises InputError, which begins with `where` and says what is `expected`."""
  if len(text) > LONGEST:
    raise InputError(f"{where}: {len(text):,} characters, at most {LONGEST:,}")
  try:
    with warnings.catch_warnings(action="ignore"):  # of escapes like "\d"
      return ast.parse(text.strip(), mode="eval").body
  except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: nested too deeply
    raise InputError(f"{where}: not {expected}") from None


def literal(node: ast.expr, where: str, hint: str = "") -> Any:
  """The number, text, None, True, False, or tuple of such values that a node writes. Raises InputError."""
  if isinstance(node, ast.List | ast.Tuple):
    return tuple(literal(element, where) for element in node.elts)
  sign, constant = 1, node
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
    sign, constant = (-1 if isinstance(node.op, ast.USub) else 1), node.operand
  value = constant.value if isinstance(constant, ast.Constant) else Ellipsis
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  if not (is_number or (constant is node and (value is None or isinstance(value, bool | str)))):
    raise InputError(f"{where}: {shown(node)} is not a literal{hint}")
  if isinstance(value, int) and value >= _WIDEST:
    raise InputError(f"{where}: an integer of {len(f'{value:x}')} hexadecimal digits is too large")
  if isinstance(value, float) and not math.isfinite(value):
    raise InputError(f"{where}: {shown(node)} is not finite")
  if isinstance(value, str) and not _is_plain(value):
    raise InputError(f"{where}: {value!r} has a NUL, or is not a text in Unicode")
  return sign * value if is_number else value


def shown(node: ast.AST) -> str:
  """A node as text, for messages."""
  try:
    return ast.unparse(node)
  except (RecursionError, ValueError):  # nested too deeply; a number with too many digits
    return "an expression"


def _is_plain(text) -> bool:
  try:
    return b"\0" not in text.encode()
  except UnicodeEncodeError:
    return False
