"""Counts of the real data sets. `real_data` is the folder of source files, or skips."""

import numpy as np
import pytest

from kd_jax import data
from kd_jax.data import audit, citeulike

ALL = ("train", "validation", "test")
COUNTS = {  # users, items, train, validation, test
    "movielens": (942, 1447, 43929, 5497, 5949),
    "citeulike": (5219, 25181, 98405, 12451, 14724),
    "citeulike(split='position')": (5219, 25181, 98405, 12451, 14724),
    "citeulike(split='loo')": (5219, 25181, 115142, 5219, 5219),
    "citeulike(split='derrd')": (5219, 25181, 115142, 5219, 5219),
    "citeulike(split='topology')": (5219, 25181, 115142, 5219, 5219),
    "citeulike_text(dim=4)": (5219, 25181, 77997, 22315, 25268),
    # Train and validation together are the 810,128 interactions of the published train split.
    "gowalla": (29858, 40981, 742879, 67249, 217242),
    "online_retail": (4078, 3149, 212010, 26492, 26573),
    "online_retail(split='loo_last')": (4078, 3149, 256919, 4078, 4078),
    "beauty": (22363, 12101, 153776, 22363, 22363),
    "sports": (35598, 18357, 225141, 35598, 35598),
    "toys": (19412, 11924, 128773, 19412, 19412),
    "movietweetings": (4333, 2414, 52741, 6698, 8616),
}
COLD_TEST = {"citeulike(split='derrd')": 258, "citeulike(split='topology')": 299,
             "citeulike(split='position')": 10829, "citeulike_text(dim=4)": 13797}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("call", COUNTS)
def test_counts(call, real_data, cache):
  loaded = data.load(call, data_dir=real_data, cache_dir=cache, splits=ALL)
  parts = [len(getattr(loaded, split).users) for split in ALL]
  assert (loaded.num_users, loaded.num_items, *parts) == COUNTS[call]
  assert [loaded.report["audit"][split] for split in ALL] == parts
  if call in COLD_TEST:
    assert loaded.report["audit"]["cold_test"] == COLD_TEST[call]


def test_articles_have_their_words(real_data, cache):
  loaded = data.load("citeulike_text(dim=4)", data_dir=real_data, cache_dir=cache)
  text = loaded.item_features.vectors["text"]
  assert text.shape == (25181, 4)
  assert (~text.any(axis=1)).sum() == 30  # articles without words in mult.dat
  held = loaded.validation.items
  assert (~np.isin(held, loaded.train.items)).sum() == loaded.report["audit"]["cold_validation"] == 13346


def test_the_position_split_of_citeulike_is_found_out(real_data, cache):
  loaded = data.load("citeulike(split='position')", data_dir=real_data, cache_dir=cache)
  text = audit.describe(loaded.report["audit"])
  for words in ("5,219 users, 25,181 items, 98,405/12,451/14,724 interactions", "= 73.5%", "not time",
                "entirely cold test set 2,477"):
    assert words in text


def test_text_and_pickles_are_the_same_data_set(real_data, tmp_path):
  (tmp_path / "citeulike-derrd").mkdir()
  (tmp_path / "citeulike-derrd/raw").symlink_to(real_data / "citeulike-derrd/raw")
  for split in citeulike._PUBLISHED:
    call = f"citeulike(split={split!r})"
    text, pickles = (data.load(call, data_dir=source, cache_dir=tmp_path / name).hashes
                     for name, source in (("a", real_data), ("b", tmp_path)))
    assert text == pickles
