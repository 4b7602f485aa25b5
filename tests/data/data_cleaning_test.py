"""Cleaning against references written as plainly as possible."""

import numpy as np

from kd_jax.data import cleaning
from kd_jax.data.recipe import Log


def random_log(seed):
  rng = np.random.default_rng(seed)
  rows = 250
  return Log(rng.integers(30, size=rows), rng.integers(25, size=rows), [f"u{u}" for u in range(30)],
             [f"i{i}" for i in range(25)], ratings=rng.integers(1, 6, size=rows).astype(np.float32),
             timestamps=rng.integers(20, size=rows))


def rows_of(log):
  return [(log.user_ids[u], log.item_ids[i], r, t)
          for u, i, r, t in zip(log.users, log.items, log.ratings, log.timestamps, strict=True)]


def reference(rows, min_rating, min_user, min_item):
  rows = [row for row in rows if row[2] >= min_rating]
  kept = [row for k, row in enumerate(rows)
          if not any(o[:2] == row[:2] and (o[3], n) < (row[3], k) for n, o in enumerate(rows))]
  while True:
    users, items = [r[0] for r in kept], [r[1] for r in kept]
    smaller = [r for r in kept if users.count(r[0]) >= min_user and items.count(r[1]) >= min_item]
    if len(smaller) == len(kept):
      return kept
    kept = smaller


def test_cleaning_equals_the_reference():
  for seed in range(25):
    log = random_log(seed)
    for limits in ((1, 1, 1), (3, 4, 1), (2, 1, 5), (2, 4, 6), (5, 9, 9)):
      cleaned, report = cleaning.clean(log, *limits)
      expected = reference(rows_of(log), *limits)
      assert rows_of(cleaned) == expected
      removed = report["below_min_rating"] + report["duplicates"] + report["k_core"]["interactions"]
      assert report["rows"] == removed + report["interactions"] == 250
      assert report["interactions"] == len(expected)


def test_codes_are_in_order_of_first_appearance():
  cleaned, _ = cleaning.clean(random_log(1), 2, 3, 3)
  for codes, ids in ((cleaned.users, cleaned.user_ids), (cleaned.items, cleaned.item_ids)):
    _, first = np.unique(codes, return_index=True)
    assert (np.diff(first) > 0).all() and len(first) == len(ids) == len(set(ids))


def test_without_time_stamps_the_first_row_of_a_pair_stays():
  ratings = np.array([3, 4, 5], np.float32)
  log = Log(np.array([0, 0, 0]), np.array([0, 1, 0]), ["a"], ["x", "y"], ratings=ratings)
  cleaned, report = cleaning.clean(log, None, 1, 1)
  assert cleaned.ratings.tolist() == [3, 4] and report["duplicates"] == 1


def test_everything_may_be_removed():
  cleaned, report = cleaning.clean(random_log(0), None, 99, 1)
  assert len(cleaned.users) == 0 == len(cleaned.user_ids) and report["k_core"]["users"] == 30
