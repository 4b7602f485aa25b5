"""Labelled data. Contexts are split, not interactions; every label of a context that is not positive is 0."""

from __future__ import annotations

from typing import Any

import numpy as np

from kd_jax.base import Dataset, Features, InputError
from kd_jax.data import audit, cleaning, splits
from kd_jax.data.recipe import TEST, TRAIN, VALIDATION, Log, Recipe

RULES = ("random", "temporal", "given")
_SOME = 0.1  # share of contexts with unknown values of a field, above which it is a warning


def process(recipe: Recipe, log: Log) -> tuple[Log, np.ndarray, dict[str, Any]]:
  """Splits, checks and audits. Returns the log with the parts of its contexts, parts [N] int8, and the report."""
  if not log.user_ids:
    raise InputError("`data`: there are no contexts")
  kept = cleaning.take(log, cleaning.first_of_pairs(log))
  cleaned = {"rows": len(log.user_ids) + len(log.bad_rows) + log.missing, "bad_rows": len(log.bad_rows),
             **({"missing_rows": log.missing} if log.missing else {}),
             "first_bad_rows": list(log.bad_rows[:cleaning.SHOWN]), "duplicates": len(log.users) - len(kept.users),
             "interactions": len(kept.users)}
  if len(kept.users) in (0, len(log.user_ids) * len(log.item_ids)):
    value = int(len(kept.users) > 0)
    raise InputError(f"`data`: every label of all {len(log.user_ids):,} contexts is {value}: there is nothing to "
                     "learn; are `labels` the right columns, and `positive` the right rule?")
  parts = split(recipe, kept)
  for value, name in enumerate(splits.NAMES):
    if not (parts == value).any() and name not in recipe.may_be_empty:
      raise InputError(f"`data`: the {name} split is empty ({len(parts):,} contexts in all)")
  rule = {"rule": recipe.split, "ratios": list(recipe.ratios), "seed": recipe.split_seed}
  rule |= {"folds": recipe.folds, "fold": recipe.fold} if recipe.folds else {}
  kept = kept._replace(contexts=kept.contexts._replace(parts=parts), user_features=filled(kept.user_features, parts))
  return kept, parts[kept.users], {"cleaning": cleaned, "split": rule, "audit": inspect(kept)}


def filled(features: Features | None, parts: np.ndarray) -> Features | None:
  """The features with the mean over training in the place of missing numbers, which are NaN; 0 if all are missing."""
  if features is None or not any(np.isnan(x).any() for x in features.vectors.values()):
    return features
  vectors = {}
  for name, values in features.vectors.items():
    known = values[(parts == TRAIN) & ~np.isnan(values[:, 0])]
    mean = known.astype(np.float64).mean() if len(known) else 0.0
    vectors[name] = np.where(np.isnan(values), np.float32(mean), values)
  return features._replace(vectors=vectors)


def split(recipe: Recipe, log: Log) -> np.ndarray:
  """Parts [U] int8 of the contexts. Raises InputError.

  random: by ratios, in random order; with `folds`, the fold-th part of that order is test, and a share
  ratios[1] of the rest is validation. temporal: by two points in time. given: by the source.
  """
  rule, count, times = recipe.split, len(log.user_ids), log.contexts.timestamps
  if rule not in RULES:
    raise InputError(f"`data`: split={rule!r}: choose from {', '.join(RULES)} for labelled data")
  if recipe.folds and (rule != "random" or not 0 <= recipe.fold < recipe.folds or recipe.folds < 2):
    raise InputError(f"`data`: folds={recipe.folds}, fold={recipe.fold}: a random split, at least 2 folds and "
                     "0 <= fold < folds")
  if rule == "temporal" and times is None:
    raise InputError("`data`: split='temporal' needs time stamps, and there are none")
  if rule == "given":
    if log.contexts.parts is None:
      raise InputError("`data`: split='given' needs a source that says which part each row is in")
    return log.contexts.parts
  if rule == "temporal":
    return splits.by_time(times, recipe.ratios)
  order = np.random.default_rng(recipe.split_seed).permutation(count)
  if not recipe.folds:
    return splits.by_ratio(np.zeros(count, np.int64), order, recipe.ratios)
  bounds = np.arange(recipe.folds + 1) * count // recipe.folds
  parts = np.full(count, TRAIN, np.int8)
  test = order[bounds[recipe.fold] : bounds[recipe.fold + 1]]
  rest = np.concatenate([order[: bounds[recipe.fold]], order[bounds[recipe.fold + 1] :]])
  parts[test] = TEST
  parts[rest[: round(recipe.ratios[1] * len(rest))]] = VALIDATION
  return parts


def inspect(log: Log) -> dict[str, Any]:
  """Counts and shares, as JSON values."""
  parts = log.contexts.parts
  positive = np.bincount(log.items[parts[log.users] == TRAIN], minlength=len(log.item_ids))
  train = int((parts == TRAIN).sum())
  report = {"contexts": len(parts), "labels": len(log.item_ids), "warnings": [],
            **{name: int((parts == value).sum()) for value, name in enumerate(splits.NAMES)},
            "positive_share": float(positive.sum() / max(1, train * len(positive))),
            "rarest_label": int(positive.min()), "most_frequent_label": int(positive.max()),
            "unknown_values": unknown_values(log.user_features, {name: np.flatnonzero(parts == value)
                                                                 for value, name in enumerate(splits.NAMES)})}
  if report["rarest_label"] == 0:
    report["warnings"].append(f"{int((positive == 0).sum())} labels are never positive in train")
  report["warnings"] += _of_unknown(report["unknown_values"])
  positives = np.bincount(parts[log.users], minlength=len(splits.NAMES))
  report["warnings"] += [f"{name} has no positive label: auc, group_auc and map have no value there"
                         for name, count in zip(splits.NAMES, positives.tolist(), strict=True) if not count]
  if log.contexts.timestamps is not None:
    report |= audit.inspect_units(log.contexts.timestamps)
    report["warnings"] += audit.of_units(report)
    report["last_train_second"] = int(log.contexts.timestamps[parts == TRAIN].max())
    report["first_test_second"] = int(log.contexts.timestamps[parts == TEST].min(initial=np.iinfo(np.int64).max))
  return report


def unknown_values(features: Features | None, contexts: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
  """{field: counts and shares of the validation and test contexts whose value of the field is never in train}.

  `contexts` are the indices of the contexts of each split. Fields without such values are left out.
  """
  found: dict[str, dict[str, Any]] = {}
  for place, (field, size) in enumerate(zip(features.fields, features.sizes, strict=True) if features else ()):
    codes = {name: features.categories[rows, place] for name, rows in contexts.items()}
    known = np.bincount(codes["train"], minlength=size) > 0
    unknown = {name: ~known[codes[name]] for name in splits.NAMES[1:]}
    values = len(np.unique(np.concatenate([codes[name][mask] for name, mask in unknown.items()])))
    if values:
      found[field] = {"values": values} | {name: int(mask.sum()) for name, mask in unknown.items()} | {
          f"{name}_share": float(mask.mean()) if len(mask) else 0.0 for name, mask in unknown.items()}
  return found


def _of_unknown(found) -> list[str]:
  return [f"field {field!r}: {x['values']:,} values are never in train, in {x['test_share']:.1%} of test contexts"
          for field, x in found.items() if max(x["validation_share"], x["test_share"]) > _SOME]


def of_dataset(dataset: Dataset) -> dict[str, Any]:
  """The audit of labelled data that was loaded with all splits; what its preparation did not count is counted now."""
  stored = dataset.report["audit"]
  if "unknown_values" in stored or dataset.contexts is None:
    return stored
  found = unknown_values(dataset.user_features, dataset.contexts)
  return stored | {"unknown_values": found, "warnings": stored["warnings"] + _of_unknown(found)}


def describe(report: dict[str, Any]) -> str:
  """The audit as text to print."""
  lines = [f"{report['contexts']:,} contexts, {report['labels']:,} labels, "
           f"{report['train']:,}/{report['validation']:,}/{report['test']:,} contexts in train/validation/test",
           f"positive labels in train: {report['positive_share']:.1%} of all; the rarest label has "
           f"{report['rarest_label']:,}, the most frequent {report['most_frequent_label']:,}"]
  if unknown := report["unknown_values"]:
    shares = ", ".join(f"{field} {x['validation_share']:.1%} and {x['test_share']:.1%} ({x['values']:,} values)"
                       for field, x in unknown.items())
    lines.append(f"values that are never in train, in validation and test: {shares}")
  return "\n".join(lines + [f"WARNING: {warning}" for warning in report["warnings"]])
