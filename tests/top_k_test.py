"""The k best: exact, in the one order, however good or bad the guess is."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import top_k

USERS, ITEMS = 7, 1211  # enough groups to look into, and a rest that is in no group


def best(scores, k):
  """By a stable sort."""
  return np.argsort(-scores, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("k", [1, 10, 60])
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.3, 100.0])
def test_a_guess_changes_no_result(k, noise):
  rng = np.random.default_rng(k)
  before = rng.normal(size=(USERS, ITEMS))
  now = (before + noise * rng.normal(size=before.shape)).astype(np.float32)
  ranked = jax.jit(top_k.top_k_near)(now, best(before, k))
  assert np.array_equal(ranked.items, best(now, k))
  assert np.array_equal(ranked.scores, np.take_along_axis(now, best(now, k), axis=1))


@pytest.mark.parametrize("levels", [1, 2, 5, 300])
def test_items_of_equal_score_ascend_whatever_the_guess(levels):
  rng = np.random.default_rng(levels)
  scores = rng.integers(0, levels, (USERS, ITEMS)).astype(np.float32) * np.array([[-1.0]] + [[1.0]] * (USERS - 1))
  guess = np.stack([rng.permutation(ITEMS)[:20] for _ in range(USERS)])
  for given in (guess, best(scores, 20), best(scores, 20)[:, ::-1]):
    near = top_k.top_k_near(jnp.asarray(scores, jnp.float32), jnp.asarray(given))
    assert np.array_equal(near.items, best(scores, 20))


def test_the_best_item_that_a_guess_misses_is_found_wherever_it_is():
  scores = np.tile(np.linspace(1, 0, ITEMS, dtype=np.float32), (ITEMS, 1))
  np.fill_diagonal(scores, 2)
  guess = np.tile(np.arange(5, 15), (ITEMS, 1))
  near = jax.jit(jax.vmap(lambda s, g: jax.tree.map(lambda x: x[0], top_k.top_k_near(s[None], g[None]))))
  assert np.array_equal(near(scores, guess).items, best(scores, 10))


def test_a_guess_of_a_row_with_too_few_items_is_no_item():
  scores = np.full((2, ITEMS), -np.inf, np.float32)
  scores[0, [3, 900]], scores[1] = [1.0, 2.0], np.arange(ITEMS)
  guess = np.array([[900, 3, -1, -1], [7, 8, 9, 10]])
  ranked = top_k.top_k_near(jnp.asarray(scores), jnp.asarray(guess))
  assert ranked.items.tolist() == [[900, 3, -1, -1], [1210, 1209, 1208, 1207]]
  assert ranked.scores[0].tolist() == [2.0, 1.0, -np.inf, -np.inf]


def test_without_equal_scores_nothing_is_ranked_as_if_there_were_no_guess(monkeypatch):
  scores = np.random.default_rng(0).normal(size=(USERS, ITEMS)).astype(np.float32)
  anew = lambda scores, k: top_k.Ranked(jnp.full((USERS, k), -7, jnp.int32), jnp.zeros((USERS, k)))
  monkeypatch.setattr(top_k, "top_k", anew)
  for guess in (best(scores, 30), best(-scores, 30)):
    assert np.array_equal(top_k.top_k_near(scores, guess).items, best(scores, 30))
  scores[0] = 1.0
  assert (np.asarray(top_k.top_k_near(scores, best(-scores, 30)).items) == -7).all()


def test_a_guess_changes_no_result_on_several_devices():
  """A program for several devices goes through passes of XLA that one for a single device does not meet."""
  code = """
import jax, numpy as np
from kd_jax import sharding, top_k
scores = np.random.default_rng(0).normal(size=(7, 1211)).astype(np.float32)
guess = np.tile(np.arange(60), (7, 1))
found = jax.jit(top_k.top_k_near)(*jax.device_put((scores, guess), sharding.over_mesh()))
np.testing.assert_array_equal(found.items, np.argsort(-scores, axis=1)[:, :60])
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"})
  assert done.returncode == 0, done.stderr[-2000:]
