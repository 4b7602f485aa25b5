"""Metrics of the probabilities sigmoid(score)."""

from __future__ import annotations

import numpy as np

from kd_jax.base import LabelMetric

_BINS = 15


def log_loss() -> LabelMetric:
  """The mean over (context, label) pairs of -log p(the true label)."""

  def value(labels, scores, groups):
    labels, scores = labels.astype(np.float64).ravel(), scores.astype(np.float64).ravel()
    return float(np.mean(np.logaddexp(0, scores) - labels * scores))

  return LabelMetric(value, higher_is_better=False)


def calibration_error() -> LabelMetric:
  """Expected calibration error: 15 bins of equal width in p, mean of |mean label - mean p| weighted by bin size.

  Guo et al., ICML 2017, https://arxiv.org/abs/1706.04599.
  """

  def value(labels, scores, groups):
    labels, p = labels.astype(np.float64).ravel(), _sigmoid(scores.ravel())
    bins = np.minimum((p * _BINS).astype(np.int64), _BINS - 1)
    gaps = np.bincount(bins, labels, _BINS) - np.bincount(bins, p, _BINS)
    return float(np.abs(gaps).sum() / len(p))

  return LabelMetric(value, higher_is_better=False)


def calibration() -> LabelMetric:
  """The sum of p divided by the sum of labels; 1 is perfect. He et al., ADKDD 2014."""
  return LabelMetric(lambda labels, scores, groups: float(_sigmoid(scores).sum() / max(labels.sum(), 1)),
                     on=("clicks",), best=1.0)


def _sigmoid(scores):
  return np.exp(-np.logaddexp(0, -scores.astype(np.float64)))
