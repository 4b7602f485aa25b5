"""Features and contexts of a data set: stored and verified like the rest, labels of test unread until asked for."""

import flax.linen as nn
import numpy as np
import pytest

from kd_jax import data, registry
from kd_jax.base import Features, FeatureSpec, InputError
from kd_jax.data import builder, cleaning, contexts, store
from kd_jax.data.recipe import TEST, TRAIN, VALIDATION, Contexts, Log, Recipe
from kd_jax.teachers import loading

ALL = ("train", "validation", "test")
CONTEXTS, LABELS = 50, 3
RNG = np.random.default_rng(0)
POSITIVE = np.argwhere(RNG.random((CONTEXTS, LABELS)) < 0.4)
CATEGORIES = np.stack([RNG.integers(n, size=CONTEXTS) for n in (4, 7)], axis=1).astype(np.int32)
VECTORS = {"text": RNG.normal(size=(CONTEXTS, 5)).astype(np.float32),
           "price": RNG.normal(size=(CONTEXTS, 1)).astype(np.float32)}
FEATURES = Features(("colour", "shop"), (4, 7), CATEGORIES, VECTORS)
ITEMS = Features(vectors={"picture": RNG.normal(size=(LABELS, 2)).astype(np.float32)})


def labelled(times=None, parts=None):
  return Log(POSITIVE[:, 0], POSITIVE[:, 1], [f"c{n}" for n in range(CONTEXTS)], list("abc"),
             user_features=FEATURES, item_features=ITEMS, contexts=Contexts(times, parts))


def factory(split="random", folds=0, fold=0) -> Recipe:
  return Recipe(lambda paths: labelled(np.arange(CONTEXTS)[::-1]), split=split, folds=folds, fold=fold)


CALL = registry.Call("data_features_test.factory")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture
def loaded(cache):
  return data.load(CALL, cache_dir=cache, splits=ALL)


def test_features_come_back_as_they_were_read(loaded):
  found = loaded.user_features
  assert found[:2] == FEATURES[:2] and (found.categories == CATEGORIES).all() and list(found.vectors) == list(VECTORS)
  assert all((found.vectors[k] == VECTORS[k]).all() for k in VECTORS)
  assert (loaded.item_features.vectors["picture"] == ITEMS.vectors["picture"]).all()
  assert loaded.item_features.fields == () and loaded.item_features.categories is None
  assert {"user_features", "item_features"} < set(loaded.hashes)


def test_in_many_blocks_too(loaded, tmp_path, monkeypatch):
  monkeypatch.setattr(builder, "BLOCK", 7)
  blocks = data.load(CALL, cache_dir=tmp_path, splits=ALL)
  assert (blocks.user_features.vectors["text"] == VECTORS["text"]).all() and blocks.hashes == loaded.hashes
  assert all((blocks.contexts[split] == loaded.contexts[split]).all() for split in ALL)


def test_every_context_is_in_one_split_with_its_labels(loaded):
  assert sorted(np.concatenate(list(loaded.contexts.values())).tolist()) == list(range(CONTEXTS))
  assert [len(loaded.contexts[split]) for split in ALL] == [40, 5, 5]
  for split in ALL:
    inside = POSITIVE[np.isin(POSITIVE[:, 0], loaded.contexts[split])]
    part = getattr(loaded, split)
    assert sorted(zip(part.users, part.items, strict=True)) == sorted(map(tuple, inside))


def test_contexts_and_labels_of_test_are_not_read_unless_asked_for(loaded, cache):
  (file,) = (cache / "data").glob("*/*/*/*/*-test.array_record*")
  kept = file.read_bytes()
  file.write_bytes(b"garbage")
  some = data.load(CALL, cache_dir=cache)
  assert some.test is None and set(some.contexts) == {"train", "validation"} and some.hashes == loaded.hashes
  file.write_bytes(kept)


def test_damaged_features_are_refused(loaded, cache):
  (file,) = (cache / "data").glob("*/*/*/*/*-user_features.array_record*")
  kept = file.read_bytes()
  file.write_bytes(kept[:200] + bytes([kept[200] ^ 1]) + kept[201:])
  with pytest.raises(InputError, match="split user_features"):
    data.load(CALL, cache_dir=cache)
  file.write_bytes(kept)


def test_folds_are_disjoint_and_cover_everything():
  parts = np.stack([contexts.split(factory(folds=4, fold=n), labelled()) for n in range(4)])
  assert ((parts == TEST).sum(axis=0) == 1).all() and (parts == VALIDATION).any(axis=1).all()
  for wrong in (dict(folds=4, fold=4), dict(folds=1), dict(folds=3, split="temporal")):
    with pytest.raises(InputError, match="fold"):
      contexts.split(factory(**wrong), labelled(np.arange(CONTEXTS)))


def test_a_temporal_split_tests_on_the_latest():
  times = np.random.default_rng(1).permutation(CONTEXTS)
  parts = contexts.split(factory("temporal"), labelled(times))
  assert times[parts == TRAIN].max() < times[parts == VALIDATION].min() < times[parts == TEST].min()
  with pytest.raises(InputError, match="no"):
    contexts.split(factory("temporal"), labelled())
  with pytest.raises(InputError, match="choose from"):
    contexts.split(factory("loo"), labelled())


def test_features_follow_users_and_items_through_cleaning():
  log = Log(np.array([2, 0, 2, 1]), np.array([1, 1, 0, 2]), list("xyz"), list("abc"),
            user_features=FEATURES._replace(categories=CATEGORIES[:3], vectors={"text": VECTORS["text"][:3]}),
            item_features=ITEMS)
  cleaned, _, _ = store.process(Recipe(lambda paths: log, min_user=1, may_be_empty=ALL), log)
  names = list("xyz"), list("abc")
  assert cleaned.user_ids == ["z", "x", "y"] and cleaned.item_ids == ["b", "a", "c"]
  for ids, own, before, after in ((cleaned.user_ids, names[0], VECTORS["text"], cleaned.user_features.vectors["text"]),
                                  (cleaned.item_ids, names[1], ITEMS.vectors["picture"],
                                   cleaned.item_features.vectors["picture"])):
    assert (after == before[[own.index(i) for i in ids]]).all()
  assert cleaning.take_features(None, np.arange(2)) is None


class OwnModel(nn.Module):
  given: tuple


def own_model(num_users, user_features=None, width=2) -> nn.Module:
  return OwnModel((num_users, user_features, width))


def test_a_factory_gets_the_features_it_asks_for(loaded):
  spec = FeatureSpec(("colour", "shop"), (4, 7), (("text", 5), ("price", 1)))
  assert loading.build_model("data_features_test.own_model(width=3)", loaded).given == (CONTEXTS, spec, 3)
  with pytest.raises(InputError, match="no argument 'user_features'"):
    loading.build_model("data_features_test.own_model(user_features=3)", loaded)
