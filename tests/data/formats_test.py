"""Files of every format: recognised by their path alone, and read as pandas, or a loop over their lines, reads them."""

import bz2
import collections
import gzip
import io
import json
import lzma
import os
import pathlib
import zipfile

import numpy as np
import pytest

from kd_jax import data, registry
from kd_jax.base import InputError
from kd_jax.data import reading, store

pd = pytest.importorskip("pandas")
ALL = ("train", "validation", "test")
FIELDS = ["user", "item", "rating", "timestamp"]


def made(seed=0, users=40, items=60, count=500):
  """Distinct pairs with ratings of 1.0 to 5.0 and seconds."""
  rng = np.random.default_rng(seed)
  pairs = sorted({(int(u), int(i)) for u, i in rng.integers((1, 1), (users, items), size=(count, 2))})
  return [(str(u), f"{i:03}", f"{rng.integers(2, 11) / 2}", str(847117005 + int(rng.integers(10**8))))
          for u, i in pairs]


ROWS = made()


def joined(mark, rows=ROWS, columns=4, header=None):
  return "".join(mark.join(row[:columns]) + "\n" for row in ([header] if header else []) + list(rows))


def completed(path, folder=None, **arguments):
  """The complete call of a path, without the arguments that have their default."""
  call = str(registry.Call("interactions", tuple({"path": str(path), **arguments}.items())))
  return store.complete(store.canonical(registry.parse("data", call, "data")), folder)


def log_of(path, folder=None, **arguments):
  """The log, before it is cleaned and split, of a completed call."""
  call = completed(path, folder, **arguments)
  recipe = registry.build("data", call)
  from kd_jax.data import sources

  return recipe.read([sources.find(x, folder, None, bool(folder)) for x in recipe.sources])


def rows_of(log):
  columns = [[log.user_ids[u] for u in log.users], [log.item_ids[i] for i in log.items]]
  columns += [x.tolist() for x in (log.ratings, log.timestamps, log.parts) if x is not None]
  return sorted(zip(*columns, strict=True))


def by_pandas(content, **arguments):
  """The rows of a text as pandas reads them: ids as text, ratings and times as numbers."""
  frame = pd.read_csv(io.StringIO(content), dtype=str, keep_default_na=False, **arguments)
  frame.columns = FIELDS[: frame.shape[1]]
  kinds = {"rating": np.float32, "timestamp": np.int64}
  return sorted(frame.astype({k: v for k, v in kinds.items() if k in frame}).itertuples(index=False, name=None))


HEADER = dict(names=FIELDS, header=None, engine="python")
WITHOUT_HEADER = {
    "ratings.dat": ("::", 4, {}), "u.data": ("\t", 4, {}), "log.csv": (",", 4, {}), "log.txt": (" ", 4, {}),
    "log.tsv": (";", 4, {}), "bars.csv": ("|", 3, {}), "pairs.txt": ("\t", 2, {}), "pairs.csv": (",", 2, {})}


@pytest.mark.parametrize("name", WITHOUT_HEADER)
def test_a_file_without_a_header_is_read_whole(tmp_path, name):
  mark, columns, _ = WITHOUT_HEADER[name]
  content = joined(mark, columns=columns)
  (tmp_path / name).write_text(content)
  sep = mark if len(mark) == 1 and mark != "|" else mark.replace("|", r"\|")
  expected = by_pandas(content, sep=sep, header=None, engine="python")
  assert rows_of(log_of(tmp_path / name)) == expected and len(expected) == len(ROWS)


def test_the_first_row_of_movielens_1m_is_not_lost(tmp_path):
  """1::1::5.0::847117005 had no way in, and as a header it was lost."""
  path = tmp_path / "ratings.dat"
  path.write_text("1::1::5.0::847117005\n1::2::4.0::847642142\n2::1::3.0::847641979\n")
  assert rows_of(log_of(path)) == [("1", "1", 5.0, 847117005), ("1", "2", 4.0, 847642142), ("2", "1", 3.0, 847641979)]
  assert reading.short(completed(path)) == (f"interactions(delimiter='::', header=False, item=1, path={str(path)!r}, "
                                            "rating=2, timestamp=3, unit='seconds', user=0)")
  path.write_text("1::1\n1::2\n2::1\n")
  with pytest.raises(InputError, match=r"first line, '1', '1'|distinct"):
    log_of(path, user="1", item="1", delimiter="::")
  path.write_text("1::1193\n1::2\n2::1\n")
  with pytest.raises(InputError, match=r"first line, '1', '1193', looks like a row.*user=0, item=1, header=False"):
    log_of(path, user="1", item="1193", delimiter="::")
  assert len(log_of(path, user="1", item="1193", delimiter="::", header=True).users) == 2


def test_columns_by_number_with_and_without_a_header(tmp_path):
  path = tmp_path / "log.csv"
  path.write_text("when,who,what\n" + "".join(f"{t},{u},{i}\n" for u, i, _, t in ROWS))
  expected = [(u, i, int(t)) for u, i, _, t in ROWS]
  found = log_of(path, user=1, item=2, timestamp=0)
  assert rows_of(found) == sorted(expected)
  assert dict(completed(path, user=1, item=2, timestamp=0).arguments)["header"] is True
  path.write_text("".join(f"{t},{u},{i}\n" for u, i, _, t in ROWS))
  assert rows_of(log_of(path, user=1, item=2, timestamp=0)) == sorted(expected)
  with pytest.raises(InputError, match=r"no column 7; it has 3"):
    log_of(path, user=7, item=2)
  with pytest.raises(InputError, match="without a header, columns are numbers"):
    log_of(path, header=False)
  path.write_text("userId,movieId\n1,2\n")
  with pytest.raises(InputError, match=r"first line, 'userId', 'movieId', looks like a header.*header=True, or skip=1"):
    log_of(path, user=0, item=1, header=False)
  assert rows_of(log_of(path, user=0, item=1, header=False, skip=1)) == [("1", "2")]


USUAL = [("userId", "movieId", "rating", "timestamp"), ("user_id", "item_id", "score", "time"),
         ("reviewerID", "asin", "overall", "unixReviewTime"),
         ("user_id:token", "item_id:token", "rating:float", "timestamp:float")]


@pytest.mark.parametrize("header", USUAL)
def test_usual_names_of_columns_are_known(tmp_path, header):
  for name, mark in (("x.csv", ","), ("x.inter", "\t"), ("x.data", ";")):
    content = joined(mark, header=header)
    (tmp_path / name).write_text(content)
    assert rows_of(log_of(tmp_path / name)) == by_pandas(content, sep=mark)


def test_names_that_may_be_two_columns_are_asked_for(tmp_path):
  (tmp_path / "x.csv").write_text("user_id,uid,item\na,b,c\n")
  with pytest.raises(InputError, match=r"no columns 'user' and 'item'; it has 'user_id', 'uid', 'item': give user="):
    log_of(tmp_path / "x.csv")
  (tmp_path / "x.csv").write_text("a,b\nc,d\ne,f\n")
  with pytest.raises(InputError, match=r"2 readings are possible.*header=True or user=0, item=1, header=False"):
    log_of(tmp_path / "x.csv")
  assert len(log_of(tmp_path / "x.csv", user=0, item=1, header=False).users) == 3


PACKED = {"log.csv.gz": gzip.compress, "log.csv.bz2": bz2.compress, "log.csv.xz": lzma.compress}


def zipped(members):
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, content in members.items():
      archive.writestr(name, content)
  return file.getvalue()


def test_packed_files(tmp_path):
  content = joined(",", header=FIELDS)
  for name, pack in PACKED.items():
    (tmp_path / name).write_bytes(pack(content.encode()))
    assert rows_of(log_of(tmp_path / name, rating="rating", timestamp="timestamp")) == by_pandas(content)
    (tmp_path / name).write_bytes(pack(content.encode())[:-20])
    with pytest.raises(InputError, match="cannot be read"):
      log_of(tmp_path / name)
  path = tmp_path / "log.csv.zip"
  path.write_bytes(zipped({"deep/log.csv": content, "__MACOSX/._log.csv": "x"}))
  assert rows_of(log_of(path, rating="rating", timestamp="timestamp")) == by_pandas(content)
  path.write_bytes(zipped({"a.csv": content, "b.csv": content}))
  with pytest.raises(InputError, match=r"an archive of one file is read, and this one has 2: a\.csv, b\.csv"):
    log_of(path)


def test_lines_that_are_skipped_line_ends_and_quotes(tmp_path):
  content = joined(",", header=FIELDS)
  path = tmp_path / "log.csv"
  for lead, given in (("# user, item, and more,\n% another\n", {}), ("Ratings of 2020\n\n", {"skip": 2})):
    path.write_text(lead + content)
    assert rows_of(log_of(path, rating="rating", timestamp="timestamp", **given)) == by_pandas(content)
  path.write_text("# KONECT\n" + joined(" "))
  assert rows_of(log_of(path)) == by_pandas(joined(" "), sep=" ", header=None)
  for end in ("\r", "\r\n"):
    path.write_text(content.replace("\n", end), newline="")
    assert rows_of(log_of(path, rating="rating", timestamp="timestamp")) == by_pandas(content)
  path.write_text('user,item\n5"2,a\n"q",b\n')
  assert rows_of(log_of(path, quoting=False)) == [('"q"', "b"), ('5"2', "a")]
  assert rows_of(log_of(path)) == [('5"2', "a"), ("q", "b")]
  with pytest.raises(InputError, match="quoting=False"):
    path.write_text('user,item\n"5,a\n')
    log_of(path)


SEQUENCES = {u: [i for v, i, _, _ in ROWS if v == u] for u in dict.fromkeys(row[0] for row in ROWS)}


def pairs_of_lines(text, user=True, count=False):
  """(user, item) of one line per user, by a loop."""
  found = []
  for number, line in enumerate(text.splitlines()):
    fields = line.split()
    name = fields.pop(0) if user else str(number)
    found += [(name, item) for item in (fields[1:] if count else fields)]
  return sorted(found)


@pytest.mark.parametrize(("layout", "line"), [
    ("user items", "{user} {items}\n"), ("count items", "{count} {items}\n"),
    ("user count items", "{user} {count} {items}\n")])
def test_one_line_per_user_is_recognised(tmp_path, layout, line):
  text = "".join(line.format(user=u, count=len(x), items=" ".join(x)) for u, x in SEQUENCES.items())
  (tmp_path / "x.txt").write_text(text)
  assert dict(completed(tmp_path / "x.txt").arguments)["layout"] == layout
  expected = pairs_of_lines(text, "user" in layout, "count" in layout)
  assert rows_of(log_of(tmp_path / "x.txt")) == expected and len(expected) == len(ROWS)


def test_one_line_per_user_with_ratings_without_users_and_with_commas(tmp_path):
  path = tmp_path / "x.txt"
  path.write_text("".join(f"{u} {' '.join(f'{i}:{r}' for v, i, r, _ in ROWS if v == u)}\n" for u in SEQUENCES))
  assert dict(completed(path).arguments)["layout"] == "user item:rating"
  assert rows_of(log_of(path)) == sorted((u, i, float(r)) for u, i, r, _ in ROWS)
  path.write_text("".join(",".join([u, *x]) + "\n" for u, x in SEQUENCES.items()))
  assert rows_of(log_of(path)) == sorted((u, i) for u, i, _, _ in ROWS)
  baskets = "".join(" ".join(x) + "\n" for x in SEQUENCES.values())
  path.write_text(baskets)
  with pytest.raises(InputError, match="layout='user items' or layout='items'"):
    log_of(path)
  assert rows_of(log_of(path, layout="items")) == pairs_of_lines(baskets, user=False)
  path.write_text("1 2 3\n2 4 500\n3 5 900\n")
  with pytest.raises(InputError, match="2 readings are possible, so nothing is read: give layout='user items' or "
                                       "delimiter=' ', header=False, user=0, item=1, rating=2"):
    log_of(path)


def test_bad_lines_of_one_line_per_user(tmp_path):
  path = tmp_path / "x.txt"
  path.write_bytes(b"1 5 6\n\n2 \xff\n3 7\n")
  with pytest.raises(InputError, match=r"x\.txt:2: an empty line; .*:3: not UTF-8.*2 bad of 5 rows"):
    log_of(path, layout="user items")
  log = log_of(path, layout="user items", max_bad_rows=2)
  assert rows_of(log) == [("1", "5"), ("1", "6"), ("3", "7")] and len(log.bad_rows) == 2
  path.write_bytes(b"2 5 6\n3 7\n")
  with pytest.raises(InputError, match=":2: 1 items after the count '3'"):
    log_of(path, layout="count items")
  path.write_bytes(b"2 5:1 6\n")
  with pytest.raises(InputError, match="an item without a rating"):
    log_of(path, layout="user item:rating")


@pytest.mark.parametrize("written", ["lines", "rows"])
def test_the_last_of_a_line_is_the_last_in_time(tmp_path, written):
  rng = np.random.default_rng(3)
  of = {u: list(rng.permutation(x)) for u, x in SEQUENCES.items() if len(x) >= 3}
  path = tmp_path / "x.txt"
  path.write_text("".join(f"{u} {' '.join(x)}\n" for u, x in of.items()) if written == "lines" else
                  "user\titem\n" + "".join(f"{u}\t{i}\n" for u, x in of.items() for i in x))
  loaded = data.load(f"interactions(path={str(path)!r}, split='loo_last')", cache_dir=tmp_path / "cache", splits=ALL)
  for split, place in (("test", -1), ("validation", -2)):
    part = getattr(loaded, split)
    found = zip(loaded.user_ids[part.users].tolist(), loaded.item_ids[part.items].tolist(), strict=True)
    assert sorted(found) == sorted((u, x[place]) for u, x in of.items())
  train = [(u, [loaded.item_ids[i] for i in loaded.train.items[loaded.train.users == n]])
           for n, u in enumerate(loaded.user_ids.tolist())]
  assert dict(train) == {u: x[:-2] for u, x in of.items()}  # in order, as models of sequences read them
  from kd_jax.data import audit

  assert "no time stamps: the order of a user's rows in the source is taken for that of time" in audit.describe(
      loaded.report["audit"])


def write_parts(folder, names, line="{u}\t{i}\n"):
  """Files of three parts; returns {part: rows}."""
  folder.mkdir(exist_ok=True)
  of = {"train": ROWS[::2], "validation": ROWS[1::4], "test": ROWS[3::4]}
  for part, name in names.items():
    (folder / name).write_text("".join(line.format(u=u, i=i) for u, i, _, _ in of[part]))
  return {part: sorted((u, i) for u, i, _, _ in of[part]) for part in names}


NAMED = [{"train": "train.txt", "validation": "valid.txt", "test": "test.txt"},
         {"train": "Train_data.tsv", "validation": "val.tsv", "test": "TEST.tsv"},
         {"train": "ml.train.inter", "validation": "ml.valid.inter", "test": "ml.test.inter"},
         {"train": "train.txt", "test": "test.txt"}]


@pytest.mark.parametrize("names", NAMED)
def test_a_published_split_in_several_files(tmp_path, names):
  inter = names["train"].endswith("inter")
  expected = write_parts(tmp_path / "set", names)
  if inter:
    for name in names.values():
      path = tmp_path / "set" / name
      path.write_text("user_id:token\titem_id:token\n" + path.read_text())
    (tmp_path / "set" / "ml.item").write_text(f"item_id:token\tyear:float\n{ROWS[0][1]}\t1990\n")
  call = f"interactions(path='set'{'' if 'validation' in names else ', validation_ratio=0.25'})"
  loaded = data.load(call, tmp_path, tmp_path / "cache", ALL)
  found = {}
  for split in ALL:
    part = getattr(loaded, split)
    found[split] = sorted(zip(loaded.user_ids[part.users].tolist(), loaded.item_ids[part.items].tolist(), strict=True))
  if "validation" in names:
    assert found == expected and "validation_from_train" not in loaded.report["split"]
  else:  # floor(n / 4) of each user's n
    assert found["test"] == expected["test"] and sorted(found["train"] + found["validation"]) == expected["train"]
    counts = collections.Counter(u for u, _ in expected["train"])
    assert collections.Counter(u for u, _ in found["validation"]) == +collections.Counter(
        {u: n // 4 for u, n in counts.items()}) and found["validation"]
    assert loaded.report["split"]["validation_from_train"] == 0.25
    with pytest.raises(InputError, match=r"validation split is empty .*validation_ratio=0\.01 of no user's training"):
      data.load(call.replace("0.25", "0.01"), tmp_path, tmp_path / "cache")
  call = store.complete(store.canonical(registry.parse("data", "interactions(path='set')", "data")), tmp_path)
  assert dict(call.arguments)["path"] == f"set/{names['train']}"  # below the data folder, as it was given


def test_parts_may_have_different_bad_rows_and_a_shared_pair_is_refused(tmp_path):
  write_parts(tmp_path / "set", NAMED[0])
  path = tmp_path / "set" / "test.txt"
  path.write_text(path.read_text() + "lost\n")
  with pytest.raises(InputError, match=r"test\.txt:\d+: 1 columns, expected 2: 1 bad of"):
    data.load("interactions(path='set')", tmp_path, tmp_path / "cache")
  path.write_text("\t".join(ROWS[0][:2]) + "\n")
  with pytest.raises(InputError, match="1 interactions are in train and test"):
    data.load("interactions(path='set')", tmp_path, tmp_path / "cache")


def test_a_folder_that_is_not_clear_is_listed(tmp_path):
  with pytest.raises(InputError, match=r"is a directory without \.parquet files"):
    data.load(f"labelled(path={str(tmp_path)!r}, fields=('a',))", cache_dir=tmp_path / "cache")
  for name in ("a.csv", "b.csv"):
    (tmp_path / name).write_text("user,item\n1,2\n")
  with pytest.raises(InputError, match=r"is a directory with a\.csv, b\.csv; name a file"):
    completed(tmp_path)


def test_json_lines(tmp_path):
  lines = [json.dumps({"user_id": int(u), "item_id": i, "rating": float(r), "timestamp": int(t), "text": "é"})
           for u, i, r, t in ROWS]
  late = [json.dumps(json.loads(line) | {"timestamp": 1000 * json.loads(line)["timestamp"]}) for line in lines]
  (tmp_path / "late.jsonl").write_text("\n".join(late))
  assert dict(completed(tmp_path / "late.jsonl").arguments)["unit"] == "milliseconds"
  path = tmp_path / "x.jsonl.gz"
  path.write_bytes(gzip.compress("\n".join(lines).encode()))
  frame = pd.read_json(io.StringIO("\n".join(lines)), lines=True, dtype=False)
  expected = sorted(zip(frame.user_id.astype(str), frame.item_id, frame.rating, frame.timestamp, strict=True))
  assert rows_of(log_of(path)) == expected and len(expected) == len(ROWS)
  more = '"rating": 1, "timestamp": 1}'
  bad = ['{"user_id": 1, ' + more, "[1]", "{", "", '{"user_id": [1], "item_id": 2, ' + more,
         '{"user_id": true, "item_id": 2, ' + more, '{"user_id": null, "item_id": 2, ' + more]
  path = tmp_path / "x.jsonl"
  path.write_text("\n".join([lines[0], *bad, lines[1]]))
  with pytest.raises(InputError, match="7 bad of 9 rows"):
    log_of(path)
  assert len(log_of(path, max_bad_rows=7).users) == 2


def test_parquet_types_and_parts(tmp_path):
  parquet = pytest.importorskip("pyarrow.parquet")
  pa = pytest.importorskip("pyarrow")
  count = 30
  days = [18_000 + n for n in range(count)]
  columns = {"user": pa.array([f"u{n % 7}" for n in range(count)], pa.string_view()),
             "item": pa.array([f"i{n}" for n in range(count)]).dictionary_encode(),
             "rating": pa.array([n % 2 == 0 for n in range(count)]), "timestamp": pa.array(days, pa.date32())}
  expected = sorted((f"u{n % 7}", f"i{n}", float(n % 2 == 0), 86_400 * day) for n, day in enumerate(days))
  given = {"rating": "rating", "timestamp": "timestamp"}
  parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
  assert rows_of(log_of(tmp_path / "x.parquet", **given)) == expected
  parts = tmp_path / "parts"
  parts.mkdir()
  for n in range(3):
    parquet.write_table(pa.table(columns).slice(10 * n, 10), parts / f"part-{n}.parquet")
  (parts / "_SUCCESS").write_text("")
  assert rows_of(log_of(parts, **given)) == expected
  call = f"interactions(path={str(parts)!r}, ratios=(0.5, 0.25, 0.25))"
  loaded = data.load(call, cache_dir=tmp_path / "cache", splits=ALL)
  assert sum(len(getattr(loaded, split).users) for split in ALL) == count
  before = loaded.hashes
  parquet.write_table(pa.table(columns).slice(0, 9), parts / "part-0.parquet")
  assert data.hashes(call, cache_dir=tmp_path / "cache") != before
  lost = columns | {"item": pa.array([None if n == 13 else "x" for n in range(count)])}
  parquet.write_table(pa.table(lost).slice(10, 10), parts / "part-1.parquet")
  with pytest.raises(InputError, match=r":13: an empty id: 1 bad of 29 rows"):  # 9 rows are before this part
    log_of(parts)
  columns["item"] = pa.array(pd.array([1, None] * 15, dtype="Int64"))
  parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
  with pytest.raises(InputError, match=r":2: an empty id; .*15 bad of 30 rows"):
    log_of(tmp_path / "x.parquet")
  few = {"userId": ["1"], "movieId": [2]}
  for stamp, second in ((1500000000000, 1500000000), ("2017-07-14T02:40:00Z", 1500000000), (150, 150)):
    parquet.write_table(pa.table(few | {"timestamp": [stamp]}), tmp_path / "x.parquet")
    assert rows_of(log_of(tmp_path / "x.parquet")) == [("1", "2", second)]
  parquet.write_table(pa.table(few), tmp_path / "x.parquet")
  assert rows_of(log_of(tmp_path / "x.parquet")) == [("1", "2")]


def test_frames_and_arrays(tmp_path):
  frame = pd.DataFrame(ROWS, columns=FIELDS).astype({"rating": float, "timestamp": int, "item": "category"})
  frame = frame[frame.user != "5"]  # a category that no row has, and an index with gaps
  given = dict(cache_dir=tmp_path / "cache", rating="rating", timestamp="timestamp")
  expected = sorted((u, i, float(r), int(t)) for u, i, r, t in ROWS if u != "5")
  arrays = {name: np.array(frame[name].tolist()) for name in FIELDS}
  polars = pytest.importorskip("polars")
  frames = {"pandas": frame, "arrays": arrays, "polars": polars.DataFrame(arrays), "hugging face": Lent(frame)}
  for name, one in frames.items():
    call = data.of_frame(one, **given)
    path = dict(registry.parse("data", call, "data").arguments)["path"]
    assert rows_of(log_of(pathlib.Path(path), rating="rating", timestamp="timestamp")) == expected, name
    loaded = data.load(call, cache_dir=tmp_path / "cache", splits=ALL)
    assert sum(len(getattr(loaded, split).users) for split in ALL) == len(expected)
  for wrong in (3, {"a": [1, "b"]}, {"user": np.zeros((2, 2, 2))}):
    with pytest.raises(InputError, match=r"is no table|cannot be stored"):
      data.of_frame(wrong, cache_dir=tmp_path)


class Lent:
  """What kd_jax uses of a `datasets.Dataset`."""

  column_names = FIELDS

  def __init__(self, frame):
    self.frame = frame

  def with_format(self, name):
    import pyarrow as pa

    table = pa.Table.from_pandas(self.frame, preserve_index=False)
    assert name == "arrow"
    return Whole(table)


class Whole(list):
  def __init__(self, table):
    self.table = table

  def __getitem__(self, rows):
    return self.table


@pytest.mark.parametrize(("unit", "scale"), [("seconds", 1), ("milliseconds", 1000), ("microseconds", 10**6)])
def test_units_of_time_stamps(tmp_path, unit, scale):
  path = tmp_path / "x.dat"
  path.write_text("".join(f"{u}::{i}::{r}::{int(t) * scale + scale // 2}\n" for u, i, r, t in ROWS))
  assert dict(completed(path).arguments)["unit"] == unit
  assert rows_of(log_of(path)) == by_pandas(joined(","), header=None)
  others = "847117005000" if unit == "seconds" else "847117005"
  path.write_text(path.read_text() + f"7::8::5.0::{others}\n")
  with pytest.raises(InputError, match=r"time stamps of several units|not in \w+, as the others are"):
    log_of(path)
  given = dict(user=0, item=1, rating=2, timestamp=3, header=False, delimiter="::", unit=unit)
  with pytest.raises(InputError, match=r"timestamp .* is not in \w+, as the others are: 1 bad of"):
    log_of(path, **given)


def test_times_in_iso_8601(tmp_path):
  stamps = ["2020-01-31T12:00:00Z", "2020-01-31 12:00:00", "2020-01-31", "2020-01-31T12:00:00.75+01:00"]
  expected = [int(x.timestamp()) for x in pd.to_datetime(stamps, format="ISO8601", utc=True)]
  path = tmp_path / "x.csv"
  path.write_text("user_id,item_id,date\n" + "".join(f"u{n},i{n},{x}\n" for n, x in enumerate(stamps)))
  assert dict(completed(path).arguments)["unit"] == "iso8601"
  assert rows_of(log_of(path)) == [(f"u{n}", f"i{n}", x) for n, x in enumerate(expected)]
  given = dict(user="user_id", item="item_id", timestamp="date")
  assert rows_of(log_of(path, **given)) == rows_of(log_of(path))  # the column is given, its unit is not
  path.write_text(path.read_text() + "u,i,yesterday\n")
  with pytest.raises(InputError, match=":6: timestamp 'yesterday' is not a time in ISO 8601"):
    log_of(path, **given, unit="iso8601")


def test_words_that_mean_missing(tmp_path):
  path = tmp_path / "x.csv"
  path.write_text("user,item,rating\n1,2,5\nNA,2,4\n1,,3\n2,3,NA\n3,3,x\n4,3,1\n")
  given = dict(rating="rating", missing=("NA", ""))
  with pytest.raises(InputError, match=r":6: rating 'x' is not a number: 1 bad of 6 rows"):
    log_of(path, **given)
  log = log_of(path, max_bad_rows=1, **given)
  assert rows_of(log) == [("1", "2", 5.0), ("4", "3", 1.0)] and (log.missing, len(log.bad_rows)) == (3, 1)
  path.write_text("user,item,rating\n" + "".join(f"{u},{i},{r}\n" for u, i, r, _ in ROWS) + "NA,2,4\n")
  loaded = data.load(f"interactions(path={str(path)!r}, missing=('NA',))", cache_dir=tmp_path / "cache")
  cleaned = loaded.report["cleaning"]
  assert (cleaned["rows"], cleaned["missing_rows"], cleaned["interactions"]) == (len(ROWS) + 1, 1, len(ROWS))


def repeated_rows():
  """Pairs that stand one to three times, with other ratings and times."""
  rng = np.random.default_rng(7)
  return [(u, i, f"{rng.integers(1, 6)}", str(int(t) + n)) for u, i, _, t in ROWS for n in range(rng.integers(1, 4))]


def test_repeated_interactions_are_dropped_summed_or_kept(tmp_path):
  rows = repeated_rows()
  path = tmp_path / "x.csv"
  path.write_text(joined(",", rows, header=FIELDS))
  frame = pd.DataFrame(rows, columns=FIELDS).astype({"rating": float, "timestamp": int})
  call = f"interactions(path={str(path)!r}, rating='rating', timestamp='timestamp'"

  def load(more, base=call):
    return data.load(f"{base}, {more})", cache_dir=tmp_path / "cache", splits=ALL)

  def pairs(loaded, split):
    part = getattr(loaded, split)
    return list(zip(loaded.user_ids[part.users].tolist(), loaded.item_ids[part.items].tolist(), strict=True))

  first, summed, kept = load("split='loo'"), load("repeated='sum'"), load("repeated='keep'")
  assert sum(len(getattr(first, x).users) for x in ALL) == len(ROWS)
  sums = frame.groupby(["user", "item"]).rating.sum()
  found = {pair: float(r) for x in ALL for pair, r in zip(pairs(summed, x), getattr(summed, x).ratings, strict=True)}
  assert found == sums.to_dict()
  most = load("repeated='sum', min_rating=6")
  assert sum(len(getattr(most, x).users) for x in ALL) == int((sums >= 6).sum())
  counted = load("repeated='sum'", f"interactions(path={str(path)!r}")
  sizes = {pair: float(r) for x in ALL for pair, r in zip(pairs(counted, x), getattr(counted, x).ratings, strict=True)}
  assert sizes == frame.groupby(["user", "item"]).size().astype(float).to_dict()
  times = frame.groupby(["user", "item"]).size().to_dict()
  assert collections.Counter(pairs(kept, "train")) == {pair: times[pair] for pair in set(pairs(kept, "train"))}
  held = pairs(kept, "validation") + pairs(kept, "test")
  assert len(held) == len(set(held)) and not set(held) & set(pairs(kept, "train"))
  assert set(held) | set(pairs(kept, "train")) == set(times)


def test_bad_rows_are_all_counted_and_a_share_is_allowed(tmp_path):
  path = tmp_path / "x.csv"
  lines = ["user,item,rating"] + [f"u{n},i{n},{'x' if n % 50 == 7 else 3}" for n in range(400)] + ["short"]
  path.write_text("\n".join(lines))
  with pytest.raises(InputError) as error:
    log_of(path, rating="rating")
  said = str(error.value)
  assert said.count("is not a number") == 3 and ":9: rating 'x'" in said and ":59: " in said and ":109: " in said
  assert said.endswith("9 bad of 401 rows (max_bad_rows=0; max_bad_rows=9 admits them)")
  for limit in (9, "2.3%", "100%"):
    log = log_of(path, rating="rating", max_bad_rows=limit)
    assert (len(log.users), len(log.bad_rows)) == (392, 9)
  for limit in (8, "2.2%", "0%"):
    with pytest.raises(InputError, match="9 bad of 401 rows"):
      log_of(path, rating="rating", max_bad_rows=limit)


def test_messages_say_what_a_thing_is(tmp_path):
  content = joined(",", header=FIELDS)
  cases = {
      "x.csv": (gzip.compress(content.encode()), r"holds gzip bytes, not text; name it x\.csv\.gz"),
      "y.csv": (zipped({"a": content}), r"holds zip bytes, not text; name it y\.csv\.zip"),
      "z.csv": (joined(";", header=FIELDS).encode(),
                r"no column 'nobody'; it has 'user;item;rating;timestamp', one field: perhaps delimiter=';'"),
      "x.xlsx": (zipped({"xl/workbook.xml": "x"}), "a workbook is not read.*save the sheet as CSV"),
      "x.csv.zip": (zipped({"xl/workbook.xml": "x"}), "a workbook is not read"),
      "x.weird": (content.encode(), r"give delimiter='...'; it is only known for \.csv, \.tsv"),
      "x.txt": (b"one two\nthree\n\nfour five six seven\n", "have no common number of fields|readings are possible"),
  }
  for name, (written, words) in cases.items():
    (tmp_path / name).write_bytes(written)
    with pytest.raises(InputError, match=words) as error:
      log_of(tmp_path / name, **({} if name == "x.txt" else {"user": "nobody"}))
    assert "\n" not in str(error.value) and name in str(error.value)
  (tmp_path / "log.csv").write_text(content)
  for column in ("when", 9):
    with pytest.raises(InputError, match=f"no column {column!r}"):
      log_of(tmp_path / "log.csv", timestamp=column)
  (tmp_path / "bare.csv").write_text(joined(","))
  with pytest.raises(InputError, match="no column 9; it has 4, numbered from 0"):
    log_of(tmp_path / "bare.csv", user=0, item=1, timestamp=9)
  os.mkfifo(tmp_path / "pipe")
  with pytest.raises(InputError, match="a pipe can be read only once"):
    log_of(tmp_path / "pipe")
  with pytest.raises(InputError, match="no such file"):
    log_of(tmp_path / "nothing.csv")
  (tmp_path / "few.csv").write_text("user,item\n1,2\n1,3\n2,2\n")
  with pytest.raises(InputError, match="the k-core of min_user=5, min_item=1 leaves none of 3 interactions of 2 users"):
    data.load(f"interactions(path={str(tmp_path / 'few.csv')!r}, min_user=5)", cache_dir=tmp_path / "cache")
  with pytest.raises(InputError, match=r"validation split is empty \(3 interactions in all; no user has more than 2"):
    data.load(f"interactions(path={str(tmp_path / 'few.csv')!r})", cache_dir=tmp_path / "cache")


def test_files_of_recbole_with_users_and_items(tmp_path):
  folder = tmp_path / "ml"
  folder.mkdir()
  (folder / "ml.inter").write_text(joined("\t", header=USUAL[-1]))
  users, items = sorted({row[0] for row in ROWS}), sorted({row[1] for row in ROWS})
  (folder / "ml.user").write_text("user_id:token\tage:float\tgender:token\n" + "".join(
      f"{u}\t{int(u) + 10}\t{'F' if int(u) % 3 else 'M'}\n" for u in users[::-1]) + "extra\t1\tM\n")
  many = " ".join(f"w{n}" for n in range(1100))
  head = "item_id:token\tgenres:token_seq\tplace:float_seq\tyear:token\ttitle:token_seq\n"
  (folder / "ml.item").write_text(head + "".join(
      f"{i}\t{'Drama Comedy' if int(i) % 2 else 'Drama'}\t{int(i)}.5 2\t{1990 + int(i) % 3}\tword{i} {many}\n"
      for i in items[1:]))
  loaded = data.load("interactions(path='ml')", tmp_path, tmp_path / "cache", ALL)
  assert sum(len(getattr(loaded, split).users) for split in ALL) == len(ROWS)
  users_of, items_of = loaded.user_features, loaded.item_features
  assert users_of.fields == ("gender",) and items_of.fields == ("year",)
  assert set(items_of.vectors) == {"genres", "place"}
  for n, u in enumerate(loaded.user_ids.tolist()):
    assert users_of.vectors["age"][n].tolist() == [int(u) + 10] and users_of.categories[n, 0] == (int(u) % 3 == 0)
  for n, i in enumerate(loaded.item_ids.tolist()):
    known = i != items[0]  # this one is not in the table
    assert items_of.vectors["genres"][n].tolist() == [known * (int(i) % 2), known * 1]  # Comedy, Drama
    assert items_of.vectors["place"][n].tolist() == ([int(i) + 0.5, 2] if known else [0, 0])
    assert items_of.categories[n, 0] == (1 + int(i) % 3 if known else 0)
  assert any("column 'title' has 1,1" in x and "it is not read" in x for x in loaded.report["audit"]["warnings"])
  (folder / "ml.user").write_text("user_id:token\tage:float\n1\t3\n1\t4\n")
  with pytest.raises(InputError, match=r"ml\.user: id '1' is there twice"):
    data.load("interactions(path='ml')", tmp_path, tmp_path / "cache")
  (folder / "ml.user").write_text(f"user_id:token\tage:float\n{users[0]}\told\n")
  with pytest.raises(InputError, match=r"ml\.user: column 'age': 'old' is not 1 finite numbers"):
    data.load("interactions(path='ml')", tmp_path, tmp_path / "cache")
  (folder / "ml.user").write_text("user_id:token\tage:float\nnobody\t3\n")
  with pytest.raises(InputError, match=r"ml\.user: none of its ids, such as 'nobody', is in the data, whose users"):
    data.load("interactions(path='ml')", tmp_path, tmp_path / "cache")


PUBLIC = {  # the first lines, as the documents of the data sets show them, and what must be recognised
    "MovieLens 1M": ("ratings.dat", "1::1193::5::978300760\n1::661::3::978302109\n2::1357::5::978298709\n",
                     "delimiter='::'"),
    "MovieLens 20M": ("ratings.csv", "userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n1,29,3.5,1112484676\n",
                      "item='movieId'"),
    "Last.fm (HetRec 2011)": ("user_artists.dat", "userID\tartistID\tweight\n2\t51\t138\n2\t52\t11\n3\t51\t2\n",
                              "item='artistID'"),
    "CiteULike-a": ("users.dat", "3 1631 2318 2526\n2 5 7\n1 9\n2 7 9\n", "layout='count items'"),
    "Yelp2018": ("train.txt", "0 0 1 2 3\n1 95 96 5\n2 225 1\n", "layout='user items'"),
    "S3-Rec": ("LastFM.txt", "1 5 4 9 7\n2 8 9\n3 1 2 3\n", "layout='user items'")}


@pytest.mark.parametrize("name", PUBLIC)
def test_layouts_of_public_files(tmp_path, name):
  file, text, words = PUBLIC[name]
  (tmp_path / file).write_text(text)
  assert words in reading.short(completed(tmp_path / file))
  log = log_of(tmp_path / file)
  lines = text.splitlines()
  rows = [len(line.split()) - 1 if "layout" in words else 1 for line in lines]
  assert len(log.users) == sum(rows) - lines[0].startswith("user")
