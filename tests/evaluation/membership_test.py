"""Membership inference: rates against scikit-learn and loops; attacks on models that memorise, or know nothing."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import build_labelled
from sklearn import metrics

from kd_jax.base import InputError, Outputs
from kd_jax.evaluation import membership

pytestmark = pytest.mark.short


class Fixed(nn.Module):
  """Scores that are given."""

  inner_product = False
  table: tuple

  def tables(self):
    return None

  def __call__(self, batch, tables=None):
    return Outputs(jnp.asarray(np.array(self.table))[batch["users"]]).of(batch.get("items"))


def attack(scores, dataset):
  return membership.measure(Fixed(tuple(map(tuple, scores.tolist()))), {}, dataset, "test")


@pytest.fixture(scope="module")
def data(make_dataset):
  return make_dataset(num_users=80, num_items=60, train=12, test=6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("decimals", [8, 1, 0])  # with few decimals, many numbers are equal
def test_rates_are_those_of_scikit_learn(seed, decimals):
  rng = np.random.default_rng(seed)
  members = rng.random(900) < 0.6
  signal = np.round(rng.normal(size=900) + members, decimals)
  found = membership.judge(signal, membership.Pairs(rng.integers(30, size=900), np.zeros(900, int), members))
  assert found["auc"] == pytest.approx(metrics.roc_auc_score(members, signal), abs=1e-12)
  false, true, _ = metrics.roc_curve(members, signal, drop_intermediate=False)
  assert found["tpr"] == pytest.approx(true[false <= 0.01].max(), abs=1e-12)
  for rate in ("auc", "tpr"):
    low, high = found[f"{rate}_interval"]
    assert low <= found[rate] <= high


def test_intervals_hold_the_truth_as_often_as_they_say():
  """Of 100 samples of an attack with a known AUC, at least 88 intervals hold it."""
  truth, held = 0.76025, 0  # Phi(1 / sqrt 2)
  for seed in range(100):
    rng = np.random.default_rng(seed)
    members, users = np.arange(600) % 2 == 0, np.arange(600) // 6
    found = membership.judge(rng.normal(size=600) + members, membership.Pairs(users, users, members))
    low, high = found["auc_interval"]
    held += low <= truth <= high
  assert 88 <= held


def test_random_scores_say_nothing_of_members(data):
  found = attack(np.random.default_rng(7).normal(size=(80, 60)), data)
  for name in ("scores", "labels"):
    assert found[name]["auc"] == pytest.approx(0.5, abs=0.06)
    assert found[name]["auc_interval"][0] < 0.5 < found[name]["auc_interval"][1]


def test_a_model_that_memorises_tells_who_is_a_member(data):
  scores = np.random.default_rng(7).normal(size=(80, 60))
  scores[data.train.users, data.train.items] += 4
  found = attack(scores, data)
  assert found["scores"]["auc"] > 0.95 and found["scores"]["tpr"] > 0.5
  assert found["labels"]["auc"] > 0.95


def test_what_a_list_lacks_tells_who_is_a_member(data):
  """The same random scores: nothing is memorised, but a whole list without training items shows what they are."""
  found = attack(np.random.default_rng(7).normal(size=(80, 60)), data)
  assert found["masked_labels"]["auc"] > 0.99 and found["masked_labels"]["tpr"] > 0.99  # 500 places, and 60 items
  popular = np.tile(-np.arange(60.0), (80, 1)) + np.random.default_rng(1).normal(size=(80, 60))
  assert attack(popular, data)["answers"]["auc"] > 0.55  # of the first items, those that are missing


def test_signals_are_those_of_loops():
  scores = np.random.default_rng(2).normal(size=(5, 7))
  by_user = np.array([(row - row.mean()) / row.std() for row in scores])
  expected = np.array([(column - column.mean()) / column.std() for column in by_user.T]).T
  np.testing.assert_allclose(membership.calibrated(scores), expected)
  assert np.array_equal(membership.calibrated(np.ones((3, 4))), np.zeros((3, 4)))
  listed = np.array([[True, True, False], [True, False, False], [False, True, False]])
  expected = [[-1, -1, 0], [-1, 2 / 3, 0], [2 / 3, -1, 0]]
  np.testing.assert_allclose(membership.missing(listed), expected)


def test_pairs_are_of_users_with_both_kinds(data):
  without = data._replace(test=type(data.test)(*(x[data.test.users != 3] for x in data.test[:2])))
  scores = np.random.default_rng(7).normal(size=(80, 60))
  scores[3, data.train.items[data.train.users == 3]] += 1000  # nobody asks for these
  assert attack(scores, without)["scores"]["auc"] < 0.6


def test_data_without_pairs_has_no_value(data):
  nothing = data._replace(test=type(data.test)(*(x[:0] for x in data.test[:2])))
  with pytest.raises(InputError, match="`attack`: no user has"):
    attack(np.zeros((80, 60)), nothing)


def test_labelled_data_is_refused():
  with pytest.raises(InputError, match="`attack`: only for interactions in memory"):
    membership.measure(None, {}, build_labelled(), "test")
