"""Gowalla in the split of NGCF and LightGCN."""

from __future__ import annotations

import functools
import pathlib

import numpy as np

from kd_jax.data import sources, splits
from kd_jax.data.recipe import TEST, TRAIN, Log, Recipe, Source, encode

_URL = ("https://raw.githubusercontent.com/gusye1234/LightGCN-PyTorch/"
        "947ca2b3b1d2d3545b114145710cb06c4e57b3d2/data/gowalla")
# Hash of train.txt with sorted items in each line: their order differs between copies and has no meaning.
_TRAIN = "0f086326b28a56c2e6dcb81d86ee72d4ccb7eed3a8d26788392356d8f51111cc"
_TEST = "099a2a73924e4b754dc6efd730d764f492321b53c38eb93298850c83acf57be3"
_TERMS = ("Gowalla check-ins are for research use and state no licence; cite E. Cho, S. A. Myers and "
          "J. Leskovec, Friendship and Mobility, KDD 2011.")


def gowalla(validation_ratio=0.1, split_seed=0) -> Recipe:
  """Gowalla: check-ins of 29,858 users at 40,981 places, in the published split of NGCF and LightGCN.

  Origin: train.txt and test.txt of github gusye1234/LightGCN-PyTorch (947ca2b), data/gowalla, from a
  local copy (gowalla-lightgcn/) or by download. Licence: none stated; SNAP data for research use, cite
  Cho, Myers and Leskovec, KDD 2011. sha256 0f086326... (train, items of each line sorted), 099a2a73...
  (test). No time stamps, no filter. Split: as given, 810,128 train and 217,242 test. Validation is a random
  floor(validation_ratio n) of each user's n train interactions, so train and validation together are the
  published train split. With validation_ratio=0 the validation split is empty.
  """
  def source(name, sha256, canonical):
    fetch = functools.partial(sources.get, f"{_URL}/{name}")
    return Source(f"gowalla-{name}", sha256, ((f"gowalla-lightgcn/{name}", sha256),), (fetch,), canonical,
                  f"It is at {_URL}/{name}.")

  return Recipe(functools.partial(_read, validation_ratio, split_seed),
                (source("train.txt", _TRAIN, _sort_lines), source("test.txt", _TEST, None)),
                split="given", split_seed=split_seed, terms=_TERMS,
                may_be_empty=("validation",) if validation_ratio == 0 else ())


def _sort_lines(content: bytes) -> bytes:
  rows = (line.split() for line in content.splitlines())
  return b"".join(b" ".join([row[0], *sorted(row[1:], key=int)]) + b"\n" for row in rows if row)


def _read(validation_ratio, split_seed, paths: list[pathlib.Path]) -> Log:
  """Each line is `user item item ...`."""
  train, test = ([line.split() for line in _sort_lines(p.read_bytes()).decode().splitlines()] for p in paths)
  rows = train + test
  counts = [len(row) - 1 for row in rows]
  codes, user_ids = encode([row[0] for row in rows])
  items, item_ids = encode([item for row in rows for item in row[1:]])
  users = np.repeat(codes, counts)
  parts = np.full(len(users), TRAIN, np.int8)
  parts[sum(counts[: len(train)]) :] = TEST
  log = Log(users, items, user_ids, item_ids, parts=parts)
  return log._replace(parts=splits.hold_out(log, validation_ratio, split_seed))
