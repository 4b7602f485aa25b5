"""One line per user: `user item item ...`, also with the number of items, without the user, or with ratings.

The words of a layout are the fields of a line: "user items", "user count items", "count items", "items", and the same
with "item:rating" for "items". Without a user, the user is the number of the line, from 0.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from kd_jax.data.formats import raw
from kd_jax.data.formats.checked import Block

LAYOUTS = tuple(f"{begin}{items}" for items in ("items", "item:rating")
                for begin in ("user ", "user count ", "count ", ""))


def blocks(path: pathlib.Path, layout: str, delimiter: str | None = None, skip: int = 0) -> Iterator[Block]:
  """The columns users, items and, if the layout has them, ratings. Without a delimiter, any white space separates."""
  words, first = layout.split(), skip + 1
  for number, piece in raw.without_lines(raw.pieces(path), skip):
    numbers, broken, rows = [], [], []
    for line_number, line in enumerate(raw.lines(piece), number):
      try:
        user, items = _cut(line, words, delimiter)
      except ValueError as error:
        broken.append((line_number, str(error)))
        continue
      user = str(line_number - first) if user is None else user
      numbers += [line_number] * len(items)
      rows += [(user, *item) for item in items]
    columns = list(zip(*rows, strict=True)) or [()] * (3 if "item:rating" in words else 2)
    yield Block(np.array(numbers, np.int64), [pa.array(column, pa.string()) for column in columns], broken)


def _cut(line, words, delimiter) -> tuple[str | None, list[tuple[str, ...]]]:
  """(user, [(item,) or (item, rating)]) of a line. Raises ValueError with the reason if it is bad."""
  if b"\0" in line:
    raise ValueError("a NUL byte")
  try:
    text = line.decode()
  except UnicodeDecodeError as error:
    raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from None
  fields = text.split(delimiter) if text.strip() else []
  user = None
  if words[0] == "user":
    if not fields:
      raise ValueError("an empty line")
    user, *fields = fields
  if "count" in words:
    if not fields or fields[0] != str(len(fields) - 1):
      raise ValueError(f"{max(0, len(fields) - 1)} items after the count {fields[0][:20] if fields else ''!r}")
    fields = fields[1:]
  if words[-1] == "items":
    return user, [(item,) for item in fields]
  pairs = [field.rpartition(":")[::2] for field in fields]
  if any(":" not in field for field in fields):
    raise ValueError("an item without a rating")
  return user, pairs
