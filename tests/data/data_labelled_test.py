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
    (2, "x", r"t.csv:3: number 'x' is not a number"), (5, "later", r"t.csv:3: part 'later'")])
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


WORDS = ["label", "user", "price", "when"]


def words(tmp_path, rows, arguments, name="t.csv"):
  path = tmp_path / name
  path.write_text("\n".join(",".join(row) for row in [WORDS, *rows]) + "\n")
  call = f"labelled(path={str(path)!r}, fields=('user',), {arguments})"
  return data.load(call, cache_dir=tmp_path / "cache", splits=ALL)


def some_rows(label, count=40, price="1"):
  return [[label(n), f"u{n % 5}", price if isinstance(price, str) else price(n), str(1000 + n)] for n in range(count)]


def positives_of(loaded):
  return sorted(int(loaded.user_ids[u]) for split in ALL for u in getattr(loaded, split).users)


@pytest.mark.parametrize(("positive", "label", "true"), [
    ("yes", lambda n: ["yes", "no", "Yes", "maybe"][n % 4], lambda n: n % 4 == 0),
    (">=4", lambda n: str(n % 6), lambda n: n % 6 >= 4),
    ("<2.5", lambda n: f"{n % 6}.0", lambda n: n % 6 < 2.5), (">1", lambda n: str(n % 3), lambda n: n % 3 > 1),
    ("<=1", lambda n: str(n % 3), lambda n: n % 3 <= 1)])
def test_labels_are_words_or_numbers_with_a_rule(tmp_path, positive, label, true):
  loaded = words(tmp_path, some_rows(label), f"positive={positive!r}")
  assert positives_of(loaded) == [n for n in range(40) if true(n)]
  with pytest.raises(InputError, match=r"positive=.* says what is positive|neither 0 nor 1"):
    words(tmp_path, some_rows(label), "split='random'")


@pytest.mark.parametrize(("fill", "value"), [("'mean'", None), ("-7.5", -7.5)])
def test_empty_numbers_are_filled_and_marked(tmp_path, fill, value):
  rows = some_rows(lambda n: str(n % 2), price=lambda n: "" if n % 4 == 0 else str(n))
  with pytest.raises(InputError, match=r":2: number '' is not a number; .*10 bad of 40 rows"):
    words(tmp_path, rows, "numeric=('price',)")
  loaded = words(tmp_path, rows, f"numeric=('price',), fill={fill}")
  features, of_row = loaded.user_features, loaded.user_ids.astype(int)
  assert features.fields == ("user", "price_missing") and features.sizes == (5, 2)
  gone = features.categories[:, 1] == 1
  assert sorted(of_row[gone].tolist()) == [n for n in range(40) if n % 4 == 0]
  prices = features.vectors["price"][:, 0]
  there = dict(zip(of_row[~gone].tolist(), prices[~gone].tolist(), strict=True))
  assert there == {n: float(n) for n in range(40) if n % 4}
  trained = np.isin(np.arange(40), loaded.contexts["train"])
  expected = value if value is not None else np.mean(of_row[trained & ~gone])
  np.testing.assert_allclose(prices[gone], expected, rtol=1e-6)


def test_validation_without_positives_is_a_validation_split(tmp_path):
  rows = some_rows(lambda n: str(int(n % 3 == 0 and not 32 <= n < 36)))
  loaded = words(tmp_path, rows, "timestamp='when', split='temporal'")
  assert len(loaded.contexts["validation"]) == 4 and not len(loaded.validation.users)
  warnings = loaded.report["audit"]["warnings"]
  assert any("validation has no positive label: auc, group_auc and map" in x for x in warnings)


@pytest.mark.parametrize("label", ["0", "1"])
def test_labels_that_are_all_equal_are_refused(tmp_path, label):
  with pytest.raises(InputError, match=rf"every label of all 40 contexts is {label}: there is nothing to learn"):
    words(tmp_path, some_rows(lambda n: label), "split='random'")


def test_other_formats_of_labelled_tables(tmp_path):
  rows = some_rows(lambda n: str(n % 2))
  expected = words(tmp_path, rows, "timestamp='when'")
  path = tmp_path / "x.data"
  path.write_text("junk\n" + "\n".join("::".join(row) for row in rows))
  call = f"labelled(path={str(path)!r}, labels=(0,), fields=(1,), timestamp=3, header=False, skip=1, delimiter='::')"
  loaded = data.load(call, cache_dir=tmp_path / "cache", splits=ALL)
  assert loaded.item_ids.tolist() == ["0"] and positives_of(loaded) == positives_of(expected)
  assert loaded.hashes["train"] == expected.hashes["train"] and loaded.hashes["test"] == expected.hashes["test"]
  import json

  path = tmp_path / "x.jsonl"
  path.write_text("\n".join(json.dumps(dict(zip(WORDS, row, strict=True))) for row in rows))
  call = f"labelled(path={str(path)!r}, fields=('user',), timestamp='when')"
  assert data.load(call, cache_dir=tmp_path / "cache").hashes == expected.hashes
  missing = words(tmp_path, [*rows, ["1", "NA", "1", "5"]], "timestamp='when', missing=('NA',)", "missing.csv")
  assert missing.hashes == expected.hashes and missing.report["cleaning"]["missing_rows"] == 1


def test_a_published_split_of_labelled_tables(tmp_path):
  rows = some_rows(lambda n: str(n % 2))
  names = {"path": rows[:20], "validation": rows[20:28], "test": rows[28:]}
  for name, part in names.items():
    (tmp_path / f"{name}.csv").write_text("\n".join(",".join(row) for row in [WORDS, *part]) + "\n")
  files = ", ".join(f"{name}={str(tmp_path / name)!r}".replace(f"{name}'", f"{name}.csv'") for name in names)
  loaded = data.load(f"labelled({files}, fields=('user',), numeric=('price',), split='given')",
                     cache_dir=tmp_path / "cache", splits=ALL)
  rows_of = loaded.user_ids.astype(int)
  assert {split: sorted(rows_of[loaded.contexts[split]].tolist()) for split in ALL} == {
      "train": list(range(20)), "validation": list(range(20, 28)), "test": list(range(28, 40))}
  assert positives_of(loaded) == list(range(1, 40, 2)) and loaded.user_features.sizes == (5,)
  with pytest.raises(InputError, match="go together"):
    data.load(f"labelled({files}, fields=('user',))", cache_dir=tmp_path)
