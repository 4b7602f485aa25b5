"""What the audit counts and warns of, on small files; the expected values are counted by loops over their rows."""

import itertools
import json
import re

import numpy as np
import pytest

from kd_jax import data, registry
from kd_jax.data import audit, contexts, splits, store
from kd_jax.data.recipe import TEST, TRAIN, Log

DAY = 86_400
ALL = ("train", "validation", "test")


@pytest.fixture
def audited(tmp_path):
  """audited(rows, "split='loo_last'"): the audit of a file with the columns user, item, ts and part."""
  def of(rows, arguments):
    path = tmp_path / "log.csv"
    path.write_text("user,item,ts,part\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    call = registry.parse("data", f"interactions(path={str(path)!r}, {arguments})", "data")
    recipe = registry.build("data", call)
    report = store.process(recipe, recipe.read([path]))[2]["audit"]
    return json.loads(json.dumps(report, allow_nan=False))

  return of


def by_user(rows):
  found = {}
  for row in rows:
    found.setdefault(row[0], []).append(row)
  return found


def log_of(rows, part=None):
  """The rows in the order of a source that is not a user's own file."""
  users, items = (list(dict.fromkeys(row[n] for row in rows)) for n in (0, 1))
  return Log(np.array([users.index(row[0]) for row in rows]), np.array([items.index(row[1]) for row in rows]), users,
             items, timestamps=np.array([row[2] for row in rows]), parts=part)


ONE_STAMP = [(f"u{u}", f"{i}", 1_600_000_000 + 7 * u, "train") for u in range(20) for i in range(u, u + 8)]
ONE_STAMP += [("late", f"{i}", 1_600_001_000 + i, "train") for i in (3, 1, 2, 5)]
DATES = [(f"u{u}", f"{i + 6 * day:03}", 18_000 * DAY + day * DAY, "train")
         for u in range(20) for day in range(12) for i in range(u % 3, u % 3 + 3)]
BY_ITEM = [(f"u{u}", f"{i}", 1_600_000_000 + 1000 * i + u, "train") for u in range(20) for i in range(u, u + 8)]


@pytest.mark.parametrize("rule", ["loo_last", "temporal"])
def test_one_time_stamp_per_user_is_no_order(audited, rule):
  report = audited(ONE_STAMP, f"timestamp='ts', split='{rule}'")
  one = sum(len({row[2] for row in rows}) == 1 for rows in by_user(ONE_STAMP).values())
  assert (report["users_with_one_stamp"], report["users_with_one_stamp_share"]) == (one, one / 21) == (20, 20 / 21)
  said = " ".join(report["warnings"])
  assert f"95.2% of users have one time stamp for all their interactions, so these have no order that {rule}" in said
  assert (report["cold_test_share"] > 0.2) == ("of test interactions are on items that training never sees" in said)


@pytest.mark.parametrize("rule", ["loo_last", "temporal"])
def test_dates_are_no_order_within_a_day(audited, rule):
  report = audited(DATES, f"timestamp='ts', split='{rule}'")
  assert report["stamps_are_dates"] and report["tied_stamps"] == len(DATES)
  assert any("dates without a time of day, and 100.0% of interactions share" in x for x in report["warnings"])
  berlin = [(u, i, ts - 3600 * (1 + (ts // DAY % 2)), part) for u, i, ts, part in DATES]  # midnight, summer and winter
  assert audited(berlin, f"timestamp='ts', split='{rule}'")["stamps_are_dates"]
  timed = [(u, i, ts + 61 * n, part) for n, (u, i, ts, part) in enumerate(DATES)]
  report = audited(timed, f"timestamp='ts', split='{rule}'")
  assert not report["stamps_are_dates"] and not any("dates" in x for x in report["warnings"])


@pytest.mark.parametrize("rule", ["loo_last", "temporal"])
def test_times_that_ascend_by_item_id_are_no_times(audited, rule):
  report = audited(BY_ITEM, f"timestamp='ts', split='{rule}'")
  assert report["users_sorted_by_item_id_in_time"] == 1
  cold = f"{report['cold_test_share']:.1%}"
  assert f"{rule} tests on the highest ids, and {cold} of test interactions" in " ".join(report["warnings"])
  backwards = [(u, i, -ts, part) for u, i, ts, part in BY_ITEM]
  report = audited(backwards, f"timestamp='ts', split='{rule}'")
  assert report["users_sorted_by_item_id_in_time"] == 0
  assert not any("highest ids" in x for x in report["warnings"])


@pytest.mark.parametrize("rows", [ONE_STAMP, DATES], ids=["one stamp", "dates"])
def test_ties_in_the_order_of_the_file_split_by_item_id(rows):
  log = log_of(rows)
  report = audit.inspect_split(log, splits.split_rows(log, "loo_last", (), 0), "loo_last")
  ascending = [[int(row[1]) for row in sorted(own, key=lambda row: row[2])] for own in by_user(rows).values()]
  expected = np.mean([all(a < b for a, b in itertools.pairwise(x)) for x in ascending])
  assert report["users_sorted_by_item_id_in_time"] == pytest.approx(expected) and expected > 0.9
  assert any("ascend by item id, so their order is not time: loo_last" in x for x in report["warnings"])


def test_tied_stamps_and_tied_ends():
  rng = np.random.default_rng(0)
  rows = sorted({(f"u{u}", f"i{i}") for u, i in rng.integers((30, 40), size=(400, 2))})
  rows = [(u, i, int(t)) for (u, i), t in zip(rows, rng.integers(1_600_000_000, 1_600_000_020, len(rows)), strict=True)]
  tied = sum(sum(other[2] == row[2] for other in own) > 1 for own in by_user(rows).values() for row in own)
  log = log_of(rows)
  parts = splits.split_rows(log, "loo_last", (), 0)
  report = audit.inspect_split(log, parts, "loo_last")
  assert (report["tied_stamps"], report["tied_stamps_share"]) == (tied, tied / len(rows)) and 0 < tied < len(rows)
  ends = tested = 0
  for user in range(len(log.user_ids)):
    of = [log.timestamps[(log.users == user) & (parts == part)] for part in range(3)]
    tested += len(of[2])
    ends += any(len(b) and max(a) == min(b) for a, b in itertools.pairwise(of))
  assert (report["users_with_tied_end"], report["users_with_tied_end_share"]) == (ends, ends / tested)
  assert any(f"of {ends / tested:.1%} of users, a held-out interaction has the same time" in x
             for x in report["warnings"])
  assert not any("same time" in x for x in audit.inspect_split(log, parts, "random")["warnings"])


def test_milliseconds_among_seconds(audited):
  rng = np.random.default_rng(1)
  rows = [(f"u{u}", f"i{i}", 1_600_000_000 + int(rng.integers(10**7)), "train") for u in range(20) for i in range(10)]
  mixed = [(*row[:2], row[2] * 1000 if n % 8 == 0 else row[2], row[3]) for n, row in enumerate(rows)]
  report = audited(mixed, "timestamp='ts'")
  expected = sum(len(str(row[2])) > 11 for row in mixed)
  assert (report["not_seconds"], report["not_seconds_share"]) == (expected, expected / 200) == (25, 0.125)
  assert any("25 time stamps (12.5%) are milliseconds or finer, the others seconds" in x for x in report["warnings"])
  every = [(*row[:2], row[2] * 1000, row[3]) for row in rows]
  assert "time stamps are milliseconds or finer, not seconds" in audited(every, "timestamp='ts'")["warnings"]
  assert not any("milliseconds" in x for x in audited(rows, "timestamp='ts'")["warnings"])


def test_the_largest_user_and_ids_that_spell_a_missing_value(audited):
  rows = [(f"u{u}", f"i{i}", 0, "train") for u in range(60) for i in range(u % 7, u % 7 + 10)]
  rows += [("NA", f"i{i}", 0, "train") for i in range(150)] + [("null", f"i{i}", 0, "train") for i in range(4)]
  rows += [(f"u{u}", r"\N", 0, "train") for u in range(9)]
  report = audited(rows, "split='random'")
  sizes = {user: len(own) for user, own in by_user(rows).items()}
  most = max(sizes, key=sizes.get)
  assert report["largest_user"] == {"id": most, "interactions": sizes[most], "share": sizes[most] / len(rows)}
  assert report["missing_ids"] == {"users": {"NA": 150, "null": 4}, "items": {r"\N": 9}}
  for words in (f"user 'NA' has {150 / len(rows):.1%} of all interactions",
                "ids of users that spell a missing value: 2, 'NA' with 150, 'null' with 4 interactions",
                r"ids of items that spell a missing value: 1, '\\N' with 9 interactions"):
    assert any(words in x for x in report["warnings"]), words


@pytest.mark.parametrize("name", ["NA", "null", "None", "nan", r"\N", "NULL", "N/A", "-", "NaN", " na "])
def test_spellings_of_a_missing_value(name):
  log = log_of([("u", name, 0), ("u", "i", 0), ("nantes", "x", 0)])
  assert audit.inspect_split(log, np.zeros(3, np.int8), "given")["missing_ids"] == {"users": {}, "items": {name: 1}}


def test_ids_that_differ_only_in_how_they_are_written(audited):
  users = ["ann", "Ann", "ANN ", "7", "007", "7.0", "70", "0", "00", "bob", "bo b", "b.0b"]
  rows = [(f'"{user}"', f"i{i}", 0, "train") for user in users for i in range(10)]
  report = audited(rows, "split='random'")

  def same(a, b):
    a, b = (re.sub(r"^0+(?=.)", "", re.sub(r"\.0$", "", x.strip().lower())) for x in (a, b))
    return a == b

  later = [b for n, b in enumerate(users) if any(same(a, b) for a in users[:n])]
  assert report["similar_ids"]["users"]["pairs"] == len(later) == 5 and report["similar_ids"]["items"]["pairs"] == 0
  assert all(same(a, b) and a != b for a, b in report["similar_ids"]["users"]["first"])
  assert any("pairs of ids of users that differ only by case, spaces, leading zeros or a final .0: 5, such as" in x
             for x in report["warnings"])


def test_cold_shares_of_both_held_out_splits(audited):
  rng = np.random.default_rng(2)
  rows = sorted({(f"u{u}", f"i{i}") for u, i in rng.integers((20, 90), size=(300, 2))})
  rows = [(u, i, 0, str(rng.choice(ALL))) for u, i in rows]
  report = audited(rows, "split='given', split_column='part'")
  known = {item for _, item, _, part in rows if part == "train"}
  for part in ("validation", "test"):
    items = [item for _, item, _, own in rows if own == part]
    cold = [item for item in items if item not in known]
    assert report[f"cold_{part}"] == len(cold) > 0 and report[f"cold_{part}_items"] == len(set(cold))
    assert report[f"cold_{part}_share"] == pytest.approx(len(cold) / len(items))
  assert any(f"{report['cold_test_share']:.1%} of test interactions are on items" in x for x in report["warnings"])
  known = {user for user, _, _, part in rows if part == "train"}
  assert report["users_without_train"] == len(by_user(rows)) - len(known)


def test_nothing_is_said_of_sound_data(audited):
  rng = np.random.default_rng(3)
  rows = [(f"u{u}", f"i{i}", 1_600_000_000 + int(rng.integers(10**7)), "train")
          for u in range(40) for i in rng.permutation(30)[:12]]
  for rule in ("random", "loo", "loo_last"):
    assert audited(rows, f"timestamp='ts', split='{rule}'")["warnings"] == []


def test_folders_of_an_earlier_version_are_audited_again(tmp_path):
  path = tmp_path / "log.csv"
  path.write_text("user,item,ts\n" + "".join(f"{u},{i},{1_600_000_000 + 7 * u}\n" for u, i, _, _ in (
      (int(row[0][1:]) if row[0] != "late" else 99, *row[1:]) for row in ONE_STAMP)))
  call = f"interactions(path={str(path)!r}, timestamp='ts', split='loo_last')"
  now = data.load(call, cache_dir=tmp_path / "cache", splits=ALL)
  kept = ("users", "items", *ALL, "density", "users_without_train", "users_without_test", "users_with_cold_test_only",
          "cold_test", "cold_test_share", "cold_validation", "cold_validation_share", "users_sorted_by_item_id")
  before = {"audit": {name: now.report["audit"][name] for name in kept} | {"warnings": ["old"]},
            "split": now.report["split"]}
  assert audit.of_dataset(now._replace(report=before)) == now.report["audit"] == audit.of_dataset(now)
  assert "WARNING: 100.0% of users have one time stamp" in audit.describe(now.report["audit"])


def test_values_of_fields_that_training_never_sees(tmp_path):
  rng = np.random.default_rng(4)
  rows = [(int(rng.integers(2)), f"s{rng.integers(3)}", f"c{rng.integers(25)}", str(rng.choice(ALL)))
          for _ in range(60)]
  path = tmp_path / "rows.csv"
  path.write_text("label,small,city,part\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
  call = (f"labelled(path={str(path)!r}, labels=('label',), fields=('small', 'city'), split='given', "
          "split_column='part')")
  loaded = data.load(call, cache_dir=tmp_path / "cache", splits=ALL)
  known = {row[2] for row in rows if row[3] == "train"}
  unknown = {part: [row[2] for row in rows if row[3] == part and row[2] not in known] for part in ALL}
  found = loaded.report["audit"]["unknown_values"]["city"]
  assert found["values"] == len({*unknown["validation"], *unknown["test"]}) > 0
  for part in ("validation", "test"):
    assert found[part] == len(unknown[part])
    assert found[f"{part}_share"] == pytest.approx(len(unknown[part]) / sum(row[3] == part for row in rows))
  share = max(found["validation_share"], found["test_share"])
  assert any("field 'city'" in x for x in loaded.report["audit"]["warnings"]) == (share > 0.1)
  assert "small" not in loaded.report["audit"]["unknown_values"]
  assert f"city {found['validation_share']:.1%} and {found['test_share']:.1%}" in contexts.describe(
      loaded.report["audit"])
  before = {"audit": {k: v for k, v in loaded.report["audit"].items() if k != "unknown_values"} | {"warnings": []}}
  assert contexts.of_dataset(loaded._replace(report=before)) == loaded.report["audit"]


def test_train_and_test_are_never_mixed_up_by_the_order_of_parts():
  """A user's end is tied only between one part and the next, not within a part."""
  log = log_of([("u", "a", 5), ("u", "b", 5), ("u", "c", 6), ("v", "a", 6), ("v", "b", 7), ("v", "c", 7)])
  parts = np.array([TRAIN, TRAIN, TEST, TRAIN, TRAIN, TEST], np.int8)
  report = audit.inspect_split(log, parts, "loo_last")
  assert (report["users_with_tied_end"], report["tied_stamps"]) == (1, 4)
