"""Splits of a log into train, validation and test. Every function returns parts [N] int8.

All splits by ratios use the same rule. Of n ordered rows, the first floor(r_train n), but at least one, are
train; those up to floor((r_train + r_validation) n) are validation; the rest are test.
"""

from __future__ import annotations

import numpy as np

from kd_jax.base import InputError
from kd_jax.data import cleaning
from kd_jax.data.order import slices
from kd_jax.data.recipe import TEST, TRAIN, VALIDATION, Log

NAMES = ("train", "validation", "test")  # NAMES[value] for a value in `parts`
RULES = ("random", "position", "temporal", "loo", "loo_last", "cold_items", "given")
BY_RATIO = ("random", "position", "temporal", "cold_items")


def split_rows(log: Log, rule: str, ratios: tuple[float, ...], seed: int) -> np.ndarray:
  """Parts [N] int8 by `rule`, a deterministic function of `seed`. Raises InputError.

  random: each user's rows by ratios, in random order.
  position: each user's rows by ratios, in the order of the source.
  temporal: all rows by ratios in time order, so that the cuts are the same points in time for all users.
  loo: one random test and one random validation interaction of each user with at least three.
  loo_last: the last interaction in time is test, the one before it validation. Without time stamps, the order of
    the source, if the log says that this is the order of time.
  cold_items: items by ratios, so that some items occur only in validation or only in test; interactions
    with the training items are split as in random.
  given: by the source.
  """
  if rule not in RULES:
    raise InputError(f"`data`: split={rule!r}: choose from {', '.join(RULES)}")
  if rule in ("temporal", "loo_last") and log.timestamps is None and not (rule == "loo_last" and log.in_time):
    raise InputError(f"`data`: split={rule!r} needs time stamps, and there are none")
  if rule == "given" and log.parts is None:
    raise InputError("`data`: split='given' needs a source that says which part each row is in")
  if rule == "given":
    return log.parts.astype(np.int8)
  if rule == "temporal":
    return by_time(log.timestamps, ratios)
  if rule == "cold_items":
    return cold_items(log.users, log.items, ratios, seed)
  shuffled = np.random.default_rng(seed).permutation(len(log.users))
  if rule == "random":
    return by_ratio(log.users, shuffled, ratios)
  if rule == "position":
    return by_ratio(log.users, np.arange(len(log.users)), ratios)
  if rule == "loo_last":
    shuffled = np.arange(len(log.users)) if log.timestamps is None else np.argsort(log.timestamps, kind="stable")
  return leave_one_out(log.users, shuffled)


def split_repeated(log: Log, rule: str, ratios: tuple[float, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
  """(mask of the rows that are left, parts of these), for a log with repeated (user, item).

  The first row of each pair is split by `rule`; the other rows of a pair are left in train alone.
  """
  first = cleaning.first_of_pairs(log)
  parts = np.full(len(log.users), TRAIN, np.int8)
  parts[first] = split_rows(cleaning.take(log, first), rule, ratios, seed)
  _, pairs = np.unique(log.users.astype(np.int64) * (int(log.items.max()) + 1) + log.items, return_inverse=True)
  held = np.zeros(int(pairs.max()) + 1, bool)
  held[pairs[parts != TRAIN]] = True
  left = first | ~held[pairs]
  return left, parts[left]


def by_ratio(users: np.ndarray, order: np.ndarray, ratios: tuple[float, ...]) -> np.ndarray:
  """Parts [N] that split each user's rows by ratios; `order` [N], a permutation of the rows, gives their order."""
  ranks, counts = _ranks(users, order)
  train = np.maximum(_floor(ratios[0] * counts), 1)  # [U], the number of training rows
  validation = np.maximum(_floor((ratios[0] + ratios[1]) * counts), train)
  parts = np.empty(len(users), np.int8)
  for part in slices(len(users)):
    own, rank = users[part], ranks[part]
    parts[part] = (rank >= train[own]).astype(np.int8) + (rank >= validation[own])
  return parts


def by_time(timestamps: np.ndarray, ratios: tuple[float, ...]) -> np.ndarray:
  """Parts [N] by two points in time. Rows of the same second stay together, in the later part."""
  if not len(timestamps):
    return np.zeros(0, np.int8)
  ordered, count = np.sort(timestamps), len(timestamps)
  cuts = [min(_floor(share * count), count - 1) for share in (ratios[0], ratios[0] + ratios[1])]
  return sum((timestamps >= ordered[cut]).astype(np.int8) for cut in cuts)


def cold_items(users: np.ndarray, items: np.ndarray, ratios: tuple[float, ...], seed: int) -> np.ndarray:
  """Parts [N]: holds out all rows of random items; splits the rows of the other items per user by ratios."""
  rng, num_items = np.random.default_rng(seed), int(items.max()) + 1
  parts = by_ratio(np.zeros(num_items, np.int64), rng.permutation(num_items), ratios)[items]
  warm = parts == TRAIN
  parts[warm] = by_ratio(users[warm], rng.permutation(warm.sum()), ratios)
  return parts


def leave_one_out(users: np.ndarray, order: np.ndarray) -> np.ndarray:
  """Parts [N]: for users with at least three rows, the last in `order` is test, the one before it validation."""
  ranks, counts = _ranks(users, order)
  from_end = np.where(counts[users] >= 3, counts[users] - ranks, 3)
  return np.select([from_end == 1, from_end == 2], [TEST, VALIDATION], TRAIN).astype(np.int8)


def hold_out(log: Log, ratio: float, seed: int) -> np.ndarray:
  """Parts [N] of a given split, with random floor(ratio n) of each user's n train rows moved into validation."""
  if not 0 <= ratio < 1:
    raise InputError(f"`data`: validation_ratio={ratio}: must be at least 0 and less than 1")
  rows = np.flatnonzero(log.parts == TRAIN)
  shuffled = np.random.default_rng(seed).permutation(len(rows))
  ranks, counts = _ranks(log.users[rows], shuffled)
  parts = log.parts.copy()
  parts[rows[ranks < _floor(ratio * counts[log.users[rows]])]] = VALIDATION
  return parts


def check_ratios(ratios: tuple[float, ...]) -> None:
  """Raises InputError unless `ratios` are three shares that sum to 1."""
  numbers = isinstance(ratios, tuple | list) and all(isinstance(r, int | float) for r in ratios)
  if not numbers or len(ratios) != 3 or min(ratios) < 0 or not abs(sum(ratios) - 1) < 1e-6:
    raise InputError(f"`data`: ratios={ratios!r}: give train, validation and test shares that sum to 1")


def check_parts(log: Log, parts: np.ndarray, may_be_empty: tuple[str, ...] = (), reason: str = "") -> None:
  """Raises InputError if a split is empty, with the reason, or two splits share a (user, item)."""
  for value, name in enumerate(NAMES):
    if not (parts == value).any() and name not in may_be_empty:
      raise InputError(f"`data`: the {name} split is empty ({len(parts):,} interactions in all{reason})")
  pairs = np.multiply(log.users, int(log.items.max()) + 1, dtype=np.int64)
  pairs += log.items
  ascending = np.sort(pairs)
  twice = ascending[1:][ascending[1:] == ascending[:-1]]
  if not len(twice):
    return
  repeated = np.isin(pairs, twice)
  for a, b in ((TRAIN, VALIDATION), (TRAIN, TEST), (VALIDATION, TEST)):
    shared = np.intersect1d(pairs[repeated & (parts == a)], pairs[repeated & (parts == b)])
    if len(shared):
      row = np.flatnonzero(pairs == shared[0])[0]
      example = f"user {log.user_ids[log.users[row]]!r}, item {log.item_ids[log.items[row]]!r}"
      raise InputError(f"`data`: {len(shared)} interactions are in {NAMES[a]} and {NAMES[b]}, e.g. {example}")


def _ranks(users, order):
  """The rank [N] of each row among its user's rows in `order`, and the number of rows of each user [U]."""
  low = max(0, len(users) - 1).bit_length()
  keys = np.empty(len(users), np.int64)  # the user, then the place in `order`: to sort numbers is faster than `argsort`
  for part in slices(len(users)):
    keys[part] = users[order[part]].astype(np.int64) << low | np.arange(part.start, part.stop)
  keys.sort()
  counts = np.bincount(users)
  kind = np.int32 if len(users) < 2**31 else np.int64
  ranks, starts = np.empty(len(users), kind), np.cumsum(counts) - counts
  for part in slices(len(users)):
    ranks[order[keys[part] & (1 << low) - 1]] = np.arange(part.start, part.stop) - starts[keys[part] >> low]
  return ranks, counts


def _floor(value):
  return np.floor(value + 1e-9).astype(np.int64)  # in floating point, (.7 + .1) * 10 is less than 8
