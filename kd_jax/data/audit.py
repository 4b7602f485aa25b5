"""How a split affects an evaluation: cold items, users missing from a split, an order that is not time, dubious ids."""

from __future__ import annotations

from typing import Any

import numpy as np

from kd_jax.base import Dataset
from kd_jax.data import splits
from kd_jax.data.order import slices, stable
from kd_jax.data.recipe import TEST, TRAIN, VALIDATION, Log

SYNTHETIC = "SYNTHETIC data: generated, no result on it says anything about people"
_BY_TIME = ("temporal", "loo_last")  # split rules that read time stamps
_MOST = 0.5  # share of users above which an order counts as that of all of them
_SOME = 0.1  # share of rows or users above which a property is a warning
_COLD = 0.2  # the same for cold interactions
_MISSING = ("na", "n/a", "<na>", "#n/a", "nan", "null", "none", "nil", "undefined", "\\n", "-")  # in lower case
_SHOWN = 3  # examples in the report
_DAY = 86_400  # seconds
_MILLISECONDS = 10**11  # time stamps from here on: in seconds they are after the year 5138, in milliseconds after 1973


def inspect_split(log: Log, parts: np.ndarray, rule: str) -> dict[str, Any]:
  """Counts and shares, as JSON values. Raises AssertionError if a temporal split trains on rows later than test."""
  train, validation, test = (parts == value for value in (TRAIN, VALIDATION, TEST))
  cold = (np.bincount(log.items[train], minlength=len(log.item_ids)) == 0)[log.items]
  users = len(log.user_ids)
  rows = {name: np.bincount(log.users[mask], minlength=users)
          for name, mask in (("train", train), ("test", test), ("warm_test", test & ~cold))}
  report = {
      "users": users, "items": len(log.item_ids),
      "train": int(train.sum()), "validation": int(validation.sum()), "test": int(test.sum()),
      "density": len(parts) / max(1, users * len(log.item_ids)),
      "users_without_train": int((rows["train"] == 0).sum()),
      "users_without_test": int((rows["test"] == 0).sum()),
      "users_with_cold_test_only": int(((rows["test"] > 0) & (rows["warm_test"] == 0)).sum()),
      "cold_test": int((test & cold).sum()), "cold_test_share": _share(test & cold, test),
      "cold_validation": int((validation & cold).sum()),
      "cold_validation_share": _share(validation & cold, validation),
      "cold_test_items": int(np.count_nonzero(np.bincount(log.items[test & cold]))),
      "cold_validation_items": int(np.count_nonzero(np.bincount(log.items[validation & cold]))),
      "users_sorted_by_item_id": None if rule == "given" or log.unordered else sorted_users(log),
      "largest_user": _largest_user(log),
      "missing_ids": {"users": _missing(log.users, log.user_ids), "items": _missing(log.items, log.item_ids)},
      "similar_ids": {"users": similar(log.user_ids), "items": similar(log.item_ids)},
  }
  if log.timestamps is not None:
    report |= inspect_times(log, parts)
  if log.in_time:
    report["order_is_time"] = True
  if rule == "temporal" and train.any() and test.any():
    if log.timestamps[train].max() > log.timestamps[test].min():
      raise AssertionError("a temporal split put a test interaction before a train interaction")
    report["last_train_second"] = int(log.timestamps[train].max())
    report["first_test_second"] = int(log.timestamps[test].min())
  report["warnings"] = warnings(report, rule)
  return report


def inspect_times(log: Log, parts: np.ndarray) -> dict[str, Any]:
  """What the time stamps say of the order of a user's rows.

  A stamp is tied if the user has it twice. A user has one stamp if several rows have no other. A user's end is tied if
  the first row of validation or test has the time of the last row of the part before; shares are of users with test.
  """
  order, count = _in_time(log), len(log.user_ids)
  by_item = sorted_users(log, order)
  users, times = log.users[order], log.timestamps[order]
  del order
  same_user, same_time = users[1:] == users[:-1], times[1:] == times[:-1]
  tied = np.zeros(len(users), bool)
  tied[1:] = same_user & same_time
  tied[:-1] |= same_user & same_time
  several = np.bincount(users, minlength=count) > 1
  one = several & (np.bincount(users[1:][same_user & ~same_time], minlength=count) == 0)
  ends, tested = _tied_ends(log, parts), np.bincount(log.users[parts == TEST], minlength=count) > 0
  return {"tied_stamps": int(tied.sum()), "tied_stamps_share": float(tied.mean()),
          "users_with_one_stamp": int(one.sum()), "users_with_one_stamp_share": _share(one, several),
          "users_with_tied_end": int(ends.sum()), "users_with_tied_end_share": _share(ends, tested),
          "stamps_are_dates": _are_dates(times), "users_sorted_by_item_id_in_time": by_item,
          **inspect_units(times)}


def _in_time(log) -> np.ndarray:
  """The order [N] of the rows by user, then by time stamp, then by row."""
  first, last = (int(x) for x in (log.timestamps.min(initial=0), log.timestamps.max(initial=0)))
  if len(log.user_ids) * (last - first + 1) >= 2**63:
    return np.lexsort((log.timestamps, log.users))
  keys = np.multiply(log.users, last - first + 1, dtype=np.int64)
  keys += log.timestamps
  keys -= first
  return stable(keys)


def _tied_ends(log, parts) -> np.ndarray:
  """Mask [U] of the users with a tied end."""
  limits = np.iinfo(np.int64)
  first, last = (np.full((len(splits.NAMES), len(log.user_ids)), x, np.int64) for x in (limits.max, limits.min))
  for rows in slices(len(parts)):
    place = parts[rows], log.users[rows]
    np.minimum.at(first, place, log.timestamps[rows])
    np.maximum.at(last, place, log.timestamps[rows])
  before_test = np.where(last[VALIDATION] > limits.min, last[VALIDATION], last[TRAIN])
  return (first[VALIDATION] == last[TRAIN]) | (first[TEST] == before_test)


def inspect_units(timestamps: np.ndarray) -> dict[str, Any]:
  """The number and share of time stamps that are too large to be seconds."""
  finer = (timestamps >= _MILLISECONDS) | (timestamps <= -_MILLISECONDS)
  return {"not_seconds": int(finer.sum()), "not_seconds_share": float(finer.mean()) if len(finer) else 0.0}


def of_dataset(dataset: Dataset) -> dict[str, Any]:
  """The audit of interactions that were loaded with all splits; what their preparation did not count is counted now."""
  stored, rule = dataset.report["audit"], dataset.report["split"]["rule"]
  if "largest_user" in stored:
    return stored
  of = [getattr(dataset, name) for name in splits.NAMES]
  timestamps = None if dataset.train.timestamps is None else np.concatenate([part.timestamps for part in of])
  log = Log(np.concatenate([part.users for part in of]), np.concatenate([part.items for part in of]),
            dataset.user_ids.tolist(), dataset.item_ids.tolist(), timestamps=timestamps)
  parts = np.repeat(np.arange(len(of), dtype=np.int8), [len(part.users) for part in of])
  report = inspect_split(log, parts, rule) | stored
  return report | {"warnings": warnings(report, rule) + [SYNTHETIC] * dataset.synthetic}


def sorted_users(log: Log, order: np.ndarray | None = None) -> float:
  """Of the users with at least three rows, the share whose rows are in ascending order of the source's item id.

  `order` [N] sorts the rows by user; by default, the rows of a user are in the order of the source.
  """
  if all(i.isascii() and i.isdecimal() and len(i) < 19 for i in log.item_ids):
    values = np.array([int(i) for i in log.item_ids], np.int64)
  else:
    values = np.argsort(np.argsort(np.array(log.item_ids), kind="stable"))
  order = stable(log.users) if order is None else order
  _, ranks = np.unique(values, return_inverse=True)  # as int32, they need half of the memory
  users, values = log.users[order], ranks.astype(np.int32)[log.items[order]]
  falls = (users[1:] == users[:-1]) & (values[1:] <= values[:-1])
  count = len(log.user_ids)
  unsorted = np.bincount(users[1:][falls], minlength=count) > 0
  counted = np.bincount(users, minlength=count) >= 3
  return _share(counted & ~unsorted, counted)


def similar(ids: list[str]) -> dict[str, Any]:
  """`pairs`: the number of ids that differ from an earlier one only by case, surrounding spaces, leading zeros or a
  final ".0"; `first`: some of these pairs."""
  earlier: dict[str, str] = {}
  pairs = [[other, name] for name in ids if (other := earlier.setdefault(_form(name), name)) is not name]
  return {"pairs": len(pairs), "first": pairs[:_SHOWN]}


def _form(name: str) -> str:
  return name.strip().casefold().removesuffix(".0").lstrip("0") or "0"


def _missing(codes, ids) -> dict[str, int]:
  """{id: number of rows} of the ids that spell a missing value."""
  found = [code for code, name in enumerate(ids) if name.strip().casefold() in _MISSING]
  counts = np.bincount(codes, minlength=len(ids)) if found else ()
  return {ids[code]: int(counts[code]) for code in found}


def _largest_user(log) -> dict[str, Any]:
  counts = np.bincount(log.users, minlength=len(log.user_ids))
  most = int(counts.argmax())
  return {"id": log.user_ids[most], "interactions": int(counts[most]), "share": float(counts[most] / len(log.users))}


def _are_dates(times) -> bool:
  """Whether time stamps of several days have one time of day; or two, because of daylight saving time."""
  clock = times % _DAY
  same = bool(((clock == clock.min()) | (clock == clock.max())).all())
  return same and len(np.unique(times // _DAY)) > 2


def describe(report: dict[str, Any]) -> str:
  """The audit as text to print."""
  largest = report["largest_user"]
  lines = [
      f"{report['users']:,} users, {report['items']:,} items, "
      f"{report['train']:,}/{report['validation']:,}/{report['test']:,} interactions, "
      f"density {report['density']:.6f}",
      f"cold interactions (the item is never in train): {_percent(report, 'test')}, "
      f"{_percent(report, 'validation')}",
      f"users without train {report['users_without_train']:,}, without test "
      f"{report['users_without_test']:,}, with an entirely cold test set "
      f"{report['users_with_cold_test_only']:,}",
      f"the largest user, {largest['id']!r}, has {largest['interactions']:,} interactions = {largest['share']:.1%}",
  ]
  if report["users_sorted_by_item_id"] is not None:  # a given split does not depend on the order of rows
    lines.append(f"users whose rows ascend by item id in the source: {report['users_sorted_by_item_id']:.1%}")
  if report.get("order_is_time"):
    lines.append("there are no time stamps: the order of a user's rows in the source is taken for that of time")
  if "tied_stamps" in report:
    lines.append(f"time stamps that a user has twice: {report['tied_stamps']:,} = {report['tied_stamps_share']:.1%}; "
                 f"users with one time stamp for several interactions {report['users_with_one_stamp']:,} = "
                 f"{report['users_with_one_stamp_share']:.1%}")
  return "\n".join(lines + [f"WARNING: {warning}" for warning in report["warnings"]])


def _percent(report, part):
  return (f"{report[f'cold_{part}']:,} of {report[part]:,} in {part} = {report[f'cold_{part}_share']:.1%} "
          f"({report[f'cold_{part}_items']:,} items)")


def _share(part, whole):
  return float(part.sum() / max(1, whole.sum()))


def warnings(report: dict[str, Any], rule: str) -> list[str]:
  """What makes results on the data doubtful, one line each."""
  in_order = rule == "position" or report.get("order_is_time")
  of_order = _of_position(report, rule) if in_order else _of_time(report, rule) if rule in _BY_TIME else []
  found = [*of_order, *of_units(report), *_of_ids(report)]
  told = rule == "cold_items" or any("training never sees" in warning for warning in of_order)
  if report["cold_test_share"] > _COLD and not told:
    found.append(f"{report['cold_test_share']:.1%} of test interactions are on items that training never sees; a model "
                 "that knows items by their ids cannot rank them")
  largest = report["largest_user"]
  if largest["share"] > max(_SOME, 5 / report["users"]):
    found.append(f"user {largest['id']!r} has {largest['share']:.1%} of all interactions")
  if report["users_without_train"]:
    found.append(f"{report['users_without_train']:,} users have no train interaction")
  return found


def _of_position(report, rule) -> list[str]:
  if (report["users_sorted_by_item_id"] or 0) <= _MOST:
    return []
  return [f"the rows of {report['users_sorted_by_item_id']:.1%} of users ascend by item id, so their order is "
          f"not time: {'a split by position' if rule == 'position' else rule} tests on the highest ids, and "
          f"{report['cold_test_share']:.1%} of test interactions are on items that training never sees"]


def _of_time(report, rule) -> list[str]:
  found, by_item = [], report["users_sorted_by_item_id_in_time"]
  tied = f"{report['tied_stamps_share']:.1%} of interactions share their time stamp with another of the same user"
  if by_item > _MOST:
    found.append(f"by time, and with equal time stamps by row, the interactions of {by_item:.1%} of users ascend by "
                 f"item id, so their order is not time: {rule} tests on the highest ids, and "
                 f"{report['cold_test_share']:.1%} of test interactions are on items that training never sees")
  if report["users_with_one_stamp_share"] > _MOST:
    found.append(f"{report['users_with_one_stamp_share']:.1%} of users have one time stamp for all their interactions, "
                 f"so these have no order that {rule} could follow")
  elif report["stamps_are_dates"] and report["tied_stamps_share"] > _SOME:
    found.append(f"time stamps are dates without a time of day, and {tied}: these have no order that {rule} could "
                 "follow")
  elif rule == "loo_last" and report["users_with_tied_end_share"] > _SOME:
    found.append(f"of {report['users_with_tied_end_share']:.1%} of users, a held-out interaction has the same time "
                 "stamp as an earlier one, so it is not the last")
  return found


def of_units(report: dict[str, Any]) -> list[str]:
  """The warning of time stamps that are not seconds."""
  if not report.get("not_seconds"):
    return []
  share = report["not_seconds_share"]
  if share == 1:
    return ["time stamps are milliseconds or finer, not seconds"]
  return [f"{report['not_seconds']:,} time stamps ({share:.1%}) are milliseconds or finer, the others seconds: they "
          "give no common order"]


def _of_ids(report) -> list[str]:
  found = []
  for side in ("users", "items"):
    if missing := report["missing_ids"][side]:
      rows = ", ".join(f"{name!r} with {count:,}" for name, count in list(missing.items())[:_SHOWN])
      found.append(f"ids of {side} that spell a missing value: {len(missing):,}, {rows} interactions")
    if similar_ids := report["similar_ids"][side]["pairs"]:
      shown = ", ".join(f"{a!r} and {b!r}" for a, b in report["similar_ids"][side]["first"])
      found.append(f"pairs of ids of {side} that differ only by case, spaces, leading zeros or a final .0: "
                   f"{similar_ids:,}, such as {shown}")
  return found
