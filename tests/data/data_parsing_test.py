"""Malformed files: a clear error with file, line and reason, or exactly the right rows."""

import gzip
import pickle

import numpy as np
import pytest

from kd_jax import registry
from kd_jax.base import InputError
from kd_jax.data import gowalla as module_gowalla
from kd_jax.data import interactions as module
from kd_jax.data import pickles, store

HEADER = b"user,item,rating,ts\n"
GOOD = b"u1,i1,4,100\nu1,i2,3.5,101\nu2,i1,1,102\n"
BAD_ROWS = {
    "short row": (b"u3,i3,4\n", "3 columns, expected 4"),
    "long row": (b"u3,i3,4,103,9\n", "5 columns, expected 4"),
    "empty line": (b"\n", "an empty line"),
    "empty user": (b",i3,4,103\n", "an empty id"),
    "empty item": (b"u3,,4,103\n", "an empty id"),
    "blank id": (b"u3,  ,4,103\n", "an empty id"),
    "quoted empty id": (b'"",i3,4,103\n', "an empty id"),
    "NUL": (b"u\x003,i3,4,103\n", "a NUL byte"),
    "not UTF-8": (b"u\xff\xfe,i3,4,103\n", "not UTF-8"),
    "cut UTF-8": (b"u\xc3,i3,4,103\n", "not UTF-8"),
    "long id": (b"u" * 201 + b",i3,4,103\n", "an id of 201 characters"),
    "rating text": (b"u3,i3,good,103\n", "rating 'good' is not a number"),
    "rating empty": (b"u3,i3,,103\n", "rating '' is not a number"),
    "rating NaN": (b"u3,i3,nan,103\n", "not a finite number"),
    "rating infinite": (b"u3,i3,-inf,103\n", "not a finite number"),
    "rating beyond float32": (b"u3,i3,1e300,103\n", "not a finite number"),
    "rating with underscore": (b"u3,i3,1_0,103\n", "is not a number"),
    "time text": (b"u3,i3,4,2020-01-01\n", "timestamp '2020-01-01' is not a number"),
    "time empty": (b"u3,i3,4,\n", "timestamp '' is not a number"),
    "time NaN": (b"u3,i3,4,nan\n", "is not a number of seconds"),
    "time beyond int64": (b"u3,i3,4,9223372036854775813\n", "is not a number of seconds"),
    "time 1e30": (b"u3,i3,4,1e30\n", "is not a number of seconds"),
    "open quote": (b'"u3,i3,4,103\n', "quotes"),
    "text after quote": (b'"u3"x,i3,4,103\n', "quotes"),
    "cut last row": (b"u3,i3", "2 columns, expected 4"),
}


def read(path, **arguments):
  recipe = module.interactions(str(path), rating="rating", timestamp="ts", **arguments)
  return recipe.read([path])


def write(tmp_path, content, name="log.csv"):
  path = tmp_path / name
  path.write_bytes(content)
  return path


def triples(log):
  """(user, item) of every row, in the order of the rows."""
  return [(log.user_ids[u], log.item_ids[i]) for u, i in zip(log.users, log.items, strict=True)]


def of_pairs(log):
  """{(user, item): (rating, time stamp)}: the order of a file's rows means nothing."""
  return dict(zip(triples(log), zip(log.ratings.tolist(), log.timestamps.tolist(), strict=True), strict=True))


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_and_is_left_out_only_when_allowed(tmp_path, name):
  row, reason = BAD_ROWS[name]
  tail = b"" if name == "cut last row" else b"u4,i4,2,104\n"
  path = write(tmp_path, HEADER + GOOD + row + tail)
  with pytest.raises(InputError) as error:
    read(path)
  assert f"`data`: {path}:5: " in str(error.value) and reason in str(error.value)
  assert "\n" not in str(error.value)
  log = read(path, max_bad_rows=1)
  assert len(log.bad_rows) == 1 and reason in log.bad_rows[0]
  assert sorted(triples(log)) == [("u1", "i1"), ("u1", "i2"), ("u2", "i1")] + ([("u4", "i4")] if tail else [])


def test_one_more_bad_row_than_allowed_stops(tmp_path):
  path = write(tmp_path, HEADER + GOOD + b"x\ny\n")
  assert len(read(path, max_bad_rows=2).bad_rows) == 2
  with pytest.raises(InputError, match=r"log\.csv:5: 1 columns"):
    read(path, max_bad_rows=1)


@pytest.mark.parametrize(("content", "message"), [
    (b"", "no column 'user'"),
    (HEADER, "holds no interactions"),
    (b"uid,item,rating,ts\n" + GOOD, "no column 'user'; it has 'uid', 'item', 'rating', 'ts'"),
    (b"user,item,rating,ts,user\n", "2 columns 'user'"),
    (b"us\xffer,item,rating,ts\n" + GOOD, "the header line: not UTF-8"),
    (HEADER + b"u" * (1 << 20), ":2: the line is longer"),
])
def test_broken_headers_and_empty_files(tmp_path, content, message):
  with pytest.raises(InputError, match="`data`: ") as error:
    read(write(tmp_path, content))
  assert message in str(error.value)


def test_ids_stay_strings(tmp_path):
  ids = ["1", "001", "1.0", "NA", "null", "nan", "9007199254740993", "é", "a b", '"', "-1", "True"]
  rows = "".join(f'"{i.replace(chr(34), chr(34) * 2)}",i,3,1\n' for i in ids)
  log = read(write(tmp_path, b"\xef\xbb\xbf" + HEADER + rows.encode()))
  assert log.user_ids == ids and sorted(log.users.tolist()) == list(range(len(ids)))


def test_numbers_are_exact_and_line_ends_do_not_matter(tmp_path):
  content = HEADER + GOOD + b"u3,i3,4,9007199254740993\nu3,i4,4,-12.5\nu3,i5,4,1e3"
  log = read(write(tmp_path, content))
  windows = read(write(tmp_path, content.replace(b"\n", b"\r\n"), "windows.csv"))
  assert of_pairs(log) == of_pairs(windows) == {
      ("u1", "i1"): (4, 100), ("u1", "i2"): (3.5, 101), ("u2", "i1"): (1, 102), ("u3", "i3"): (4, 9007199254740993),
      ("u3", "i4"): (4, -13), ("u3", "i5"): (4, 1000)}


def test_delimiters_and_gzip(tmp_path):
  expected = triples(read(write(tmp_path, HEADER + GOOD)))
  packed = gzip.compress(HEADER + GOOD)
  tabs = (HEADER + GOOD).replace(b",", b"\t")
  assert triples(read(write(tmp_path, packed, "log.csv.gz"))) == expected
  assert triples(read(write(tmp_path, tabs, "log.tsv"))) == expected
  assert triples(read(write(tmp_path, tabs, "log.txt"))) == expected
  other = write(tmp_path, (HEADER + GOOD).replace(b",", b"::"), "log.dat")
  assert triples(read(other, delimiter="::")) == expected
  with pytest.raises(InputError, match="give delimiter="):
    read(other)
  for broken in (packed[:-12], b"\x1f\x8bnonsense", packed[:20] + b"\0" * 9 + packed[29:]):
    with pytest.raises(InputError, match="cannot be read"):
      read(write(tmp_path, broken, "broken.csv.gz"))


def test_random_damage_gives_the_reference_rows_or_a_clear_error(tmp_path):
  rng = np.random.default_rng(0)
  clean = HEADER + b"".join(b"u%d,i%d,%d,%d\n" % (k % 7, k, k % 5, k) for k in range(20))
  for _ in range(300):
    content = bytearray(clean)
    for place in rng.integers(len(HEADER), len(content), size=3):
      content[place] = rng.choice(list(b',\n\0"\xff 9a\r'))
    log = read(write(tmp_path, bytes(content)), max_bad_rows=99)
    rows = bytes(content[len(HEADER):]).split(b"\n")
    assert len(log.users) + len(log.bad_rows) == len(rows) - (rows[-1] == b"")


def test_parquet(tmp_path):
  pyarrow = pytest.importorskip("pyarrow")
  parquet = pytest.importorskip("pyarrow.parquet")
  path = tmp_path / "log.parquet"

  def save(**change):
    columns = {"user": ["1", "001", "2"], "item": [7, 8, 2**60 + 1], "rating": [1.5, 2.0, 3.0],
               "ts": pyarrow.array([1_500, 2_000, 3_000], pyarrow.timestamp("ms"))} | change
    parquet.write_table(pyarrow.table({k: v for k, v in columns.items() if v is not None}), path)
    return path

  log = read(save())
  assert of_pairs(log) == {("1", "7"): (1.5, 1), ("001", "8"): (2, 2), ("2", str(2**60 + 1)): (3, 3)}
  with pytest.raises(InputError, match=r"parquet:2: an empty id"):
    read(save(user=["1", None, "2"]))
  with pytest.raises(InputError, match="ids are strings or integers"):
    read(save(item=[7.0, 8.0, 9.0]))
  with pytest.raises(InputError, match="no column 'user'; it has 'item', 'rating', 'ts'"):
    read(save(user=None))
  content = save().read_bytes()
  for broken in (content[:50], b"nonsense", content[:-9] + b"\xff" * 9):
    with pytest.raises(InputError, match="cannot be read"):
      read(write(tmp_path, broken, "broken.parquet"))


def test_given_split_column(tmp_path):
  parts = [b"train"] * 4 + [b"validation", b"test"]
  rows = b"".join(b"u%d,i%d,%s\n" % (k, k % 3, part) for k, part in enumerate(parts))
  path = write(tmp_path, b"user,item,part\n" + rows)
  recipe = module.interactions(str(path), split="given", split_column="part")
  _, parts, _ = store.process(recipe, recipe.read([path]))
  assert parts.tolist() == [0, 0, 0, 0, 1, 2]
  path.write_bytes(path.read_bytes() + b"u9,i9,later\n")
  with pytest.raises(InputError, match=r":8: part 'later' is none of train, validation, test"):
    recipe.read([path])


def test_gowalla_files(tmp_path):
  train, test = (write(tmp_path, content, name) for name, content in (
      ("train.txt", b"0 5 4 9 7 \n1 4\n"), ("test.txt", b"0 8\n1 5 9\n2\n")))
  recipe = module_gowalla.gowalla(validation_ratio=0.25)
  log, parts, _ = store.process(recipe, recipe.read([train, test]))
  assert ["".join(pair) for pair in triples(log)] == ["04", "05", "07", "09", "14", "08", "15", "19"]
  assert sorted(parts[:4]) == [0, 0, 0, 1] and parts[4:].tolist() == [0, 2, 2, 2]
  with pytest.raises(InputError, match="validation_ratio=1"):
    module_gowalla.gowalla(validation_ratio=1).read([train, test])


@pytest.mark.parametrize("arguments", [
    {"split": "given"}, {"split_column": "x"}, {"user": "item"}, {"user": -3}, {"user": True}, {"rating": ""},
    {"max_bad_rows": "x%"}, {"max_bad_rows": "101%"}, {"layout": "item user"}, {"unit": "days"}, {"repeated": "twice"},
    {"missing": (1,)}, {"skip": -1}, {"validation": "y.csv"}, {"split": "given", "test": "x.csv"},
    {"delimiter": ""}, {"delimiter": '"'}, {"max_bad_rows": -1}, {"max_bad_rows": True},
])
def test_wrong_arguments(arguments):
  with pytest.raises(InputError, match="`data`"):
    registry.build("data", registry.Call("interactions", tuple({"path": "x.csv", **arguments}.items())))


class Canary:
  """Unpickling it would create a file."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (self.path, "w")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_that_name_anything_are_refused_unexecuted(tmp_path, protocol):
  path, canary = tmp_path / "p", tmp_path / "canary"
  path.write_bytes(pickle.dumps({0: Canary(str(canary))}, protocol))
  with pytest.raises(InputError, match="not a pickle of plain data: names"):
    pickles.read_pickle(path)
  assert not canary.exists()
  path.write_bytes(pickle.dumps({0: [1, 2]}, protocol))
  assert pickles.read_pickle(path) == {0: [1, 2]}
  path.write_bytes(path.read_bytes()[:-3])
  with pytest.raises(InputError, match="not a pickle"):
    pickles.read_pickle(path)
