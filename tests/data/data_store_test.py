"""Prepared data on disk: what is verified, what is not opened, and what survives a kill."""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats

from kd_jax import data, registry
from kd_jax.base import InputError
from kd_jax.data import builder, store

SMALL = "synthetic(users=60, items=50, interactions_per_user=10)"
ALL = ("train", "validation", "test")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  cache = tmp_path_factory.mktemp("cache")
  data.load(SMALL, cache_dir=cache)
  return cache


@pytest.fixture
def cache(prepared, tmp_path):
  return pathlib.Path(shutil.copytree(prepared, tmp_path / "cache"))


def file_of(cache, split):
  (path,) = (cache / "data").glob(f"*/*/*/*/*-{split}.array_record*")
  return path


def pairs(part):
  return np.stack([part.users, part.items, part.timestamps])


def test_a_data_set_is_what_was_generated(cache):
  loaded = data.load(SMALL, cache_dir=cache, splits=ALL)
  recipe = registry.build("data", registry.parse("data", SMALL, "data"))
  log, parts, _ = store.process(recipe, recipe.read([]))
  for value, name in enumerate(ALL):
    part = getattr(loaded, name)
    assert part.users.dtype == part.items.dtype == np.int32 and part.timestamps.dtype == np.int64
    assert (pairs(part) == np.stack([log.users, log.items, log.timestamps])[:, parts == value]).all()
  assert loaded.user_ids.tolist() == log.user_ids and loaded.item_ids.tolist() == log.item_ids
  assert loaded.train.ratings is None and loaded.synthetic
  assert any("SYNTHETIC" in warning for warning in loaded.report["audit"]["warnings"])
  assert set(loaded.hashes) == {*ALL, "user_ids", "item_ids"}


def test_many_blocks_keep_their_order(cache, tmp_path, monkeypatch):
  monkeypatch.setattr(builder, "BLOCK", 7)
  blocks, whole = (data.load(SMALL, cache_dir=folder) for folder in (tmp_path / "blocks", cache))
  assert (pairs(blocks.train) == pairs(whole.train)).all() and blocks.hashes == whole.hashes
  assert blocks.user_ids.tolist() == whole.user_ids.tolist()


def test_the_same_call_in_other_words_is_the_same_data_set(cache):
  other = "synthetic(items=50, split='random', users=60, interactions_per_user=10)"
  loaded = data.load(other, cache_dir=cache)
  assert loaded.name == data.load(SMALL, cache_dir=cache).name
  assert data.load(loaded.name, cache_dir=cache).hashes == loaded.hashes
  assert len(list((cache / "data").glob("synthetic-*"))) == 1


def test_the_test_split_is_not_opened_unless_asked_for(cache):
  before = data.load(SMALL, cache_dir=cache)
  file_of(cache, "test").write_bytes(b"garbage")
  after = data.load(SMALL, cache_dir=cache)
  assert after.test is None and after.hashes == before.hashes
  assert (pairs(after.train) == pairs(before.train)).all()
  with pytest.raises(InputError, match=r"split test: .* delete this folder"):
    data.load(SMALL, cache_dir=cache, splits=ALL)
  file_of(cache, "test").unlink()
  assert data.load(SMALL, cache_dir=cache).hashes == before.hashes


@pytest.mark.parametrize("split", ["train", "validation", "users", "items"])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "swap"])
def test_damage_is_noticed_and_named(cache, split, damage):
  path = file_of(cache, split)
  content = bytearray(path.read_bytes())
  if damage == "flip":
    content[len(content) // 3] ^= 1
  path.write_bytes(content[:-1] if damage == "cut" else content)
  if damage == "delete":
    path.unlink()
  if damage == "swap":
    shutil.copy(file_of(cache, "test"), path)
  with pytest.raises(InputError, match=f"split {split}: .* delete this folder"):
    data.load(SMALL, cache_dir=cache)


@pytest.mark.parametrize("name", [
    "manifest.json", "manifest.sha256", "*/*/*/features.json", "*/*/*/dataset_info.json"])
def test_damaged_descriptions_are_noticed(cache, name):
  (path,) = (cache / "data").glob(f"synthetic-*/{name}")
  content = path.read_bytes()
  for broken in (content.translate(bytes.maketrans(b"0123456789", b"1234567890")), content[:-2], None):
    path.write_bytes(broken) if broken is not None else path.unlink()
    with pytest.raises(InputError, match="delete this folder"):
      data.load(SMALL, cache_dir=cache)


def test_generation_is_deterministic_and_the_seed_matters(cache, tmp_path):
  first = data.load(SMALL, cache_dir=cache)
  assert data.load(SMALL, cache_dir=tmp_path / "again").hashes == first.hashes
  other = data.load(SMALL[:-1] + ", seed=1)", cache_dir=cache)
  assert other.hashes["train"] != first.hashes["train"]
  resplit = data.load(SMALL[:-1] + ", split_seed=1)", cache_dir=cache)
  assert resplit.hashes["train"] != first.hashes["train"]
  assert resplit.hashes["user_ids"] == first.hashes["user_ids"]


def test_a_killed_preparation_is_done_again(tmp_path):
  code = ("import os, sys; from kd_jax import data; from kd_jax.data import builder\n"
          "write = builder.write_splits\n"
          "def kill(*a):\n  write(*a)\n  os.kill(os.getpid(), 9)\n"
          f"builder.write_splits = kill\ndata.load({SMALL!r}, cache_dir=sys.argv[1])")
  done = subprocess.run([sys.executable, "-c", code, tmp_path], env=environment(), check=False)
  assert done.returncode == -9 and not list((tmp_path / "data").glob("synthetic-*"))
  assert data.load(SMALL, cache_dir=tmp_path).num_users == 60
  assert [p.name for p in (tmp_path / "data").iterdir() if "tmp" in p.name] == []


def test_two_processes_prepare_at_once(tmp_path):
  code = f"import sys; from kd_jax import data; print(data.load({SMALL!r}, cache_dir=sys.argv[1]).hashes)"
  command = [sys.executable, "-c", code, tmp_path]
  running = [subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE) for _ in range(3)]
  answers = [process.communicate()[0] for process in running]
  assert [process.returncode for process in running] == [0, 0, 0] and len(set(answers)) == 1


def environment():
  root = pathlib.Path(__file__).resolve().parents[2]
  return os.environ | {"PYTHONPATH": str(root)}


def test_a_changed_file_is_prepared_anew(tmp_path):
  path = tmp_path / "log.csv"
  rows = [f"u{u},i{(u + k) % 9},{k}\n" for u in range(8) for k in range(6)]
  path.write_text("user,item,ts\n" + "".join(rows))
  call = f"interactions(path={str(path)!r}, split='loo_last', timestamp='ts')"
  first = data.load(call, cache_dir=tmp_path / "cache", splits=ALL)
  assert (first.num_users, first.num_items, len(first.train.users), len(first.test.users)) == (8, 9, 32, 8)
  assert set(first.test.timestamps) == {5} and set(first.validation.timestamps) == {4}
  path.write_text("user,item,ts\n" + "".join(rows[:-6]))
  assert data.load(call, cache_dir=tmp_path / "cache").num_users == 7
  path.unlink()
  with pytest.raises(InputError, match=r"path='.*log\.csv': no such file"):
    data.load(call, cache_dir=tmp_path / "cache")


def test_unwritable_cache_and_unknown_splits(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="`cache_dir`: cannot write"):
    data.load(SMALL, cache_dir=tmp_path / "file")
  with pytest.raises(InputError, match="no split 'dev' among train, validation, test"):
    data.load(SMALL, cache_dir=tmp_path, splits=("dev",))


@pytest.mark.parametrize("arguments", [
    "users=0", "dim=1.5", "items=5", "drift=2", "popularity=-1", "split='given'", "ratios=(1, 0, 0)"])
def test_wrong_synthetic_arguments(tmp_path, arguments):
  with pytest.raises(InputError, match="`data"):
    data.load(f"synthetic({arguments})", cache_dir=tmp_path)


def recall(seen, users, items, scores):
  """Share of the held-out interactions among each user's ten best unseen items."""
  top = np.argsort(-np.where(seen > 0, -np.inf, scores), 1)[:, :10]
  return (top[users] == items[:, None]).any(1).mean()


def factor_scores(seen):
  left, values, right = np.linalg.svd(seen, full_matrices=False)
  return (left[:, :9] * values[:9]) @ right[:9]


def test_factors_beat_popularity_on_synthetic_data(tmp_path):
  loaded = data.load("synthetic(users=800, items=300)", cache_dir=tmp_path, splits=ALL)
  seen = np.zeros((loaded.num_users, loaded.num_items))
  seen[loaded.train.users, loaded.train.items] = 1
  held_out = loaded.test.users, loaded.test.items
  popular = recall(seen, *held_out, np.tile(seen.sum(0), (len(seen), 1)))
  assert recall(seen, *held_out, factor_scores(seen)) > 1.5 * popular > 0.02


def test_drift_makes_the_past_tell_less(tmp_path):
  found = []
  for drift in (0.0, 1.0):
    loaded = data.load(f"synthetic(users=800, items=300, drift={drift})", cache_dir=tmp_path, splits=ALL)
    users, items, times = np.concatenate([pairs(getattr(loaded, split)) for split in ALL], 1)
    early, late = times < 2 * 86_400, times >= 3 * 86_400
    seen = np.zeros((loaded.num_users, loaded.num_items))
    seen[users[early], items[early]] = 1
    found.append(recall(seen, users[late], items[late], factor_scores(seen)))
  assert found[0] > 1.5 * found[1] > 0


def test_without_preferences_items_are_drawn_by_popularity_one_after_the_other(tmp_path):
  loaded = data.load("synthetic(users=6000, items=12, interactions_per_user=4, dim=0, popularity=1.0, "
                     "split='loo')", cache_dir=tmp_path, splits=ALL)
  users, items, times = np.concatenate([pairs(getattr(loaded, split)) for split in ALL], 1)
  assert len(users) == 24_000 == len(set(zip(users.tolist(), items.tolist(), strict=True)))
  first = np.lexsort((times, users))[::4]  # of every user: one a day
  counts, expected = np.sort(np.bincount(items[first], minlength=12))[::-1], 1 / np.arange(1, 13)
  assert scipy.stats.chisquare(counts, 6000 * expected / expected.sum()).pvalue > 1e-3
