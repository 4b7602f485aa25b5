"""Splits and their audit: properties on random logs, and mistakes that must be noticed."""

import numpy as np
import pytest

from kd_jax.base import InputError
from kd_jax.data import audit, cleaning, splits, store
from kd_jax.data.recipe import TEST, TRAIN, VALIDATION, Log, Recipe

RULES = ("random", "position", "temporal", "loo", "loo_last", "cold_items")
RATIOS = (0.8, 0.1, 0.1)


def random_log(seed, users=40, items=60, rows=900) -> Log:
  """Distinct pairs with few distinct seconds, so that ties occur; cleaned."""
  rng = np.random.default_rng(seed)
  log = Log(rng.integers(users, size=rows), rng.integers(items, size=rows), [f"u{u}" for u in range(users)],
            [f"i{i}" for i in range(items)], timestamps=rng.integers(200, size=rows))
  return cleaning.clean(log, None, 1, 1)[0]


@pytest.mark.parametrize("rule", RULES)
def test_every_row_is_in_exactly_one_part_and_no_pair_is_in_two(rule):
  for seed in range(40):
    log = random_log(seed)
    parts = splits.split_rows(log, rule, RATIOS, seed)
    assert parts.shape == log.users.shape and set(np.unique(parts)) <= {TRAIN, VALIDATION, TEST}
    splits.check_parts(log, parts)
    pairs = [set(zip(log.users[parts == p], log.items[parts == p], strict=True)) for p in range(3)]
    assert sum(map(len, pairs)) == len(set().union(*pairs)) == len(log.users)


@pytest.mark.parametrize("rule", ["random", "position"])
def test_counts_per_user_follow_the_floor_rule(rule):
  log = random_log(3)
  parts = splits.split_rows(log, rule, RATIOS, 0)
  for user in range(len(log.user_ids)):
    n = int((log.users == user).sum())
    train, kept = max(1, n * 8 // 10), max(1, n * 8 // 10, n * 9 // 10)
    assert np.bincount(parts[log.users == user], minlength=3).tolist() == [train, kept - train, n - kept]


def test_shares_that_binary_numbers_miss_are_still_exact():
  parts = splits.by_ratio(np.zeros(10, int), np.arange(10), (0.7, 0.1, 0.2))
  assert np.bincount(parts).tolist() == [7, 1, 2]


def test_position_keeps_the_order_of_the_source():
  log = random_log(4)
  parts = splits.split_rows(log, "position", RATIOS, 0)
  assert all((np.diff(parts[log.users == user]) >= 0).all() for user in range(len(log.user_ids)))


def test_leave_one_out_holds_out_one_each_and_leaves_small_users_alone():
  users = np.repeat([0, 1, 2, 3], [1, 2, 3, 9])
  log = Log(users, np.arange(len(users)), list("abcd"), [str(i) for i in range(len(users))],
            timestamps=np.arange(len(users))[::-1].copy())
  for rule in ("loo", "loo_last"):
    parts = splits.split_rows(log, rule, RATIOS, 1)
    of = [np.bincount(parts[users == user], minlength=3).tolist() for user in range(4)]
    assert of == [[1, 0, 0], [2, 0, 0], [1, 1, 1], [7, 1, 1]]
  assert parts[[3, 4, 6, 7]].tolist() == [TEST, VALIDATION, TEST, VALIDATION]  # the latest come first here


def test_cold_items_are_held_out_whole_and_the_others_by_user():
  log = random_log(9)
  parts = splits.split_rows(log, "cold_items", (0.7, 0.1, 0.2), 3)
  cold = {part: set(log.items[parts == part]) - set(log.items[parts == TRAIN]) for part in (VALIDATION, TEST)}
  held_out = [set(parts[log.items == item].tolist()) for item in set().union(*cold.values())]
  whole = [{VALIDATION}, {TEST}]
  # Beside the 6 and 12 of 60 items that are drawn, a rare item may happen to have no training row.
  assert held_out.count(whole[0]) >= 6 and held_out.count(whole[1]) >= 12
  assert sum(map(len, cold.values())) < 25
  drawn = np.array([set(parts[log.items == item].tolist()) in whole for item in range(60)])
  for user in range(len(log.user_ids)):
    rows = (log.users == user) & ~drawn[log.items]
    n = int(rows.sum())
    assert np.bincount(parts[rows], minlength=3)[TRAIN] == max(1, n * 7 // 10)


def test_temporal_is_one_point_in_time_and_keeps_seconds_together():
  for seed in range(40):
    log = random_log(seed)
    parts = splits.split_rows(log, "temporal", RATIOS, 0)
    of = [log.timestamps[parts == p] for p in range(3)]
    assert of[0].max() < of[1].min() <= of[1].max() < of[2].min()
  with pytest.raises(AssertionError, match="temporal"):
    audit.inspect_split(log, parts[::-1].copy(), "temporal")


@pytest.mark.parametrize("rule", RULES)
def test_the_seed_decides_random_splits_and_nothing_else_does(rule):
  log = random_log(5)
  first, again, other = (splits.split_rows(log, rule, RATIOS, seed) for seed in (7, 7, 8))
  assert (first == again).all()
  assert (first == other).all() == (rule not in ("random", "loo", "cold_items"))


def test_a_leak_is_caught():
  for seed in range(20):
    log = random_log(seed)
    parts = splits.split_rows(log, "random", RATIOS, seed)
    row = np.random.default_rng(seed).choice(np.flatnonzero(parts == TEST))
    leaked = cleaning.take(log, np.append(np.arange(len(parts)), row))
    with pytest.raises(InputError, match=r"1 interactions are in train and test, e\.g\. user 'u"):
      splits.check_parts(leaked, np.append(parts, TRAIN))


def test_a_leak_in_a_given_split_is_not_cleaned_away():
  log = Log(np.array([0, 0, 0, 0]), np.array([0, 1, 2, 0]), ["a"], ["x", "y", "z"],
            parts=np.array([0, 1, 2, 2], np.int8))
  with pytest.raises(InputError, match="train and test"):
    store.process(Recipe(None, split="given"), log)


def test_empty_splits_are_refused_unless_asked_for():
  log = random_log(6, rows=300)
  with pytest.raises(InputError, match="`data`: the test split is empty"):
    store.process(Recipe(None, ratios=(0.9, 0.1, 0)), log)
  _, parts, _ = store.process(Recipe(None, ratios=(0.9, 0, 0.1)), log)
  assert not (parts == VALIDATION).any()
  tiny = Log(np.arange(5), np.arange(5), list("abcde"), list("vwxyz"))
  with pytest.raises(InputError, match="`data`: the validation split is empty"):
    store.process(Recipe(None), tiny)


@pytest.mark.parametrize("change", [
    {"ratios": (0.8, 0.1)}, {"ratios": (0.8, 0.1, 0.2)}, {"ratios": (1.1, -0.1, 0.0)}, {"ratios": "abc"},
    {"ratios": (float("nan"), 0.5, 0.5)}, {"split": "randon"}, {"split": "given"}, {"min_user": 0},
    {"min_item": 2.5}, {"split_seed": -1}, {"min_rating": "4"}, {"min_rating": 4},
])
def test_wrong_arguments_are_input_errors(change):
  with pytest.raises(InputError, match="`data`"):
    store.process(Recipe(None, **change), random_log(0))
  with pytest.raises(InputError, match="needs time stamps"):
    store.process(Recipe(None, split="temporal"), random_log(0)._replace(timestamps=None))


def test_hold_out_takes_from_train_only():
  log = random_log(8)
  given = log._replace(parts=splits.split_rows(log, "random", (0.8, 0.0, 0.2), 0))
  parts = splits.hold_out(given, 0.25, 0)
  assert (parts[given.parts == TEST] == TEST).all()
  for user in range(len(log.user_ids)):
    n = int(((log.users == user) & (given.parts == TRAIN)).sum())
    assert ((log.users == user) & (parts == VALIDATION)).sum() == n // 4
  assert (splits.hold_out(given, 0, 0) == given.parts).all()


def test_audit_counts_cold_items_and_users():
  log = Log(np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 2, 0, 1, 3]), list("abc"), list("wxyz"))
  parts = np.array([TRAIN, VALIDATION, TEST, TRAIN, TRAIN, TEST], np.int8)
  report = audit.inspect_split(log, parts, "random")
  expected = {"users": 3, "items": 4, "train": 3, "validation": 1, "test": 2, "users_without_train": 1,
              "users_without_test": 1, "users_with_cold_test_only": 2, "cold_test": 2, "cold_test_share": 1.0,
              "cold_validation": 0}
  assert {key: report[key] for key in expected} == expected
  assert "2 of 2 in test = 100.0%" in audit.describe(report)


def test_rows_sorted_by_item_id_are_noticed_and_compared_as_numbers():
  log = Log(np.repeat([0, 1], 4), np.array([0, 1, 2, 3] * 2), ["a", "b"], ["2", "9", "10", "100"])
  assert audit.sorted_users(log) == 1.0
  assert audit.sorted_users(log._replace(item_ids=["2", "9", "x10", "x1"])) == 0.0
  report = audit.inspect_split(log, splits.split_rows(log, "position", (0.5, 0.25, 0.25), 0), "position")
  assert "not time" in report["warnings"][0]
  others = audit.inspect_split(log, np.array([0, 0, 1, 2] * 2), "random")["warnings"]
  assert not any("not time" in warning for warning in others)
