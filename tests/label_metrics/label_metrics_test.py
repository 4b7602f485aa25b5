"""Metrics of labelled data against scikit-learn, and definitions that it has not, by loops."""

import numpy as np
import pytest
from sklearn import metrics as sklearn

from kd_jax import label_metrics
from kd_jax.evaluation import metric_names
from kd_jax.metrics import transfer


def of_kind(kind, labels, scores, groups=None):
  """{name: value} of all metrics of a kind of labelled data that have one, of labels and scores [n, C]."""
  found = {name: metric.value(labels, scores, groups) for name, metric in metric_names.of_kind(kind).items()}
  return {name: value for name, value in found.items() if value is not None}


def drawn(n, c, seed=0, rounded=1):
  """Labels, and scores with ties that know something of them."""
  rng = np.random.default_rng(seed)
  labels = rng.random((n, c)) < np.linspace(0.1, 0.6, c)
  return labels, np.round(rng.normal(size=(n, c)) + labels - 0.7, rounded)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def error_by_bins(labels, p, bins=15):
  total = 0.0
  for low in np.arange(bins) / bins:
    inside = (p >= low) & ((p < low + 1 / bins) | (low + 1 / bins > 1 - 1e-9))
    if inside.any():
      total += inside.sum() / p.size * abs(labels[inside].mean() - p[inside].mean())
  return total


@pytest.mark.parametrize(("n", "c"), [(300, 10), (40, 3), (7, 2)])
def test_metrics_of_tags_are_those_of_scikit_learn(n, c):
  labels, scores = drawn(n, c)
  found, predicted = of_kind("tags", labels, scores), scores > 0
  expected = {"subset_accuracy": sklearn.accuracy_score(labels, predicted),
              "accuracy": 1 - sklearn.hamming_loss(labels, predicted),
              "map": sklearn.average_precision_score(labels, scores, average="macro"),
              "log_loss": sklearn.log_loss(labels.ravel(), sigmoid(scores.ravel())),
              "calibration_error": error_by_bins(labels.ravel(), sigmoid(scores.ravel()))}
  for kind in ("micro", "macro"):
    values = sklearn.precision_recall_fscore_support(labels, predicted, average=kind, zero_division=0)
    expected |= {f"{kind}_{name}": v for name, v in zip(("precision", "recall", "f1"), values, strict=False)}
  assert set(found) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-9, err_msg=name)


def test_a_label_without_positives_counts_nothing_in_map_and_zero_in_recall():
  labels, scores = drawn(50, 3)
  labels[:, 0] = False
  found = of_kind("tags", labels, scores)
  np.testing.assert_allclose(found["map"], sklearn.average_precision_score(labels[:, 1:], scores[:, 1:]), rtol=1e-9)
  np.testing.assert_allclose(found["macro_recall"], sklearn.recall_score(
      labels, scores > 0, average="macro", zero_division=0), rtol=1e-9)


@pytest.mark.parametrize("rounded", [0, 8])
def test_metrics_of_clicks_are_those_of_scikit_learn(rounded):
  labels, scores = (x[:, 0] for x in drawn(500, 1, rounded=rounded))
  users = np.random.default_rng(1).integers(40, size=500) * 3
  labels[users == 0] = True  # a user without negatives
  found, p = of_kind("clicks", labels[:, None], scores[:, None], users), sigmoid(scores)
  assert set(found) == {"auc", "group_auc", "log_loss", "accuracy", "calibration", "calibration_error"}
  assert found["auc"] == pytest.approx(sklearn.roc_auc_score(labels, scores), rel=1e-9)
  assert found["log_loss"] == pytest.approx(sklearn.log_loss(labels, p), rel=1e-9)
  assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(labels, scores > 0))
  assert found["calibration"] == pytest.approx(p.mean() / labels.mean())
  assert found["calibration_error"] == pytest.approx(error_by_bins(labels, p))
  own = [(sklearn.roc_auc_score(labels[users == u], scores[users == u]), (users == u).sum()) for u in np.unique(users)
         if 0 < labels[users == u].mean() < 1]
  assert len(own) < len(np.unique(users))
  assert found["group_auc"] == pytest.approx(sum(a * n for a, n in own) / sum(n for _, n in own), rel=1e-9)
  assert "group_auc" not in of_kind("clicks", labels[:, None], scores[:, None])


def test_without_both_labels_there_is_no_auc():
  assert np.isnan(label_metrics.auc().value(np.ones((5, 1), bool), np.arange(5.0)[:, None], None))
  assert np.isnan(label_metrics.group_auc().value(np.array([[True], [False]]), np.arange(2.0)[:, None], np.arange(2)))


def test_large_scores_have_a_finite_log_loss():
  found = of_kind("clicks", np.array([[True], [False]]), np.array([[-1000.0], [1000.0]]))
  assert found["log_loss"] == 1000 and found["calibration"] == pytest.approx(1)


def test_relative_improvement():
  assert transfer.relative_improvement(0.8, 0.7) == pytest.approx(0.5)
  assert transfer.relative_improvement(0.8, 0.5) is None
