"""Metrics of the order of scores: are true labels scored above false ones?"""

from __future__ import annotations

import numpy as np

from kd_jax.base import LabelMetric


def auc() -> LabelMetric:
  """The area under the ROC curve: the share of (positive, negative) pairs in the right order; ties count 1/2.

  NaN if only one label occurs.
  """
  def one_group(labels):
    return np.zeros(len(labels), np.int64)

  return LabelMetric(lambda labels, scores, groups: float(
      _auc_of_groups(labels[:, 0], scores[:, 0], one_group(labels))[0][0]), on=("clicks",))


def group_auc() -> LabelMetric:
  """Mean AUC within groups (users) that have both labels, weighted by group size. Zhu et al., KDD 2017.

  NaN if there is no such group; None for data without users.
  """

  def value(labels, scores, groups):
    if groups is None:
      return None
    found, sizes = _auc_of_groups(labels[:, 0], scores[:, 0], np.unique(groups, return_inverse=True)[1])
    both = np.isfinite(found)
    return float((found[both] * sizes[both]).sum() / sizes[both].sum()) if both.any() else float("nan")

  return LabelMetric(value, on=("clicks",))


def map() -> LabelMetric:
  """Average precision, mean over the labels that occur; equal scores share one threshold.

  Average precision is the sum over thresholds of (recall - previous recall) * precision.
  """

  def value(labels, scores, groups):
    true = labels.sum(axis=0)
    return float(sum(_average_precision(labels[:, c], scores[:, c]) for c in np.flatnonzero(true))
                 / max((true > 0).sum(), 1))

  return LabelMetric(value, on=("tags",))


def _auc_of_groups(labels, scores, groups):
  """(AUC, size) of every group 0.., from the ranks of its positives; NaN if a label does not occur."""
  order = np.lexsort((scores, groups))
  labels, scores, groups = (x[order] for x in (labels.astype(np.float64), scores, groups))
  start = np.flatnonzero(np.concatenate([[True], groups[1:] != groups[:-1]]))
  tied = np.cumsum(np.concatenate([[True], (groups[1:] != groups[:-1]) | (scores[1:] != scores[:-1])])) - 1
  ranks = np.arange(len(groups)) - start[groups] + 1.0
  mean_rank = (np.bincount(tied, ranks) / np.bincount(tied))[tied]
  sizes, positives = np.bincount(groups), np.bincount(groups, labels)
  pairs = positives * (sizes - positives)
  wins = np.bincount(groups, labels * mean_rank) - positives * (positives + 1) / 2
  return np.where(pairs > 0, wins / np.maximum(pairs, 1), np.nan), sizes


def _average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
  """Sum over thresholds of (recall - previous recall) * precision, for labels [n] and scores [n]."""
  order = np.argsort(-scores, kind="stable")
  labels, scores = labels[order], scores[order]
  last = np.concatenate([scores[1:] != scores[:-1], [True]])  # the last of each group of equal scores
  hits, said = np.cumsum(labels)[last], np.arange(1, len(labels) + 1)[last]
  return float((np.diff(hits, prepend=0) * hits / said).sum() / hits[-1])
