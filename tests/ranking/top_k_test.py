"""The k best: exact and in the one order, by XLA and on the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.ranking import top_k

USERS, ITEMS = 7, 1211
PRIORITY = np.random.default_rng(99).permutation(ITEMS).astype(np.int32)


def best(scores, k):
  """By a sort with two keys."""
  return np.lexsort((np.broadcast_to(PRIORITY, scores.shape), -scores), axis=1)[:, :k]


by_xla = jax.jit(top_k.top_k, static_argnames="k")


def both_ways(scores, k):
  on_host = top_k.top_k_of_places(np.asarray(jax.jit(top_k.places)(scores)), PRIORITY, k)
  return jax.tree.map(np.asarray, by_xla(jnp.asarray(scores), PRIORITY, k=k)), on_host


@pytest.mark.parametrize("k", [1, 10, 60, ITEMS - 1, ITEMS, 2 * ITEMS])
def test_the_k_best_and_their_scores(k):
  scores = np.random.default_rng(k).normal(size=(USERS, ITEMS)).astype(np.float32)
  for ranked in both_ways(scores, k):
    assert ranked.items.dtype == np.int32 and np.array_equal(ranked.items, best(scores, k))
    assert np.array_equal(ranked.scores, np.take_along_axis(scores, best(scores, k), axis=1))


@pytest.mark.parametrize("levels", [1, 2, 5, 300, 20_000])
def test_items_of_equal_score_are_in_the_order_of_their_priority(levels):
  rng = np.random.default_rng(levels)
  scores = rng.integers(0, levels, (USERS, ITEMS)).astype(np.float32) * np.array([[-1.0]] + [[1.0]] * (USERS - 1))
  for k in (20, ITEMS):
    for ranked in both_ways(scores.astype(np.float32), k):  # zeros of both signs are equal
      assert np.array_equal(ranked.items, best(scores, k))
      assert np.array_equal(ranked.scores, np.take_along_axis(scores, best(scores, k), axis=1))


@pytest.mark.parametrize("tied", [(0, 1), (3, 4, 5), (8, 9), (9, 10), (9, 10, 11, 12), (10, 11)])
def test_ties_inside_a_list_at_its_end_and_behind_it(tied):
  """The list has 10 items; rows are the same scores in several orders."""
  rng = np.random.default_rng(0)
  scores = np.sort(rng.normal(size=ITEMS).astype(np.float32))[::-1]
  scores[list(tied)] = scores[tied[0]]
  scores = np.stack([rng.permutation(scores) for _ in range(USERS)])
  for ranked in both_ways(scores, 10):
    assert np.array_equal(ranked.items, best(scores, 10))


def test_a_row_with_too_few_items_ends_in_no_item():
  scores = np.full((1, ITEMS), -np.inf, np.float32)
  scores[0, [3, 900]] = [1.0, 2.0]
  for ranked in both_ways(scores, 4):
    assert ranked.items.tolist() == [[900, 3, -1, -1]] and ranked.scores.tolist() == [[2.0, 1.0, -np.inf, -np.inf]]


@pytest.mark.parametrize("bits", [0x7FC00000, -0x400000])  # of both signs
def test_what_is_not_a_number_comes_first_so_that_it_is_seen(bits):
  scores = np.zeros((1, ITEMS), np.float32)
  scores[0, :2], scores[0, 5] = np.inf, np.array(bits, np.int32).view(np.float32)
  for ranked in both_ways(scores, 2):
    first = 0 if PRIORITY[0] < PRIORITY[1] else 1
    assert np.isnan(ranked.scores[0, 0]) and ranked.items[0].tolist() == [5, first]


def test_scores_of_every_size_keep_their_bits():
  scores = np.full((1, ITEMS), -np.inf, np.float32)
  scores[0, :8] = [0.0, 2e-38, -2e-38, 3e38, -3e38, np.inf, 1.0, -1.0]
  for ranked in both_ways(scores, 8):
    assert ranked.scores.tolist() == [sorted(scores[0, :8].tolist(), reverse=True)]
