"""The order of what has none: priorities are hashes of ids, and a user's own file may be shuffled."""

import hashlib

import numpy as np
import pytest

from kd_jax import data, registry
from kd_jax.base import InputError
from kd_jax.data import order, store
from kd_jax.data.recipe import Log
from kd_jax.models import sasrec

ALL = ("train", "validation", "test")


def names(count, seed=0):
  return np.array([f"item {n}é" for n in np.random.default_rng(seed).permutation(count)])


def digest(text):
  return hashlib.blake2b(text.encode(), digest_size=8).digest()


def test_priorities_are_ranks_of_hashes_of_the_ids():
  ids = names(500)
  in_order = sorted(ids.tolist(), key=lambda text: (digest(text), text))
  found = order.priority(ids)
  assert found.dtype == np.int32 and found.tolist() == [in_order.index(text) for text in ids.tolist()]
  assert order.inverse(found).tolist() == [ids.tolist().index(text) for text in in_order]


def test_priorities_do_not_depend_on_the_order_of_ids_nor_on_other_ids():
  ids, moved = names(500), np.random.default_rng(1).permutation(500)
  assert np.array_equal(order.priority(ids[moved]), order.priority(ids)[moved])
  few = moved[:50]
  assert np.array_equal(np.argsort(order.priority(ids[few])), np.argsort(order.priority(ids)[few]))


def test_priorities_say_nothing_of_the_place():
  places = order.priority(np.arange(4000).astype(str))
  assert abs(np.corrcoef(places, np.arange(4000))[0, 1]) < 4 / np.sqrt(4000)


def test_ids_of_equal_hashes_are_in_the_order_of_their_texts(monkeypatch):
  monkeypatch.setattr(order, "_hash", lambda text: bytes(7) + bytes([len(text)]))
  assert order.priority(np.array(["ccc", "b", "aa", "a", "ac", "ab"])).tolist() == [5, 1, 2, 0, 4, 3]


@pytest.mark.parametrize("ids", [[], ["one"]])
def test_few_ids(ids):
  assert order.priority(np.array(ids, np.str_)).tolist() == list(range(len(ids)))


def test_priorities_are_kept_as_long_as_their_ids():
  ids = names(20)
  before, found = len(order._KNOWN), order.priority(ids)
  assert order.priority(ids) is found and len(order._KNOWN) == before + 1
  del ids
  assert len(order._KNOWN) == before


HEADER = "user,item,rating,time,part"
CALL = "interactions(path={path!r}, rating='rating', timestamp='time'"
RULES = {
  "random": "split='random', split_seed=3", "temporal": "split='temporal'", "loo": "split='loo'",
  "loo_last": "split='loo_last'", "cold_items": "split='cold_items'",
  "given": "split='given', split_column='part'", "filtered": "split='random', min_rating=2.0, min_user=3, min_item=2",
}


def rows(seed=0):
  """40 users: few time stamps, so that most are tied; pairs repeated with other times and ratings, rows repeated."""
  rng, made = np.random.default_rng(seed), []
  for user in range(40):
    for item in rng.choice(30, size=rng.integers(5, 14), replace=False):
      part = rng.choice(ALL, p=[0.6, 0.2, 0.2])
      for _ in range(rng.integers(1, 3)):
        made.append(f"u{user},i{item},{rng.integers(1, 6)},{rng.integers(8)},{part}")
  return [*made, *made[:20]]


def write(path, lines, header=HEADER):
  path.write_text("\n".join([header, *lines]) + "\n")
  return str(path)


def arrays(dataset):
  """Everything that a run reads."""
  columns = {(split, name): x for split in ALL for name, x in getattr(dataset, split)._asdict().items()}
  return {**columns, "users": dataset.user_ids, "items": dataset.item_ids}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
  """loaded(call with a {path}, lines): the data set of these lines."""
  folder = tmp_path_factory.mktemp("order")

  def load(call, lines, header=HEADER):
    number = len(list(folder.glob("*.csv")))
    path = write(folder / f"{number}.csv", lines, header)
    return data.load(call.format(path=path), cache_dir=folder / "cache", splits=ALL)

  return load


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_rows_does_not_matter(rule, loaded):
  lines = rows()
  shuffled = np.random.default_rng(5).permutation(lines).tolist()
  call = f"{CALL}, {RULES[rule]})"
  one, other = loaded(call, lines), loaded(call, shuffled)
  assert one.hashes == other.hashes
  for (name, x), y in zip(arrays(one).items(), arrays(other).values(), strict=True):
    assert np.array_equal(x, y), name
  assert len(set(one.train.users.tolist())) > 20 and len(one.test.users) > 0


def test_the_order_of_rows_is_what_a_split_by_position_reads(loaded):
  lines = [f"u{user},i{(7 * user + n) % 30},1,0,train" for n in range(10) for user in range(40)]
  one, other = (loaded(f"{CALL}, split='position')", x) for x in (lines, lines[::-1]))
  for user, item in zip(one.user_ids[one.test.users], one.item_ids[one.test.items], strict=True):
    assert item == f"i{(7 * int(user[1:]) + 9) % 30}", "the last row of every user"
  assert one.item_ids.tolist()[:2] == ["i0", "i7"], "indices are those of first appearance"
  assert set(zip(one.user_ids[one.test.users], one.item_ids[one.test.items], strict=True)) != set(
    zip(other.user_ids[other.test.users], other.item_ids[other.test.items], strict=True))


def test_of_a_repeated_pair_the_earliest_is_kept_then_the_one_with_the_lowest_rating(loaded):
  others = [f"u{u},i{i},1,5,train" for u in range(12) for i in range(12) if (u, i) != (0, 0)]
  lines = ["u0,i0,5,9,train", "u0,i0,4,7,train", "u0,i0,2,7,train", "u0,i0,3,7,train", "u0,i0,1,8,train"]
  found = loaded(f"{CALL}, split='random')", [*lines, *others])
  logs = [getattr(found, split) for split in ALL]
  users, items, ratings, times = (np.concatenate(x) for x in zip(*logs, strict=True))
  (row,) = np.flatnonzero((found.user_ids[users] == "u0") & (found.item_ids[items] == "i0"))
  assert ratings[row] == 2 and times[row] == 7


def rank_of(ids):
  return {name: rank for rank, name in enumerate(sorted(ids, key=digest))}


def mixed(value):
  """SplitMix64 in Python's integers."""
  value = (value + 0x9E3779B97F4A7C15) % 2**64
  value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
  value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
  return value ^ value >> 31


def test_rows_are_sorted_by_hashes_of_ids(loaded):
  found = loaded(f"{CALL}, split='random')", rows())
  train = found.train
  users, items = (ids[x].tolist() for ids, x in ((found.user_ids, train.users), (found.item_ids, train.items)))
  user_of, item_of = (rank_of(found.user_ids.tolist()), rank_of(found.item_ids.tolist()))
  keys = [(user_of[user], mixed(user_of[user] << 32 | item_of[item])) for user, item in zip(users, items, strict=True)]
  assert keys == sorted(keys) and len(keys) > 100
  assert found.report["unordered"] and found.report["audit"]["users_sorted_by_item_id"] is None


def test_only_prepared_data_of_own_files_has_a_revision(tmp_path, monkeypatch):
  """Data sets with pinned files, and splits by position, are not prepared again."""
  def revision(call):
    return registry.build("data", registry.parse("data", call, "data")).revision

  assert [revision(f"interactions(path='x', split='{rule}')") for rule in ("random", "loo", "position")] == [1, 1, 0]
  assert revision("labelled(path='x', fields=('a',))") == 1
  for name in registry.names("data"):
    if name not in ("interactions", "labelled"):
      assert revision(f"{name}()") == 0, name
  path = write(tmp_path / "x.csv", rows())
  call = store.canonical(registry.parse("data", CALL.format(path=path) + ")", "data"))
  folder = store.prepare(call, None, tmp_path / "cache")
  recipe = registry.build("data", call)._replace(revision=2)
  monkeypatch.setattr(registry, "build", lambda kind, call: recipe)
  assert store.prepare(call, None, tmp_path / "cache") != folder


def test_a_sequence_model_wants_time_stamps_or_an_order(loaded):
  lines = [line.rpartition(",")[0] for line in rows()]
  module = sasrec(num_users=40, num_items=30, dim=4, length=5)
  call = "interactions(path={path!r}, split="
  with pytest.raises(InputError, match="no time stamps; name their column"):
    module.constants(loaded(f"{call}'random')", lines, "user,item,rating,time"))
  for fine in (f"{call}'position')", "interactions(path={path!r}, timestamp='time')"):
    dataset = loaded(fine, lines, "user,item,rating,time")
    assert len(module.constants(dataset)["items"]) == len(dataset.train.users)


LABELLED = "labelled(path={path!r}, labels=('y', 'z'), fields=('user', 'colour'), numeric=('x',), timestamp='time'"


def contexts(seed=0):
  rng = np.random.default_rng(seed)
  lines = [f"u{rng.integers(9)},{rng.choice(['red', 'blue', ''])},{rng.integers(5) / 3},{rng.integers(8)},"
           f"{rng.choice(ALL)},{rng.integers(2)},{rng.integers(2)}" for _ in range(120)]
  return [*lines, *lines[:9]]


@pytest.mark.parametrize("rule", ["split='random'", "folds=4, fold=1, hashed=5", "split='temporal'",
                                  "split='given', split_column='part'"])
def test_the_order_of_labelled_rows_does_not_matter(rule, loaded):
  header, lines = "user,colour,x,time,part,y,z", contexts()
  moved = np.random.default_rng(5).permutation(len(lines))
  one, other = (loaded(f"{LABELLED}, {rule})", x, header) for x in (lines, [lines[n] for n in moved]))
  for split in ALL:
    assert np.array_equal(one.contexts[split], other.contexts[split]) and len(one.contexts[split])
    for x, y in zip(getattr(one, split)[:2], getattr(other, split)[:2], strict=True):
      assert np.array_equal(x, y)
  assert np.array_equal(one.user_features.categories, other.user_features.categories)
  assert np.array_equal(one.user_features.vectors["x"], other.user_features.vectors["x"])
  for dataset, own in ((one, lines), (other, [lines[n] for n in moved])):  # ids are numbers of rows
    of_context = [own[int(name)].split(",") for name in dataset.user_ids.tolist()]
    assert np.allclose([float(row[2]) for row in of_context], dataset.user_features.vectors["x"][:, 0])
    true = np.zeros((len(own), 2), bool)
    for split in ALL:
      true[getattr(dataset, split).users, getattr(dataset, split).items] = True
    assert true.tolist() == [[row[5] == "1", row[6] == "1"] for row in of_context]


def test_equal_times_hold_out_other_items_for_every_user(tmp_path):
  """With one time stamp per user, the last interaction is a random one: about as many items as users are tested."""
  path = tmp_path / "log.csv"
  path.write_text("user,item,time\n" + "".join(f"u{u},i{i},{u}\n" for u in range(200) for i in range(100)))
  found = data.load(f"interactions(path={str(path)!r}, timestamp='time', split='loo_last')",
                    cache_dir=tmp_path / "cache", splits=("train", "validation", "test"))
  distinct = len(np.unique(found.test.items))
  expected = 100 * (1 - (1 - 1 / 100) ** 200)  # of 100 items, in 200 draws
  assert abs(distinct - expected) < 12


def test_stable_orders():
  rng = np.random.default_rng(4)
  for count, values in ((0, 1), (1, 1), (5000, 7), (5000, 4000)):
    keys = rng.integers(-values, values, size=count)
    assert np.array_equal(order.stable(keys), np.argsort(keys, kind="stable"))


def test_the_order_is_that_of_a_sort_by_all_columns():
  rng = np.random.default_rng(5)
  users, items, times = rng.integers(20, size=4000), rng.integers(30, size=4000), rng.integers(4, size=4000)
  stars = rng.integers(3, size=4000).astype(np.float32)
  log = Log(users, items, [f"u{n}" for n in range(20)], [f"i{n}" for n in range(30)], stars, times)
  ranks = [order.priority(np.array(ids, object))[codes].astype(np.uint64) for ids, codes in (
      (log.user_ids, users), (log.item_ids, items))]
  hashes = order._mixed(ranks[0] << np.uint64(32) | ranks[1])
  expected = np.lexsort((stars, times, ranks[1], hashes, ranks[0]))
  found = order.unordered(log)
  for name in ("users", "items", "ratings", "timestamps"):
    assert np.array_equal(getattr(found, name), getattr(log, name)[expected])
