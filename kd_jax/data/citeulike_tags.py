"""CiteULike-t: tags of articles."""

from __future__ import annotations

import functools
import pathlib

import numpy as np

from kd_jax.base import Features, InputError
from kd_jax.data import parsing, sources
from kd_jax.data.citeulike import FOLDER, TERMS
from kd_jax.data.recipe import Contexts, Log, Recipe, Source

_SHA256 = {
    "mult.dat": "5ed81e6fdbf8d475122d4a18d622202571ac80f27be017e194a1957da585283d",
    "tag-item.dat": "e2b80fc0e023780b63c00a397a2d0934eff6dbaf8a1b918778698361dae7ce6b",
    "tags.dat": "2f1e6dd94fe216a4453caf67e337c45f73938373b21d2aa3b6d2696387449e76",
}


def citeulike_tags(min_uses=50, words=2000, split="random", ratios=(0.8, 0.1, 0.1), split_seed=0,
                   folds=0, fold=0) -> Recipe:
  """LABELLED: CiteULike-t, articles as contexts, tags as labels.

  Origin: mult.dat, tag-item.dat and tags.dat of github js05212/citeulike-t (4f103c6), from a local copy
  (citeulike-t/) or by download. Licence: none stated; research use, cite Wang, Chen and Li, IJCAI 2013. Labels:
  tags of at least `min_uses` articles (829 by default); contexts: articles with at least one of these tags
  (25,682). Vector `text`: a bag of the `words` words that occur in most articles (of 20,000; the first 2,000 make
  up 64 % of all occurrences); each article's log(1 + count) is scaled to length 1. No time stamps: contexts are
  split at random (with `folds`, k-fold: fold `fold` is test, and a share ratios[1] of the rest is validation).
  """
  for name, value in (("min_uses", min_uses), ("words", words)):
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
      raise InputError(f"`data`: {name}={value!r}: must be a positive integer")
  return Recipe(functools.partial(_read, min_uses, words), tuple(map(_source, _SHA256)), split=split, ratios=ratios,
                split_seed=split_seed, terms=TERMS, folds=folds, fold=fold)


def _source(name) -> Source:
  url = f"{FOLDER}/{name}"
  return Source(f"citeulike-{name}", _SHA256[name], ((f"citeulike-t/{name}", _SHA256[name]),),
                (functools.partial(sources.get, url),), advice=f"It is at {url}.")


def _read(min_uses, words, paths: list[pathlib.Path]) -> Log:
  text, uses, names = ([line.decode() for _, line in parsing.lines(path)] for path in paths)
  uses = [np.array(line.split()[1:], np.int64) for line in uses]
  kept = [tag for tag, articles in enumerate(uses) if len(articles) >= min_uses]
  if not kept:
    raise InputError(f"`data`: min_uses={min_uses}: no tag is used as often")
  articles, users = np.unique(np.concatenate([uses[tag] for tag in kept]), return_inverse=True)
  items = np.repeat(np.arange(len(kept)), [len(uses[tag]) for tag in kept])
  bags = [[pair.split(":") for pair in text[article].split()[1:]] for article in articles]
  vectors = {"text": _bags_of_words(bags, words)}
  return Log(users, items, [str(a) for a in articles], [names[tag] for tag in kept],
             user_features=Features(vectors=vectors), contexts=Contexts())


def _bags_of_words(bags, words) -> np.ndarray:
  """[E, words] float32 from (word, count) pairs of every article."""
  rows = np.repeat(np.arange(len(bags)), [len(bag) for bag in bags])
  pairs = np.array([pair for bag in bags for pair in bag], np.int64)
  frequent = np.argsort(-np.bincount(pairs[:, 0]), kind="stable")[:words]
  place = np.full(pairs[:, 0].max() + 1, -1)
  place[frequent] = np.arange(len(frequent))
  inside = place[pairs[:, 0]] >= 0
  table = np.zeros((len(bags), len(frequent)), np.float32)
  table[rows[inside], place[pairs[inside, 0]]] = np.log1p(pairs[inside, 1])
  return table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-6)
