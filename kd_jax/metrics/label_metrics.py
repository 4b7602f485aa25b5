"""Metrics of labelled data from true labels and scores (logits). NumPy, float64.

A label is predicted where its probability sigmoid(score) is above 1/2. Of many labels (tags), [n, C]:

  subset_accuracy     share of contexts with every label right
  accuracy            share of (context, label) pairs that are right
  micro_precision, micro_recall, micro_f1   over all pairs; 0 where nothing is predicted, or true
  macro_precision, macro_recall, macro_f1   means over labels of each label's own; as above
  map                 mean over labels of average precision, ties above each other counted as one threshold
  log_loss            mean over pairs of -log p(the true label)
  calibration_error   expected calibration error: 15 bins of p of equal width, mean |mean label - mean p|
                      weighted by size (Guo et al., ICML 2017)

Of one label (clicks), [n, 1]:

  auc                 share of (positive, negative) pairs in the right order, ties count 1/2
  group_auc           mean AUC within groups (users) that have both, weighted by size (Zhu et al., KDD 2017)
  log_loss, calibration_error, accuracy as above
  calibration         sum of p over sum of labels; 1 is right (He et al., ADKDD 2014)
"""

from __future__ import annotations

import numpy as np

TAGS = ("map", "subset_accuracy", "accuracy", "micro_precision", "micro_recall", "micro_f1", "macro_precision",
        "macro_recall", "macro_f1", "log_loss", "calibration_error")
CLICKS = ("auc", "group_auc", "log_loss", "calibration", "calibration_error", "accuracy")
LOWER_IS_BETTER = ("log_loss", "calibration_error")
_BINS = 15


def of_tags(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
  """{name: value} for every one of `TAGS`, from labels [n, C] bool and scores [n, C]."""
  predicted = scores > 0
  right = predicted == labels
  hits, said, true = ((predicted & labels).sum(axis=0), predicted.sum(axis=0), labels.sum(axis=0))
  return {
      "map": float(sum(average_precision(labels[:, c], scores[:, c]) for c in np.flatnonzero(true))
                   / max((true > 0).sum(), 1)),
      "subset_accuracy": float(right.all(axis=1).mean()), "accuracy": float(right.mean()),
      **_precision_recall_f1("micro", hits.sum(), said.sum(), true.sum()),
      **_precision_recall_f1("macro", hits, said, true), **_calibrated(labels, scores)}


def of_clicks(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray | None) -> dict[str, float]:
  """{name: value} for every one of `CLICKS`, from labels [n] bool, scores [n] and groups [n]."""
  found = {"auc": auc(labels, scores)} | ({} if groups is None else {"group_auc": group_auc(labels, scores, groups)})
  found |= _calibrated(labels, scores) | {"accuracy": float(((scores > 0) == labels).mean())}
  return found | {"calibration": float(_sigmoid(scores).sum() / max(labels.sum(), 1))}


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
  """The area under the ROC curve; NaN unless both labels are there."""
  return float(_auc_of_groups(labels, scores, np.zeros(len(labels), np.int64))[0][0])


def group_auc(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> float:
  """Mean AUC of groups with both labels, weighted by their sizes."""
  found, sizes = _auc_of_groups(labels, scores, np.unique(groups, return_inverse=True)[1])
  both = np.isfinite(found)
  return float((found[both] * sizes[both]).sum() / sizes[both].sum()) if both.any() else float("nan")


def _auc_of_groups(labels, scores, groups):
  """(AUC, size) of every group 0.., by the ranks of its positives; NaN where a label is missing."""
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


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
  """sum over thresholds of (recall - recall before) * precision, of labels [n] and scores [n]."""
  order = np.argsort(-scores, kind="stable")
  labels, scores = labels[order], scores[order]
  last = np.concatenate([scores[1:] != scores[:-1], [True]])  # of those with one score
  hits, said = np.cumsum(labels)[last], np.arange(1, len(labels) + 1)[last]
  return float((np.diff(hits, prepend=0) * hits / said).sum() / hits[-1])


def relative_improvement(auc: float, base: float) -> float:
  """RelaImpr: (auc - 1/2) / (base's AUC - 1/2) - 1. Zhou et al., KDD 2018, sec. 6.2."""
  return (auc - 0.5) / (base - 0.5) - 1 if base != 0.5 else float("nan")


def _precision_recall_f1(kind, hits, said, true) -> dict[str, float]:
  share = lambda a, b: np.where(b > 0, a / np.maximum(b, 1), 0.0)
  values = {"precision": share(hits, said), "recall": share(hits, true), "f1": share(2 * hits, said + true)}
  return {f"{kind}_{name}": float(np.mean(value)) for name, value in values.items()}


def _calibrated(labels, scores) -> dict[str, float]:
  """Log loss and expected calibration error."""
  labels, scores = labels.astype(np.float64).ravel(), scores.astype(np.float64).ravel()
  p = _sigmoid(scores)
  bins = np.minimum((p * _BINS).astype(np.int64), _BINS - 1)
  gaps = np.bincount(bins, labels, _BINS) - np.bincount(bins, p, _BINS)
  return {"log_loss": float(np.mean(np.logaddexp(0, scores) - labels * scores)),
          "calibration_error": float(np.abs(gaps).sum() / len(p))}


def _sigmoid(scores):
  return np.exp(-np.logaddexp(0, -scores.astype(np.float64)))
