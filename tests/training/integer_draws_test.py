"""Draws among more candidates than float32 can count, against integer arithmetic of Python; small draws as recorded."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_test import assert_frequencies

from kd_jax.base import InputError, Interactions
from kd_jax.data import index
from kd_jax.ranking import rank
from kd_jax.teachers import loading
from kd_jax.training import batches

LARGE = 20_000_000
MOST = 2**31 - 1
ALL = 2**18  # a bound of candidates above which integers draw


def recorded_unseen(rng, excluded, users, n, num_items):
  """The draw of the recorded results, in float32."""
  absent = index.num_absent(excluded, users, num_items)[:, None]
  stretch = jnp.arange(n) + jax.random.uniform(rng, (users.shape[0], 1))
  place = jnp.minimum((stretch * absent / n).astype(jnp.int32), absent - 1)
  return index.nth_absent(excluded, jnp.broadcast_to(users[:, None], place.shape), place)


def recorded_seen(rng, seen, users, n):
  """The draw of the recorded results, in float32."""
  start = seen.starts[users][:, None]
  present = seen.starts[users + 1][:, None] - start
  drawn = jnp.minimum(present, n)
  stretch = jnp.arange(n) + jax.random.uniform(rng, (users.shape[0], 1))
  place = jnp.minimum((stretch * present / jnp.maximum(drawn, 1)).astype(jnp.int32), present - 1)
  return jnp.where(jnp.arange(n) < drawn, seen.items[start + place], -1)


@pytest.mark.parametrize("num_items", [60, 16_980, 2**17])
def test_draws_among_few_candidates_are_those_of_the_recorded_results(num_items):
  rng, users = np.random.default_rng(num_items), jnp.arange(400)
  sizes = rng.integers(0, 50, size=400)
  items = np.concatenate([rng.choice(num_items, size, replace=False) for size in sizes]).astype(np.int32)
  seen = jax.tree.map(jnp.asarray, index.seen_of(np.repeat(np.arange(400), sizes), items, 400, num_items))
  keys = jax.random.split(jax.random.key(0), 20)
  for n in (3, 40):
    def draws(key, n=n):
      return (index.draw_unseen(key, seen, users, n, num_items), recorded_unseen(key, seen, users, n, num_items),
              index.draw_seen(key, seen, users, n), recorded_seen(key, seen, users, n))

    enough = num_items - sizes >= n
    unseen, recorded, training, recorded_training = (np.asarray(x) for x in jax.jit(jax.vmap(draws))(keys))
    np.testing.assert_array_equal(unseen[:, enough], recorded[:, enough])
    np.testing.assert_array_equal(training, recorded_training)
  bound = jnp.asarray(num_items - sizes)
  np.testing.assert_array_equal(index.draw_below(keys[0], (9, 400), bound, num_items),
                                jax.random.randint(keys[0], (9, 400), 0, bound))


@pytest.mark.parametrize("bound", [1, 3, LARGE, 2**30 + 1, MOST])
def test_integers_are_sixty_four_bits_modulo_the_bound(bound):
  key = jax.random.key(bound)
  high, low = np.asarray(jax.random.bits(key, (2, 5, 7), jnp.uint32)).tolist()
  found = np.asarray(index.draw_below(key, (5, 7), jnp.int32(bound), MOST)).tolist()
  both = zip(np.ravel(high).tolist(), np.ravel(low).tolist(), strict=True)
  assert np.ravel(found).tolist() == [(a * 2**32 + b) % bound for a, b in both]


def test_integers_below_bounds_of_their_own():
  bound = jnp.array([0, 1, 2, 5])
  found = np.asarray(index.draw_below(jax.random.key(0), (4000, 4), bound, MOST))
  assert not found[:, :2].any()
  for column in (2, 3):
    assert_frequencies(np.bincount(found[:, column]), np.full(bound[column], 1 / bound[column]))


def places(monkeypatch, sizes, turns, n):
  """The places of a systematic sample of every size, with these turns of the circle."""
  monkeypatch.setattr(index, "draw_below", lambda *_: jnp.asarray(turns)[:, None])
  return np.asarray(index._systematic(None, jnp.asarray(sizes)[:, None], n, ALL))


@pytest.mark.parametrize(("size", "n"), [(1, 1), (7, 3), (12, 4), (100, 7), (33, 32), (40, 1)])
def test_over_all_turns_every_place_is_drawn_equally_often(monkeypatch, size, n):
  found = places(monkeypatch, np.full(size, size), np.arange(size), n)
  assert (np.diff(found, axis=1) > 0).all(), "not ascending, or a place twice"
  assert collections.Counter(found.ravel().tolist()) == dict.fromkeys(range(size), n)


def test_places_among_few_are_all_of_them(monkeypatch):
  assert places(monkeypatch, [0, 2, 3], [0, 1, 2], 3).tolist() == [[-1, -1, -1], [0, 1, -1], [0, 1, 2]]


@pytest.mark.parametrize("n", [1, 100, 99_991])
@pytest.mark.parametrize("size", [LARGE, 2**30 + 12_345, MOST])
def test_places_do_not_overflow(monkeypatch, size, n):
  turns = [0, 1, size // 3, size - 1]
  starts = [i * (size // n) + min(i, size % n) for i in range(n)]
  expected = [sorted((start + turn) % size for start in starts) for turn in turns]
  assert places(monkeypatch, [size] * 4, turns, n).tolist() == expected


@pytest.fixture(scope="module")
def large():
  """(the items of three users among 20 million, their index); the third user has none."""
  rng = np.random.default_rng(0)
  own = [np.arange(0, LARGE, 7), rng.choice(LARGE, 1000, replace=False), np.zeros(0, np.int64)]
  users = np.repeat(np.arange(3), list(map(len, own)))
  return own, jax.tree.map(jnp.asarray, index.seen_of(users, np.concatenate(own), 3, LARGE))


@pytest.mark.parametrize("n", [1, 50])
def test_every_one_of_twenty_million_items_can_be_drawn(large, n):
  own, seen = large
  users = jnp.repeat(jnp.arange(3), 20_000)
  found = np.asarray(index.draw_unseen(jax.random.key(n), seen, users, n, LARGE)).reshape(3, 20_000, n)
  for items, drawn in zip(own, found, strict=True):
    assert (np.diff(drawn, axis=1) > 0).all() and 0 <= drawn.min() and drawn.max() < LARGE
    assert not np.isin(drawn, items).any()
    one = drawn[np.arange(20_000), np.random.default_rng(0).integers(n, size=20_000)]  # independent between rows
    high = one[one >= 2**24]
    odd, total = np.count_nonzero(high % 2), len(high)
    assert abs(odd - total / 2) < 4 * np.sqrt(total) / 2, "above 2^24, every second number is no float32"
    assert_frequencies(np.bincount(one * 40 // LARGE, minlength=40), np.full(40, 1 / 40))


def test_negatives_are_drawn_from_twenty_million_items(large):
  own, seen = large
  train = Interactions(np.repeat(np.arange(2, dtype=np.int32), 3), np.concatenate([x[:3] for x in own[:2]]))
  plan = batches.plan(0, 1, train, 6, "interaction")
  drawn = batches.draw(jax.random.key(0), plan, jnp.asarray(train.users), jnp.asarray(train.items), seen,
                       negatives=4000, num_items=LARGE)
  assert np.asarray(drawn["weight"]).all()
  for user, items in enumerate(own[:2]):
    negatives = np.asarray(drawn["items"])[np.asarray(drawn["users"]) == user][:, 1:].ravel()
    assert not np.isin(negatives, items).any()
    assert_frequencies(np.bincount(negatives * 40 // LARGE, minlength=40), np.full(40, 1 / 40))
    assert abs(np.mean(negatives % 2) - 0.5) < 0.03


def test_training_items_of_a_long_row_can_all_be_drawn(large):
  """The first user has 2.9 million, every seventh item."""
  own, seen = large
  found = np.asarray(index.draw_seen(jax.random.key(0), seen, jnp.zeros(20_000, jnp.int32), 5)) // 7
  assert (np.diff(found, axis=1) > 0).all() and 0 <= found.min() and found.max() < len(own[0])
  assert_frequencies(np.bincount(found.ravel() * 40 // len(own[0]), minlength=40), np.full(40, 1 / 40))
  assert np.array_equal(index.draw_seen(jax.random.key(0), seen, jnp.array([2]), 2), [[-1, -1]])


class Behind:
  """Items whose places count from `first`: a row behind two billion interactions that need no memory."""

  def __init__(self, items, first):
    self.items, self.first = jnp.asarray(items), first

  def __getitem__(self, place):
    return self.items[jnp.clip(place - self.first, 0, len(self.items) - 1)]


@pytest.mark.parametrize("first", [2**30 - 3, 2**30 + 5, MOST - 11])
def test_the_nth_absent_item_is_found_behind_a_billion_interactions(first):
  own = np.array([0, 1, 4, 5, 6, 9, 12, 13, 14, 20, 29])
  blocks = index.Blocks(np.zeros((1, 1)), np.zeros((1, 11)), np.zeros((1, 11)))
  seen = index.Seen(jnp.array([first, first + 11]), Behind(own, first), blocks)
  absent = np.setdiff1d(np.arange(30), own)
  assert np.array_equal(index.nth_absent(seen, jnp.zeros(19, jnp.int32), jnp.arange(19)), absent)
  drawn = np.asarray(index.draw_seen(jax.random.key(0), seen, jnp.zeros(3000, jnp.int32), 1)).ravel()
  assert_frequencies(np.bincount(drawn, minlength=30)[own], np.full(11, 1 / 11))


def test_more_interactions_than_int32_can_count_are_refused():
  many = np.broadcast_to(np.int32(0), 2**31)  # takes no memory
  log = Interactions(many, many)
  for call in (lambda: index.seen_of(many, many, 1, 1), lambda: batches.plan(0, 1, log, 8, "user")):
    with pytest.raises(InputError, match=r"`data`: 2,147,483,648 interactions; at most 2,147,483,647"):
      call()


def test_ranks_are_counted_in_integers_where_floats_cannot(make_dataset, monkeypatch):
  """With more than 2^24 items; here the bound is lowered."""
  dataset = make_dataset(num_users=5, num_items=40, train=6)
  variables = {"params": {k: jnp.asarray(np.random.default_rng(n).normal(size=(n, 6)), jnp.float32)
                          for k, n in (("user", 5), ("item", 40))}, "constants": {}}
  held, where = rank.held_out(dataset.test, [dataset.train], np.arange(40, dtype=np.int32))
  held = jax.tree.map(jnp.asarray, held)
  monkeypatch.setattr(rank, "_MOST_FLOAT", 39)
  lines = np.asarray(rank.network_ranks(loading.build_model("mf(dim=6)", dataset), variables, held))
  scores = np.array(variables["params"]["user"] @ variables["params"]["item"].T)
  own = scores[dataset.test.users, dataset.test.items].copy()
  scores[dataset.train.users, dataset.train.items] = -np.inf
  assert np.array_equal(lines[where[:, 0], where[:, 1]], (scores[dataset.test.users] > own[:, None]).sum(axis=1))
