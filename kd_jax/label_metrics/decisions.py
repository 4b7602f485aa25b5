"""Metrics of predicted labels: those with a probability above 1/2."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kd_jax.base import LabelMetric


def accuracy() -> LabelMetric:
  """The share of correct (context, label) pairs."""
  return LabelMetric(lambda labels, scores, groups: float(((scores > 0) == labels).mean()))


def subset_accuracy() -> LabelMetric:
  """The share of contexts with all labels correct."""
  return LabelMetric(lambda labels, scores, groups: float(((scores > 0) == labels).all(axis=1).mean()), on=("tags",))


def micro_precision() -> LabelMetric:
  """Correct / predicted labels, over all pairs; 0 if nothing is predicted."""
  return _metric(_precision, over_pairs=True)


def micro_recall() -> LabelMetric:
  """Correctly predicted / true labels, over all pairs; 0 if nothing is true."""
  return _metric(_recall, over_pairs=True)


def micro_f1() -> LabelMetric:
  """2 correctly predicted / (predicted + true), over all pairs; 0 if both are 0."""
  return _metric(_f1, over_pairs=True)


def macro_precision() -> LabelMetric:
  """The mean over labels of each label's precision."""
  return _metric(_precision, over_pairs=False)


def macro_recall() -> LabelMetric:
  """The mean over labels of each label's recall."""
  return _metric(_recall, over_pairs=False)


def macro_f1() -> LabelMetric:
  """The mean over labels of each label's F1."""
  return _metric(_f1, over_pairs=False)


def _metric(share: Callable, over_pairs: bool) -> LabelMetric:

  def value(labels, scores, groups):
    predicted = scores > 0
    counts = (predicted & labels).sum(axis=0), predicted.sum(axis=0), labels.sum(axis=0)
    return float(np.mean(share(*(x.sum() if over_pairs else x for x in counts))))

  return LabelMetric(value, on=("tags",))


def _precision(hits, predicted, true):
  return _share(hits, predicted)


def _recall(hits, predicted, true):
  return _share(hits, true)


def _f1(hits, predicted, true):
  return _share(2 * hits, predicted + true)


def _share(part, whole):
  return np.where(whole > 0, part / np.maximum(whole, 1), 0.0)
