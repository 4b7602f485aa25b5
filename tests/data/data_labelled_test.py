"""The user's own labelled table, and the real labelled data sets."""

import gzip

import numpy as np
import pytest

from kd_jax import data
from kd_jax.base import InputError

HEADER = ["user", "colour", "price", "seen", "time", "part", "liked", "bought"]
ROWS = [["u1", "red", "1.5", "x", "10", "train", "1", "0"], ["u2", "", "-2", "y", "20", "train", "true", "False"],
        ["u1", "blue", "1e2", "z", "30", "validation", "0", "1"], ["u3", "red", "0", "x", "40", "test", "0", "0"]]
CALL = "labelled(path={path!r}, labels=('liked', 'bought'), fields=('user', 'colour'), numeric=('price',){more})"
GIVEN = ", timestamp='time', split='given', split_column='part'"
ALL = ("train", "validation", "test")


def load(path, tmp_path, more=GIVEN, call=CALL):
  return data.load(call.format(path=str(path), more=more), cache_dir=tmp_path / "cache", splits=ALL)


def write(path, rows, delimiter=","):
  text = "\n".join(delimiter.join(row) for row in [HEADER, *rows]) + "\n"
  (gzip.open if path.suffix == ".gz" else open)(path, "wt").write(text)
  return path


def as_parquet(path):
  pyarrow = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  columns = dict(zip(HEADER, map(list, zip(*ROWS, strict=True)), strict=True))
  typed = {"price": np.array(columns["price"], float), "time": np.array(columns["time"], np.int64),
           "liked": [x in ("1", "true") for x in columns["liked"]], "colour": [x or None for x in columns["colour"]]}
  parquet.write_table(pyarrow.table(columns | typed), path)
  return path


@pytest.mark.parametrize("kind", ["t.csv", "t.tsv", "t.csv.gz", "t.parquet"])
def test_a_table_is_read(tmp_path, kind):
  path = tmp_path / kind
  path = as_parquet(path) if kind == "t.parquet" else write(path, ROWS, "\t" if kind == "t.tsv" else ",")
  loaded = load(path, tmp_path)
  assert loaded.num_users == 4 and loaded.item_ids.tolist() == ["liked", "bought"]
  rows = loaded.user_ids.astype(int)  # the row of the file of every context
  assert {split: sorted(rows[loaded.contexts[split]].tolist()) for split in ALL} == {
      "train": [0, 1], "validation": [2], "test": [3]}
  assert [sorted(zip(rows[p.users], p.items, strict=True)) for p in (loaded.train, loaded.validation, loaded.test)] == [
      [(0, 0), (1, 0)], [(2, 1)], []]
  features, of_row = loaded.user_features, np.argsort(rows)
  assert features.fields == ("user", "colour") and features.sizes == (3, 3)
  users, colours = features.categories[of_row].T
  assert users[0] == users[2] != users[1] != users[3] and colours[0] == colours[3] != colours[1] != colours[2]
  assert features.vectors["price"][of_row].tolist() == [[1.5], [-2], [100], [0]]


def test_hashed_fields_have_so_many_values_and_equal_texts_share_one(tmp_path):
  loaded = load(write(tmp_path / "t.csv", ROWS), tmp_path, GIVEN + ", hashed=64")
  users, colours = loaded.user_features.categories[np.argsort(loaded.user_ids.astype(int))].T
  assert loaded.user_features.sizes == (64, 64) and users[0] == users[2] and colours[0] == colours[3]
  assert len(set(users.tolist())) == 3  # of 64, these three do not collide


@pytest.mark.parametrize(("column", "value", "words"), [
    (6, "2", r"t.csv:3: label '2' is neither 0 nor 1"), (2, "nan", r"t.csv:3: number 'nan' is not a finite"),
    (2, "x", r"t.csv:3: number 'x' is not a number"), (5, "dev", r"t.csv:3: part 'dev'")])
def test_a_bad_row_is_named(tmp_path, column, value, words):
  rows = [list(row) for row in ROWS]
  rows[1][column] = value
  with pytest.raises(InputError, match=words):
    load(write(tmp_path / "t.csv", rows), tmp_path)
  loaded = load(tmp_path / "t.csv", tmp_path, GIVEN + ", max_bad_rows=1")
  assert loaded.num_users == 3 and loaded.report["cleaning"]["bad_rows"] == 1


@pytest.mark.parametrize(("call", "words"), [
    ("labelled(path='x.csv')", "one of fields or"), ("labelled(path='x.csv', fields=('a', 'a'))", "distinct"),
    ("labelled(path='x.csv', fields=('a',), split='given')", "split_column"),
    ("labelled(path='x.csv', fields=('a',), hashed=-1)", "hashed")])
def test_wrong_arguments_are_refused(call, words, tmp_path):
  with pytest.raises(InputError, match=words):
    data.load(call, cache_dir=tmp_path)


def test_a_missing_column_is_named(tmp_path):
  call = "labelled(path={path!r}, labels=('liked',), fields=('colr',){more})"
  with pytest.raises(InputError, match="no column 'colr'; it has 'user', 'colour'"):
    load(write(tmp_path / "t.csv", ROWS), tmp_path, "", call)


def test_exactly_100_000_reviews_and_10_tags(real_data, tmp_path):
  loaded = data.load("movietweetings_tags()", real_data, tmp_path, ALL)
  assert loaded.num_users == 100_000 and loaded.num_items == 10
  assert loaded.item_ids[:3].tolist() == ["Drama", "Thriller", "Action"]
  counts = np.bincount(np.concatenate([getattr(loaded, split).items for split in ALL]))
  assert counts[:3].tolist() == [44113, 37779, 33521]  # counted with awk
  assert not {*loaded.user_features.fields, *loaded.user_features.vectors} & {"genre", "genres", "tags"}
  row = loaded.user_ids.tolist().index("1:1074638")  # 1::1074638::7::1365029107: Skyfall (2012)
  values = dict(zip(loaded.user_features.fields, loaded.user_features.categories[row], strict=True))
  assert values["rating"] == 7 and values["hour"] == 22  # 2013-04-03 22:45:07 UTC
  true = [loaded.item_ids[i] for s in ALL for u, i in zip(*getattr(loaded, s)[:2], strict=True) if u == row]
  assert sorted(true) == ["Action", "Adventure", "Crime", "Thriller"]


def test_frappe_is_that_of_the_literature(real_data, tmp_path):
  loaded = data.load("frappe()", real_data, tmp_path, ALL)
  assert loaded.num_users == 288_609 and sum(loaded.user_features.sizes) == 5382
  assert sum(len(getattr(loaded, s).users) for s in ALL) == 96_203
  user, item = loaded.user_features.categories[:, :2].T
  used = set(zip(user[:96_203].tolist(), item[:96_203].tolist(), strict=True))
  assert not used & set(zip(user[96_203:].tolist(), item[96_203:].tolist(), strict=True))
  assert (loaded.user_features.categories[96_203:, 2:] == np.repeat(
      loaded.user_features.categories[:96_203, 2:], 2, axis=0)).all()
