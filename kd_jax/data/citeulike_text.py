"""CiteULike-t with the words of its articles."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from kd_jax.base import Features, InputError
from kd_jax.data import parsing, sources
from kd_jax.data.citeulike import citeulike
from kd_jax.data.recipe import Log, Recipe, Source

_SHA256 = "5ed81e6fdbf8d475122d4a18d622202571ac80f27be017e194a1957da585283d"
_URL = "https://raw.githubusercontent.com/js05212/citeulike-t/4f103c6ea0fe407b23be230837b65517e613c34a/mult.dat"


def citeulike_text(dim=128, split="cold_items", min_user=5, min_item=1, ratios=(0.8, 0.1, 0.1), split_seed=0) -> Recipe:
  """CiteULike-t with text vectors of its articles, for items without training interactions.

  Origin: as citeulike, and mult.dat (bags of 20,000 words of title and abstract) of the same repository,
  from a local copy (citeulike-t/) or by download. Licence: none stated; research use, cite Wang, Chen and
  Li, IJCAI 2013. sha256 of mult.dat 5ed81e6f... Vector `text` [dim] of items: latent semantic analysis
  (Deerwester et al., 1990): log(1 + count) idf, scaled to length 1, then the `dim` largest singular values. It
  is computed from all articles, since the text of an article is known before its first interaction. 30 of
  25,181 articles have no words. Filter and split as in citeulike; cold_items, the default, gives
  77,997/22,315/25,268, of which 0/13,346/13,797 are on articles without training interactions.
  """
  if isinstance(dim, bool) or not isinstance(dim, int) or not 1 <= dim <= 1000:
    raise InputError(f"`data`: dim={dim!r}: must be an integer from 1 to 1000")
  recipe = citeulike(split, min_user, min_item, ratios, split_seed)
  if recipe.split == "given":
    raise InputError(f"`data`: citeulike_text(split={split!r}): these ids are not those of the texts; choose from "
                     "random, position, loo, cold_items")
  source = Source("citeulike-mult.dat", _SHA256, (("citeulike-t/mult.dat", _SHA256),),
                  (functools.partial(sources.get, _URL),), advice=f"It is at {_URL}.")
  return recipe._replace(read=functools.partial(_read, recipe.read, dim), sources=(*recipe.sources, source))


def _read(read_log: Callable[[list[pathlib.Path]], Log], dim: int, paths: list[pathlib.Path]) -> Log:
  *others, path = paths
  log = read_log(others)
  vectors = latent_semantics(bags_of_words(path), dim)[np.array(log.item_ids, np.int64)]
  return log._replace(item_features=Features(vectors={"text": vectors}))


def bags_of_words(path: pathlib.Path) -> scipy.sparse.csr_array:
  """Counts [E, words]; line e of the file is `n word:count word:count ..`."""
  bags = [[pair.split(b":") for pair in line.split()[1:]] for _, line in parsing.lines(path)]
  ends = np.cumsum([0, *map(len, bags)])
  pairs = np.array([pair for bag in bags for pair in bag], np.int64)
  return scipy.sparse.csr_array((pairs[:, 1], pairs[:, 0], ends))


def latent_semantics(counts: scipy.sparse.csr_array, dim: int) -> np.ndarray:
  """Projects rows of log(1 + count) log(E / document frequency), scaled to length 1, on `dim` singular vectors."""
  frequency = np.bincount(counts.indices, minlength=counts.shape[1])
  idf = np.log(counts.shape[0] / np.maximum(frequency, 1))
  weighted = scipy.sparse.csr_array((np.log1p(counts.data) * idf[counts.indices], counts.indices, counts.indptr),
                                    shape=counts.shape)
  lengths = scipy.sparse.linalg.norm(weighted, axis=1)
  rows = scipy.sparse.diags_array(1 / np.where(lengths > 0, lengths, 1)) @ weighted
  start = np.ones(min(rows.shape))  # the default start is random
  left, values, _ = scipy.sparse.linalg.svds(rows, dim, v0=start, tol=1e-3)
  return (left * values)[:, ::-1].astype(np.float32)
