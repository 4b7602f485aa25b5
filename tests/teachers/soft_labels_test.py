"""A soft-label store is whole, is of this data set, and holds only valid rankings."""

import itertools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from kd_jax.base import Dataset, InputError, Interactions
from kd_jax.storage import sealed
from kd_jax.teachers import loading, soft_labels

NUM_USERS, NUM_ITEMS, K = 23, 40, 5


def make_dataset(**changed):
  hashes = {key: sealed.hash_array(np.array([key])) for key in ("train", "validation", "test")}
  ids = {"user_ids": np.arange(NUM_USERS).astype(str), "item_ids": np.arange(NUM_ITEMS).astype(str)}
  hashes |= {key: sealed.hash_array(value) for key, value in ids.items()}
  nothing = Interactions(np.zeros(0, np.int32), np.zeros(0, np.int32))
  dataset = Dataset("tiny()", NUM_USERS, NUM_ITEMS, nothing, nothing, None, **ids, hashes=hashes, report={})
  return dataset._replace(**changed)


def with_hash(**changed):
  return make_dataset(hashes=make_dataset().hashes | changed)


def reversed_ids(name):
  return with_hash(**{name: sealed.hash_array(getattr(make_dataset(), name)[::-1])})


def make_rows(seed=0):
  rng = np.random.default_rng(seed)
  items = np.argsort(rng.random((NUM_USERS, NUM_ITEMS)), axis=1)[:, :K].astype(np.int32)
  scores = -np.sort(-rng.normal(size=(NUM_USERS, K)), axis=1).astype(np.float32)
  items[3, 2:], scores[3, 2:] = -1, -np.inf
  items[4], scores[4] = -1, -np.inf
  return items, scores, rng.random(NUM_USERS).astype(np.float32)


def write(directory, rows=None, cuts=(0, 7, 7, 20, NUM_USERS), **changed):
  rows = rows or make_rows()
  blocks = (tuple(x[a:b] for x in rows) for a, b in itertools.pairwise(cuts))
  defaults = {"num_users": NUM_USERS, "num_items": NUM_ITEMS, "top_k": K, "exclude_seen": True}
  defaults |= {"users_per_shard": 8, "provenance": {"hashes": make_dataset().hashes, "data": "tiny()"}}
  soft_labels.write(directory, blocks, **(defaults | changed))


@pytest.mark.parametrize("cuts", [(0, 23), (0, 8, 16, 23), (0, 1, 2, 15, 23), tuple(range(24))])
def test_round_trip_does_not_depend_on_blocks(tmp_path, cuts):
  rows = make_rows()
  write(tmp_path / "s", rows, cuts)
  labels = soft_labels.read(tmp_path / "s", make_dataset())
  for stored, given in zip(labels[:3], rows, strict=True):
    assert stored.dtype == given.dtype and np.array_equal(stored, given)
  assert labels.metadata["exclude_seen"] is True and labels.metadata["top_k"] == K
  names = sorted(p.name for p in (tmp_path / "s").glob("shard*"))
  assert names == ["shard-00000.npz", "shard-00001.npz", "shard-00002.npz"]
  report = soft_labels.truncation(labels)
  assert report["short_rows"] == 2 and report["tail_mass_max"] == rows[2].max()
  assert report["tail_mass_mean"] == pytest.approx(rows[2].mean())


def test_shards_are_plain_uncompressed_npz(tmp_path):
  write(tmp_path / "s")
  with np.load(tmp_path / "s" / "shard-00001.npz", allow_pickle=False) as file:
    assert {k: (v.shape, v.dtype.name) for k, v in file.items()} == {
      "items": ((8, K), "int32"),
      "scores": ((8, K), "float32"),
      "tail_mass": ((8,), "float32"),
    }
    assert all(entry.compress_type == 0 for entry in file.zip.infolist())


def resign(directory, **changed):
  """Makes the manifest fit the changed files, as somebody who means harm would."""
  metadata = json.loads((directory / "manifest.json").read_text())["metadata"] | changed
  with sealed.writing(directory, soft_labels.KIND, metadata) as temporary:
    for path in directory.glob("*.npz"):
      shutil.copy(path, temporary)


def put(part, row, column, value):
  def change(rows):
    rows = list(rows)
    if value == 2**32:
      rows[part] = rows[part].astype(np.int64)
    rows[part][(row, column) if column is not None else row] = value
    return tuple(rows)

  return change


WRONG_VALUES = [
  (put(0, 9, 1, NUM_ITEMS), f"user 9: an item id outside 0..{NUM_ITEMS - 1}"),
  (put(0, 9, 1, -2), "user 9: an item id outside"),
  (put(0, 9, 1, 2**32), "user 9: an item id outside"),  # would wrap to 0
  (put(0, 9, 1, -1), "user 9: -1 before the end"),
  (put(0, 9, 4, -1), "user 9: the score of an empty place"),
  (put(1, 9, 0, np.nan), "user 9: a score is NaN or infinite"),
  (put(1, 9, 4, -np.inf), "user 9: a score is NaN or infinite"),
  (put(1, 4, 4, np.nan), "user 4: a score is NaN"),
  (put(1, 9, 4, 1e9), "user 9: scores increase"),
  (put(0, 9, slice(0, 2), 7), "user 9: an item is listed twice"),
  (put(0, NUM_USERS - 1, slice(3, 5), 7), f"user {NUM_USERS - 1}: an item is listed twice"),
  (put(2, 9, None, 1.01), "user 9: the tail mass is outside"),
  (put(2, 9, None, -1e-3), "user 9: the tail mass is outside"),
  (put(2, 9, None, np.nan), "user 9: the tail mass is outside"),
]


@pytest.mark.parametrize("change, message", WRONG_VALUES)
def test_wrong_values_are_refused_at_writing_and_reading(tmp_path, change, message):
  rows = change(make_rows())
  with pytest.raises(InputError, match=message):
    write(tmp_path / "s", rows)
  assert os.listdir(tmp_path) == []
  write(tmp_path / "s")
  for number, a in enumerate(range(0, NUM_USERS, 8)):
    arrays = dict(zip(("items", "scores", "tail_mass"), (x[a : a + 8] for x in rows), strict=True))
    np.savez(tmp_path / "s" / f"shard-{number:05d}.npz", **arrays)
  resign(tmp_path / "s")
  with pytest.raises(InputError, match=message if rows[0].dtype == np.int32 else "int64"):
    soft_labels.read(tmp_path / "s", make_dataset())


def test_wrong_calls_are_refused(tmp_path):
  rows = make_rows()
  cases = [
    ({"cuts": (0, NUM_USERS - 1)}, f"rows of {NUM_USERS - 1} users, expected {NUM_USERS}"),
    ({"num_users": NUM_USERS - 1}, f"more rows than the {NUM_USERS - 1} users"),
    ({"top_k": K + 1}, "a block has shapes"),
    ({"users_per_shard": 0}, "must be positive"),
    ({"rows": (rows[0].astype(float), *rows[1:])}, "expected integers"),
    ({"rows": (*rows[:2], rows[2][:, None])}, "a block has shapes"),
    ({"provenance": {}}, "no hash of item_ids, user_ids, train"),
    ({"provenance": {"hashes": {"train": "x", "item_ids": "x"}}}, "no hash of user_ids"),
  ]
  for arguments, message in cases:
    with pytest.raises(InputError, match=message):
      write(tmp_path / "s", **arguments)
    assert os.listdir(tmp_path) == []


def flip(root):
  data = bytearray((root / "shard-00001.npz").read_bytes())
  data[len(data) // 2] ^= 4
  (root / "shard-00001.npz").write_bytes(data)


def swap(root):
  os.rename(root / "shard-00000.npz", root / "x")
  os.rename(root / "shard-00001.npz", root / "shard-00000.npz")
  os.rename(root / "x", root / "shard-00001.npz")


def shorter_shard(root):
  os.rename(root / "shard-00002.npz", root / "shard-00000.npz")
  resign(root)


def no_last_shard(root):
  (root / "shard-00002.npz").unlink()
  resign(root)


def pickled_shard(root):
  np.savez(root / "shard-00000.npz", items=np.array([{}]), scores=np.zeros(1), tail_mass=np.zeros(1))
  resign(root)


def nothing(root):
  """The store is as it was written; the data set is another."""


MISMATCHES = {
  "other number of items": (nothing, make_dataset(num_items=41), "made for 40 items, .* has 41"),
  "other number of users": (nothing, make_dataset(num_users=22), "made for 23 users, .* has 22"),
  "other data set": (nothing, with_hash(**dict.fromkeys(make_dataset().hashes, "x")), "item_ids has"),
  "other interactions": (nothing, with_hash(train="a"), "train has sha256"),
  "other split, same training": (nothing, with_hash(validation="b"), "validation has sha256"),
  "test part is another": (nothing, with_hash(test="b"), "test has sha256"),
  "re-indexed items": (nothing, reversed_ids("item_ids"), "item_ids has sha256"),
  "re-indexed users": (nothing, reversed_ids("user_ids"), "user_ids has sha256"),
  "hash not known": (nothing, make_dataset(hashes={}), "item_ids has sha256"),
  "missing shard": (lambda root: (root / "shard-00001.npz").unlink(), "shard-00001.npz: missing"),
  "missing shard, resigned": (no_last_shard, "shard-00002.npz: not a shard"),
  "swapped shards": (swap, r"shard-00000\.npz is"),
  "truncated shard": (lambda root: os.truncate(root / "shard-00002.npz", 100), r"shard-00002\.npz is"),
  "flipped bit": (flip, r"shard-00001\.npz is"),
  "shorter shard, resigned": (shorter_shard, r"shard-00000\.npz: holds"),
  "pickle inside": (pickled_shard, "shard-00000.npz: not a shard"),
  "other metadata": (lambda root: resign(root, top_k=None), "not that of a soft-label store"),
  "no manifest": (lambda root: (root / "manifest.json").unlink(), "no soft_labels here"),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_mismatch_is_refused_for_the_right_reason(tmp_path, name):
  change, *dataset, message = MISMATCHES[name]
  write(tmp_path / "s")
  soft_labels.read(tmp_path / "s", make_dataset())
  change(tmp_path / "s")
  with pytest.raises(InputError, match=message) as error:
    soft_labels.read(tmp_path / "s", dataset[0] if dataset else make_dataset())
  assert "\n" not in str(error.value)


def test_a_data_set_whose_test_part_was_not_loaded_is_accepted(tmp_path):
  write(tmp_path / "s")
  soft_labels.read(tmp_path / "s", with_hash(test=""))


SLOW_WRITER = """
import sys, time
import numpy as np
from kd_jax.teachers import soft_labels

def blocks():
  for user in range(1000):
    yield np.zeros((1, 1), np.int32), np.zeros((1, 1)), np.zeros(1)
    if user == 500:
      print("half", flush=True)
      time.sleep(60)

hashes = dict.fromkeys(("train", "user_ids", "item_ids"), "x")
soft_labels.write(sys.argv[1], blocks(), num_users=1000, num_items=1, top_k=1, exclude_seen=False,
                  provenance={"hashes": hashes}, users_per_shard=10)
"""


@pytest.mark.parametrize("old", [False, True])
def test_kill_9_in_the_middle_leaves_what_was_there(tmp_path, old):
  if old:
    write(tmp_path / "s")
  child = subprocess.Popen([sys.executable, "-c", SLOW_WRITER, tmp_path / "s"], stdout=subprocess.PIPE)
  assert child.stdout.readline() == b"half\n"
  assert len(list((tmp_path / ".s.tmp").glob("*.npz"))) == 50
  child.kill()
  child.communicate()
  assert sealed.names(tmp_path) == (["s"] if old else [])
  if old:
    soft_labels.read(tmp_path / "s", make_dataset())
  write(tmp_path / "s")
  assert os.listdir(tmp_path) == ["s"]


def test_a_teacher_whose_replacement_was_killed_between_its_two_renames_heals(tmp_path):
  write(tmp_path / "s")
  os.rename(tmp_path / "s", tmp_path / ".s.old")
  (tmp_path / ".s.tmp").mkdir()
  teacher = loading.load(str(tmp_path / "s"), make_dataset())
  assert np.array_equal(teacher.stored.items, make_rows()[0]) and not (tmp_path / ".s.old").exists()
