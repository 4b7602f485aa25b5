"""How a split affects an evaluation: cold items, users missing from a split, rows that are not in time order."""

from __future__ import annotations

from typing import Any

import numpy as np

from kd_jax.data.recipe import TEST, TRAIN, VALIDATION, Log


def inspect_split(log: Log, parts: np.ndarray, rule: str) -> dict[str, Any]:
  """Counts and shares, as JSON values. Raises AssertionError if a temporal split trains on rows later than test."""
  train, validation, test = (parts == value for value in (TRAIN, VALIDATION, TEST))
  cold = np.bincount(log.items[train], minlength=len(log.item_ids))[log.items] == 0
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
      "users_sorted_by_item_id": None if rule == "given" else sorted_users(log),
  }
  report["warnings"] = _warnings(report, rule)
  if rule == "temporal" and train.any() and test.any():
    if log.timestamps[train].max() > log.timestamps[test].min():
      raise AssertionError("a temporal split put a test interaction before a train interaction")
    report["last_train_second"] = int(log.timestamps[train].max())
    report["first_test_second"] = int(log.timestamps[test].min())
  return report


def sorted_users(log: Log) -> float:
  """Of the users with at least three rows, the share whose rows are in ascending order of the source's item id."""
  if all(i.isascii() and i.isdecimal() and len(i) < 19 for i in log.item_ids):
    values = np.array([int(i) for i in log.item_ids], np.int64)
  else:
    values = np.argsort(np.argsort(np.array(log.item_ids), kind="stable"))
  order = np.argsort(log.users, kind="stable")
  users, values = log.users[order], values[log.items[order]]
  falls = (users[1:] == users[:-1]) & (values[1:] <= values[:-1])
  count = len(log.user_ids)
  unsorted = np.bincount(users[1:][falls], minlength=count) > 0
  counted = np.bincount(users, minlength=count) >= 3
  return _share(counted & ~unsorted, counted)


def describe(report: dict[str, Any]) -> str:
  """The audit as text to print."""
  lines = [
      f"{report['users']:,} users, {report['items']:,} items, "
      f"{report['train']:,}/{report['validation']:,}/{report['test']:,} interactions, "
      f"density {report['density']:.6f}",
      f"cold interactions (the item is never in train): {_percent(report, 'test')}, "
      f"{_percent(report, 'validation')}",
      f"users without train {report['users_without_train']:,}, without test "
      f"{report['users_without_test']:,}, with an entirely cold test set "
      f"{report['users_with_cold_test_only']:,}",
  ]
  if report["users_sorted_by_item_id"] is not None:  # a given split does not depend on the order of rows
    lines.append(f"users whose rows ascend by item id in the source: {report['users_sorted_by_item_id']:.1%}")
  return "\n".join(lines + [f"WARNING: {warning}" for warning in report["warnings"]])


def _percent(report, part):
  return f"{report[f'cold_{part}']:,} of {report[part]:,} in {part} = {report[f'cold_{part}_share']:.1%}"


def _share(part, whole):
  return float(part.sum() / max(1, whole.sum()))


def _warnings(report, rule):
  warnings = []
  if rule == "position" and report["users_sorted_by_item_id"] > 0.5:
    warnings.append(
        f"the rows of {report['users_sorted_by_item_id']:.1%} of users ascend by item id, so their order is "
        f"not time: a split by position tests on the highest ids, and {report['cold_test_share']:.1%} of "
        "test interactions are on items that training never sees")
  if report["users_without_train"]:
    warnings.append(f"{report['users_without_train']:,} users have no train interaction")
  return warnings
