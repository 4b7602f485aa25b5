"""The private SVD: its accountant against the library and a formula, its sensitivities by brute force, its noise."""

import itertools
import math
import sys

import numpy as np
import pytest
import scipy.sparse
from scipy import stats

from kd_jax import registry
from kd_jax.base import InputError
from kd_jax.models import _accounting
from kd_jax.models.private_svd import co_occurrences, directions, vectors_of_users
from kd_jax.teachers import loading

dp_accounting = pytest.importorskip("dp_accounting")
pytestmark = pytest.mark.short
EPSILONS = [1.0, 4.0, 16.0, 64.0]  # of the table privacy_ml100k


def test_the_noise_is_that_of_the_librarys_own_example():
  """dp_accounting, pld_privacy_accountant_test.py, test_gaussian_basic: three times noise sqrt(3) is (1, .126936)."""
  assert _accounting.noise_multiplier(1.0, 0.126936, 3) == pytest.approx(math.sqrt(3), abs=1e-5)
  assert _accounting.spent([math.sqrt(3)] * 3, 0.126936) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_what_is_spent_is_what_the_library_counts_for_two_releases(epsilon):
  noise = _accounting.noise_multiplier(epsilon, 1e-5, 2)
  assert _accounting.spent([noise, noise], 1e-5) == pytest.approx(epsilon, rel=1e-6)
  event = dp_accounting.ComposedDpEvent([dp_accounting.GaussianDpEvent(noise)] * 2)
  upper = dp_accounting.rdp.RdpAccountant().compose(event).get_epsilon(1e-5)
  assert epsilon < upper < 1.1 * epsilon  # Renyi accounting is an upper bound
  if epsilon < 10:  # seconds for more
    assert dp_accounting.pld.PLDAccountant().compose(event).get_epsilon(1e-5) == pytest.approx(epsilon, rel=1e-6)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("delta", [1e-7, 1e-2])
def test_the_noise_has_the_delta_of_balle_and_wang(epsilon, delta):
  """Theorem 8: delta = Phi(1 / (2 s) - epsilon s) - exp(epsilon) Phi(-1 / (2 s) - epsilon s)."""
  s = _accounting.noise_multiplier(epsilon, delta)
  second = math.exp(epsilon + stats.norm.logcdf(-1 / (2 * s) - epsilon * s))
  assert stats.norm.cdf(1 / (2 * s) - epsilon * s) - second == pytest.approx(delta, rel=1e-5)


@pytest.mark.parametrize(("arguments", "message"), [
    ("epsilon=0", r"epsilon=0 is not in \(0, 1000000\]"), ("epsilon=-1.0", "epsilon=-1.0 is not in"),
    ("delta=0.0", r"delta=0.0 is not in \(0, 1\)"), ("delta=1.0", "delta=1.0 is not in"),
    ("cap=0", "cap=0 is not in"), ("dim=0", "dim=0 is not in")])
def test_wrong_arguments_have_one_line(arguments, message, make_dataset):
  with pytest.raises(InputError, match=message):
    loading.build_model(f"private_svd({arguments})", make_dataset())


def test_without_the_library_one_line_says_what_to_install(monkeypatch, make_dataset):
  module = loading.build_model("private_svd()", make_dataset())  # a run is read without it
  monkeypatch.setitem(sys.modules, "dp_accounting", None)
  with pytest.raises(InputError, match=r"pip install 'kd_jax\[privacy\]'"):
    module.fit(make_dataset())
  with pytest.raises(InputError, match="`epsilon`"):
    module.privacy()


class Nothing:
  """A generator without noise."""

  def normal(self, mean, std, size):
    return np.zeros(size)


def rows(*several):
  return scipy.sparse.csr_array(np.array(several, float))


@pytest.mark.parametrize("cap", [1, 2, 3, 5, 9])
def test_one_interaction_moves_co_occurrences_by_no_more_than_the_sensitivity(cap):
  """All histories of 7 items, every interaction more: the upper triangle, as it has the noise."""
  moved = []
  for history in itertools.product([0, 1], repeat=7):
    before = np.triu(co_occurrences(rows(history), cap, 1.0, Nothing()))
    for item in np.flatnonzero(np.array(history) == 0):
      more = np.array(history)
      more[item] = 1
      moved.append(np.linalg.norm(np.triu(co_occurrences(rows(more), cap, 1.0, Nothing())) - before))
  assert max(moved) <= 1 / math.sqrt(cap) + 1e-12
  assert max(moved) == pytest.approx(1 / math.sqrt(cap)) or cap > 7  # and it is reached: no noise is wasted


def test_one_interaction_moves_one_vector_by_no_more_than_the_sensitivity():
  """The noise is that of the longest item: brute force over histories, and the noise of many users."""
  item = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 3)))[0]
  longest = np.linalg.norm(item, axis=1).max()
  for history in itertools.product([0, 1], repeat=6):
    for other in range(6):
      more = np.array(history)
      more[other] = 1
      assert np.linalg.norm(more @ item - np.array(history) @ item) <= longest + 1e-12
  users = 40_000
  noisy = vectors_of_users(rows(*np.eye(6)[np.zeros(users, int)] * 100), item, 2.0, np.random.default_rng(1))
  # Of vectors that are all the same and long, nearly nothing is shrunk along them, and nearly all across.
  along = noisy @ (item[0] / np.linalg.norm(item[0]))
  assert along.mean() == pytest.approx(100 * np.linalg.norm(item[0]), rel=0.01)
  assert along.std() == pytest.approx(2 * longest, rel=0.02)


def test_co_occurrences_have_noise_of_the_documented_size():
  seen = scipy.sparse.csr_array((5, 300))
  found = co_occurrences(seen, 4, 3.0, np.random.default_rng(0))
  np.testing.assert_array_equal(found, found.T)
  upper = found[np.triu_indices(300)]
  assert upper.std() == pytest.approx(3.0 / 2, rel=0.02) and abs(upper.mean()) < 0.03


def test_without_noise_it_is_a_truncated_svd_of_weighted_rows():
  rng = np.random.default_rng(3)
  seen = (rng.random((30, 12)) < 0.4).astype(float)
  weights = 1 / np.sqrt(np.maximum(seen.sum(axis=1), 4))
  expected = np.linalg.svd(weights[:, None] * seen)[2][:3].T
  sparse = scipy.sparse.csr_array(seen)
  item = directions(co_occurrences(sparse, 4, 0.0, Nothing()), 3)
  np.testing.assert_allclose(item @ item.T, expected @ expected.T, atol=1e-9)
  np.testing.assert_allclose(vectors_of_users(sparse, item, 0.0, Nothing()), seen @ item, atol=1e-9)


def test_interactions_that_occur_twice_count_once(make_dataset):
  data = make_dataset(num_users=30, num_items=20, train=6)
  twice = data._replace(train=type(data.train)(*(np.tile(x, 2) for x in data.train[:2])))
  made = [loading.build_model("private_svd(dim=4, epsilon=100000.0)", data).fit(each) for each in (data, twice)]
  scores = [params["user"] @ params["item"].T for params in made]
  np.testing.assert_allclose(*scores, atol=0.1)


def test_help_names_it():
  assert "private_svd" in registry.names("models")
