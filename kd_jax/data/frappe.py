"""Frappe: use of mobile apps by context."""

from __future__ import annotations

import functools
import pathlib

import numpy as np

from kd_jax.base import InputError
from kd_jax.data import parsing
from kd_jax.data.features import categorical
from kd_jax.data.recipe import Contexts, Log, Recipe, Source

_SHA256 = "409edc12f4e2153c5dd58ae171938735911d9b0f70961d5f1086b241656b2cb5"
_ADVICE = "It is in context-aware_data_sets/Mobile_Frappe.zip of https://github.com/irecsys/CARSKit (0a1789f)."
_TERMS = (
    "Frappe data is for research use; it may neither be redistributed nor used commercially without permission, and "
    "publications cite L. Baltrunas, K. Church, A. Karatzoglou and N. Oliver, Frappe: Understanding the Usage and "
    "Perception of Mobile App Recommendations In-The-Wild, arXiv:1505.03014, 2015.")
_FIELDS = ("user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city")


def frappe(negatives=2, negatives_seed=0, split="random", ratios=(0.7, 0.2, 0.1), split_seed=0,
           folds=0, fold=0) -> Recipe:
  """LABELLED: Frappe, 96,203 uses of 4,082 apps by 957 users, with context; one label: used or not.

  Origin: frappe.csv of Mobile_Frappe.zip (github irecsys/CARSKit, 0a1789f), from a local copy (frappe/). Licence:
  research use, no redistribution, no commercial use, cite Baltrunas et al. 2015. Fields: user,
  item, daytime, weekday, isweekend, homework, cost, weather, country, city; 5,382 values. As in the literature on
  factorisation machines (He and Chua, SIGIR 2017), every use is paired with `negatives` apps in the same context,
  drawn uniformly from the apps that the user never used in any split (288,609 contexts in all), and contexts are
  split 7:2:1 at random. The authors drew their negatives once; here `negatives_seed` draws them, so numbers are
  close to theirs but not equal. With `folds`, k-fold: fold `fold` is test.
  """
  if not isinstance(negatives, int) or isinstance(negatives, bool) or negatives < 1:
    raise InputError(f"`data`: negatives={negatives!r}: must be a positive integer")
  source = Source("frappe.csv", _SHA256, (("frappe/frappe.csv", _SHA256),), advice=_ADVICE)
  return Recipe(functools.partial(_read, negatives, negatives_seed), (source,), split=split, ratios=ratios,
                split_seed=split_seed, terms=_TERMS, folds=folds, fold=fold)


def _read(negatives, seed, paths: list[pathlib.Path]) -> Log:
  rows = [row for _, row in _rows(paths[0])]
  columns = dict(zip(rows[0], np.array(rows[1:]).T, strict=True))
  features = categorical({name: columns[name] for name in _FIELDS})
  used = features.categories  # [N, F]
  users, items, sizes = used[:, 0], used[:, 1], features.sizes
  known = np.zeros(sizes[:2], bool)
  known[users, items] = True
  other = np.repeat(used, negatives, axis=0)
  other[:, 1] = _absent(np.random.default_rng(seed), known, other[:, 0])
  categories = np.concatenate([used, other])
  positive = np.arange(len(used))
  return Log(positive, np.zeros_like(positive), [str(n) for n in range(len(categories))], ["used"],
             user_features=features._replace(categories=categories), contexts=Contexts())


def _rows(path):
  for number, line in parsing.lines(path):
    row, reason = parsing.fields(line, "\t", 1 + len(_FIELDS))
    if row is None:
      raise InputError(f"`data`: {path}:{number}: {reason}")
    yield number, row


def _absent(rng, known, users):
  """Items [N], one for each of `users` [N], drawn uniformly from those with `known` [U, I] False."""
  items = rng.integers(known.shape[1], size=len(users))
  while (wrong := np.flatnonzero(known[users, items])).size:
    items[wrong] = rng.integers(known.shape[1], size=len(wrong))
  return items
