"""CiteULike-t."""

from __future__ import annotations

import functools
import pathlib

import numpy as np

from kd_jax.base import InputError
from kd_jax.data import sources
from kd_jax.data.pickles import read_pickle
from kd_jax.data.recipe import TEST, TRAIN, VALIDATION, Log, Recipe, Source, encode

_SHA256 = "02d5d429b2c0362e0ed79f6ef204666b4092563d21493abf4dfb521e8a7078bf"
_RAW = "https://raw.githubusercontent.com"
FOLDER = f"{_RAW}/js05212/citeulike-t/4f103c6ea0fe407b23be230837b65517e613c34a"
_URL = f"{FOLDER}/users.dat"
_LOO = f"{_RAW}/SeongKu-Kang/DE-RRD_CIKM20/97b6bf6fa70caecb26f22b539763f476a1843949/Dataset/citeULike/LOO"
_TD = f"{_RAW}/SeongKu-Kang/Topology_Distillation_KDD21/44a694a724d9a483249a77874980ea05450b35fa/dataset"
# For train, validation and test: (text file, its sha256, pickle, its sha256, URL of the pickle).
_PUBLISHED = {
    "derrd": (
        ("derrd_train.tsv", "454894c686237bc283b41c1a8e885d51633a5d7e8423733fd5ea94102eac0772",
         "derrd_train_mat_0", "b69e4a93a0a3f01dfe7668358d96eb866af9a28b61461798c19958af5750aedd",
         f"{_LOO}/train_mat_0"),
        ("derrd_valid.tsv", "6381da3c6acf0a2d154800aac9c1a20449c0b2dfb3d6d478abe860d85e7f1df5",
         "derrd_valid_sample_0", "8f258804ffeb3ddc5aff8d669e5ed98377010346cedbf3186f18c0523499d441",
         f"{_LOO}/valid_sample_0"),
        ("derrd_test.tsv", "f07a00a65f10633b9830f338c7a8d184a44681b0d92e3a6d48c1ad58102b8677",
         "derrd_test_sample_0", "34f3ab9dba594c0b8ff43145e6d7e08e121fc6217b9bd13444a1c27f93a4f0b1",
         f"{_LOO}/test_sample_0")),
    "topology": (
        ("td_train.tsv", "8fe560890fc0768b6f89ee38826845eb6ac5a3124353f5aa60acad11ef9752ff",
         "td_Train", "4ff316eb275346131c38b218f281d944552c1de61d7bf7008134ba82262bf16b", f"{_TD}/Train"),
        ("td_valid.tsv", "718be04032601cd229d72c9737cee38b95ccdc70ca51fcc56dda197802632b4e",
         "td_Valid", "9f7920c83158f69c69e5887b1a01f7346087f3690fb54e8930861ba0765b93b9", f"{_TD}/Valid"),
        ("td_test.tsv", "422901887e8e2bb401bf9eb2d0d427df824f600d60798dfad28b130dc82648f9",
         "td_Test", "b1375faa9e1fcccf7f8e481d9e350c11604be41f330b3fd4c663576ce71175c5", f"{_TD}/Test")),
}
TERMS = ("CiteULike data is for research use and states no licence; cite H. Wang, B. Chen and W.-J. Li, "
          "Collaborative Topic Regression with Social Regularization for Tag Recommendation, IJCAI 2013.")


def citeulike(split="random", min_user=5, min_item=1, ratios=(0.8, 0.1, 0.1), split_seed=0) -> Recipe:
  """CiteULike-t: 5,219 researchers with at least five articles in their libraries, 25,181 articles.

  Origin: users.dat of github js05212/citeulike-t (4f103c6), from a local copy (citeulike-t/users.dat)
  or by download. Licence: none stated; research use, cite Wang, Chen and Li, IJCAI 2013. sha256
  02d5d429... Ids: users by line number from 0, items by article. No time stamps. Filter: users with at
  least `min_user` articles (and `min_item` users per article, applied together): 125,580 interactions.
  Split: random and position split each row by ratios, as RCE-KD does, into 98,405/12,451/14,724. Rows are
  sorted by article id, so position is not a time order, and 73.5 % of its test interactions are on items
  without training interactions. loo holds out two random articles per user. cold_items holds out a tenth of
  the articles entirely for validation and another tenth for test, and some articles of each user as well.
  derrd and topology are the leave-one-out splits published with DE-RRD and Topology Distillation,
  115,142/5,219/5,219, with the ids of their files, from citeulike-derrd/, its raw pickles, or by download;
  they are not filtered.
  """
  if split in _PUBLISHED:
    if (min_user, min_item) != (5, 1):
      raise InputError(f"`data`: citeulike(split={split!r}) is published whole: no min_user, min_item")
    return Recipe(_read_published, tuple(_published(*row) for row in _PUBLISHED[split]), split="given",
                  terms=TERMS)
  if split in ("temporal", "loo_last", "given"):
    raise InputError(f"`data`: citeulike(split={split!r}): there are no time stamps; choose from random, "
                     "position, loo, cold_items, derrd, topology")
  places = (("citeulike-t/users.dat", _SHA256), ("users.dat", _SHA256))
  source = Source("users.dat", _SHA256, places, (functools.partial(sources.get, _URL),),
                  advice=f"It is at {_URL}.")
  return Recipe(_read_users, (source,), None, min_user, min_item, split, ratios, split_seed, terms=TERMS)


def _read_users(paths: list[pathlib.Path]) -> Log:
  """Line u is `n item item ...`, the library of user u."""
  rows = [line.split()[1:] for line in paths[0].read_text().splitlines()]
  users = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
  items, item_ids = encode([item for row in rows for item in row])
  return Log(users, items, [str(u) for u in range(len(rows))], item_ids)


def _published(text, text_sha256, pickle, pickle_sha256, url) -> Source:
  places = ((f"citeulike-derrd/{text}", text_sha256), (f"citeulike-derrd/raw/{pickle}", pickle_sha256))
  fetch = functools.partial(sources.get, url)
  return Source(pickle, pickle_sha256, places, (fetch,), advice=f"It is at {url}.")


def _read_published(paths: list[pathlib.Path]) -> Log:
  """Pairs of train, validation and test, sorted by user and item, so that both file formats give the same log."""
  pairs = [_read_pairs(path) for path in paths]
  parts = np.repeat(np.array([TRAIN, VALIDATION, TEST], np.int8), [len(p) for p in pairs])
  users, user_ids = encode(np.concatenate(pairs)[:, 0].tolist())
  items, item_ids = encode(np.concatenate(pairs)[:, 1].tolist())
  return Log(users, items, [str(u) for u in user_ids], [str(i) for i in item_ids], parts=parts)


def _read_pairs(path) -> np.ndarray:
  """Pairs [N, 2] int64 from a text file, or from a pickled {user: items} or {user: item}."""
  if path.suffix == ".tsv":
    pairs = np.loadtxt(path, np.int64, delimiter="\t", ndmin=2)
  else:
    rows = {u: [i] if isinstance(i, int) else list(i) for u, i in read_pickle(path).items()}
    pairs = np.array([(u, i) for u, items in rows.items() for i in items], np.int64)
  return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
