"""Sequences of Amazon reviews, as S3-Rec published them: `user item item ...`, oldest first."""

from __future__ import annotations

import functools
import pathlib

import numpy as np

from kd_jax.base import InputError
from kd_jax.data import sources, splits
from kd_jax.data.recipe import Log, Recipe, Source, encode

_URL = ("https://raw.githubusercontent.com/RUCAIBox/CIKM2020-S3Rec/2a81540ae18615d88ef88227b0c066e5b74781e5/"
        "data/")
_TERMS = ("Amazon review data is for research use and states no licence; cite J. McAuley, C. Targett, Q. Shi and "
          "A. van den Hengel, Image-based Recommendations on Styles and Substitutes, SIGIR 2015.")


def sequences(name: str, file: str, sha256: str, split: str, ratios: tuple[float, float, float],
              split_seed: int) -> Recipe:
  """The recipe of the data set `name`, whose file is in the folder s3rec-NAME. Raises InputError for another split."""
  if split not in ("loo_last", "random", "position", "loo"):
    raise InputError(f"`data`: {name}(split={split!r}): only each user's order is known; choose from loo_last, random, "
                     "position, loo")
  source = Source(file, sha256, ((f"s3rec-{name}/{file}", sha256), (file, sha256)),
                  (functools.partial(sources.get, _URL + file),), advice=f"It is at {_URL}{file}.")
  return Recipe(functools.partial(_read, split == "loo_last"), (source,), ratios=ratios, split_seed=split_seed,
                split="given" if split == "loo_last" else split, terms=_TERMS)


def _read(hold_out_last: bool, paths: list[pathlib.Path]) -> Log:
  rows = [line.split() for line in paths[0].read_text().splitlines()]
  users = np.repeat(np.arange(len(rows)), [len(row) - 1 for row in rows])
  items, item_ids = encode([item for row in rows for item in row[1:]])
  parts = splits.leave_one_out(users, np.arange(len(users))) if hold_out_last else None
  return Log(users, items, [row[0] for row in rows], item_ids, parts=parts)
