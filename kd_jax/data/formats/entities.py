"""Tables of users or items: RecBole's .user and .item, or another table with a header, as features.

The types of the columns are those of a RecBole header, NAME:TYPE; without types, a column of numbers is float, any
other is token. A token becomes a categorical field, a float a vector of width 1, float_seq a vector, and token_seq a
vector of zeros and ones. An entity that is not in the table has the category "" and zeros.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from kd_jax.base import Features, InputError
from kd_jax.data.formats import checked, delimited, raw
from kd_jax.data.formats.checked import Kind, Limit
from kd_jax.data.formats.delimited import DELIMITERS, Style

WIDEST = 1000  # distinct words of a token_seq that becomes a vector


def read(path: pathlib.Path, ids: Sequence[str], identifier: Kind, column: str | int,
         max_bad_rows: Limit = 0) -> tuple[Features | None, tuple[str, ...]]:
  """(features in the order of `ids`, or None if there are none; what was left out).

  The id is in `column`, or else in the first one. Raises InputError: a bad row, an id that is there twice, no id that
  is in `ids`, a value that is no number.
  """
  style = Style(DELIMITERS.get(raw.unpacked(path).suffix.lower(), ","))
  header = delimited.names(path, style)
  names, place = delimited.plain_names(header), 0
  if column in names:
    place = names.index(str(column))
  others = [n for n in range(len(names)) if n != place]
  kinds = [identifier, *(Kind(f"{n}", _text) for n in others)]
  table = checked.collect(path, delimited.blocks(path, style, [place, *others], len(names)), kinds, max_bad_rows)
  codes, own = table.columns[identifier.name]
  if len(own) < len(codes):
    twice = own[int(np.flatnonzero(np.bincount(codes) > 1)[0])]
    raise InputError(f"`data`: {path}: id {twice!r} is there twice")
  rows = {name: int(row) for row, name in zip(np.argsort(codes), own, strict=True)}
  order = np.array([rows.get(name, -1) for name in ids], np.int64)
  if (order < 0).all():
    raise InputError(f"`data`: {path}: none of its ids, such as {own[0]!r}, is in the data, whose {identifier.name} "
                     f"are like {ids[0]!r}")
  texts = {names[n]: (header[n].rpartition(":")[2] if names != header else "", _taken(*table.columns[f"{n}"], order))
           for n in others}
  return _features(path, texts)


def _text(text):
  return text


def _taken(codes, texts, order) -> list[str]:
  values = np.array([*texts, ""], object)
  return values[np.where(order < 0, len(texts), codes[order])].tolist()


def _features(path, texts) -> tuple[Features, tuple[str, ...]]:
  fields, vectors, left = {}, {}, []
  for name, (kind, values) in texts.items():
    kind = kind or ("float" if all(map(_is_number, values)) else "token")
    if kind == "token":
      fields[name] = np.unique(np.array(values), return_inverse=True)
    elif kind == "token_seq":
      words = sorted({word for value in values for word in value.split()})
      if len(words) > WIDEST:
        left.append(f"{path}: column {name!r} has {len(words):,} distinct words, more than {WIDEST:,}: it is not read")
      else:
        vectors[name] = np.array([[word in value.split() for word in words] for value in values], np.float32)
    else:
      vectors[name] = _numbers(path, name, values)
  categories = np.stack([codes for _, codes in fields.values()], axis=1).astype(np.int32) if fields else None
  vectors = {name: x for name, x in vectors.items() if x.shape[1]}
  features = Features(tuple(fields), tuple(len(x) for x, _ in fields.values()), categories, vectors)
  return features if fields or vectors else None, tuple(left)


def _numbers(path, name, values) -> np.ndarray:
  """[E, D] float32; no value is zeros."""
  rows = [value.split() for value in values]
  width = max(map(len, rows), default=0)
  if wrong := [value for value, row in zip(values, rows, strict=True) if row and not (
      len(row) == width and all(map(_is_number, row)))]:
    raise InputError(f"`data`: {path}: column {name!r}: {wrong[0][:60]!r} is not {width} finite numbers")
  return np.array([row or ["0"] * width for row in rows], np.float32)


def _is_number(text) -> bool:
  try:
    return not text or ("_" not in text and abs(float(text)) < float(np.finfo(np.float32).max))
  except ValueError:
    return False
