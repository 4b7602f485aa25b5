"""Amazon Beauty as sequences."""

from __future__ import annotations

import functools
import pathlib

import numpy as np

from kd_jax.base import InputError
from kd_jax.data import sources, splits
from kd_jax.data.recipe import Log, Recipe, Source, encode

_SHA256 = "226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8"
_URL = ("https://raw.githubusercontent.com/RUCAIBox/CIKM2020-S3Rec/2a81540ae18615d88ef88227b0c066e5b74781e5/"
        "data/Beauty.txt")
_TERMS = ("Amazon review data is for research use and states no licence; cite J. McAuley, C. Targett, Q. Shi and "
          "A. van den Hengel, Image-based Recommendations on Styles and Substitutes, SIGIR 2015.")


def beauty(split="loo_last", ratios=(0.8, 0.1, 0.1), split_seed=0) -> Recipe:
  """Amazon Beauty: 198,502 reviews by 22,363 users of 12,101 products, in time order within each user.

  Origin: Beauty.txt of github RUCAIBox/CIKM2020-S3Rec (2a81540), data/, from a local copy (s3rec-beauty/) or
  by download. Licence: none stated; research use, cite McAuley et al., SIGIR 2015. sha256 226cce9c... Every
  user and product has at least five reviews; no filter is applied. The file has no times, only each user's order.
  Split: loo_last (the default, and the split of S3-Rec, Zhou et al., CIKM 2020) holds out each user's last review
  for test and the one before it for validation: 153,776/22,363/22,363. The others are random, position and loo.
  """
  if split not in ("loo_last", "random", "position", "loo"):
    raise InputError(f"`data`: beauty(split={split!r}): only each user's order is known; choose from loo_last, random, "
                     "position, loo")
  source = Source("Beauty.txt", _SHA256, (("s3rec-beauty/Beauty.txt", _SHA256), ("Beauty.txt", _SHA256)),
                  (functools.partial(sources.get, _URL),), advice=f"It is at {_URL}.")
  return Recipe(functools.partial(_read, split == "loo_last"), (source,), ratios=ratios, split_seed=split_seed,
                split="given" if split == "loo_last" else split, terms=_TERMS)


def _read(hold_out_last: bool, paths: list[pathlib.Path]) -> Log:
  """Each line is `user item item ...`, oldest first."""
  rows = [line.split() for line in paths[0].read_text().splitlines()]
  users = np.repeat(np.arange(len(rows)), [len(row) - 1 for row in rows])
  items, item_ids = encode([item for row in rows for item in row[1:]])
  parts = splits.leave_one_out(users, np.arange(len(users))) if hold_out_last else None
  return Log(users, items, [row[0] for row in rows], item_ids, parts=parts)
