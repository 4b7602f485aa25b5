"""The batches of an epoch: every interaction once, users and items counted, a function of seed and epoch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_test import assert_frequencies

from kd_jax.base import Interactions
from kd_jax.data import index
from kd_jax.training import batches


@pytest.fixture(scope="module")
def log():
  rng = np.random.default_rng(0)
  return Interactions(*(rng.integers(0, n, size=1003).astype(np.int32) for n in (300, 90)))


@pytest.mark.parametrize("kd_per", ["interaction", "user"])
@pytest.mark.parametrize("batch_size", [64, 1003, 5000, 1])
def test_a_plan_covers_every_interaction_once_and_counts_users_and_items(log, batch_size, kd_per):
  plan = batches.plan(3, 7, log, batch_size, kd_per)
  steps = -(-1003 // batch_size)
  assert plan["rows"].shape == plan["weight"].shape == (steps, batch_size)
  real = plan["weight"] > 0
  assert sorted(plan["rows"][real].tolist()) == list(range(1003)) and set(plan["weight"][real]) == {1.0}
  assert real[:-1].all()
  for side, column in (("kd_users", log.users), ("kd_items", log.items)):
    for rows, mask, found, weight in zip(plan["rows"], real, plan[side], plan[f"{side}_weight"], strict=True):
      inside = column[rows[mask]].tolist()
      counts = {x: inside.count(x) if kd_per == "interaction" else 1 for x in inside}
      kept = weight > 0
      assert dict(zip(found[kept].tolist(), weight[kept].tolist(), strict=True)) == counts
      assert kept.sum() == len(counts)


def test_a_plan_is_a_function_of_seed_and_epoch(log):
  def rows(seed, epoch):
    return batches.plan(seed, epoch, log, 64, "interaction")["rows"]

  assert np.array_equal(rows(0, 1), rows(0, 1))
  for other in (rows(0, 2), rows(1, 1), rows(1, 0)):
    assert not np.array_equal(rows(0, 1), other)
  assert not np.array_equal(rows(0, 1).reshape(-1)[:1003], np.arange(1003))


def test_indices_out_of_range_are_refused(make_dataset):
  train_log = make_dataset(num_users=4, num_items=10, train=3, validation=1, test=0).train
  for users, items in ((3, 10), (4, 9)):
    with pytest.raises(ValueError, match="index"):
      if train_log.items.max() < 9:
        train_log.items[0] = 9
      batches.to_device(train_log, users, items)


def test_drawn_batches_hold_the_planned_rows(make_dataset):
  dataset = make_dataset(num_users=20, num_items=30, train=6, seed=2)
  seen = jax.tree.map(jnp.asarray, index.seen_of(dataset.train.users, dataset.train.items, 20, 30))
  users, items = batches.to_device(dataset.train, 20, 30)
  plan = batches.plan(0, 1, dataset.train, 16, "interaction")
  batch = batches.draw(jax.random.key(0), plan, users, items, seen, negatives=2, num_items=30)
  assert np.array_equal(batch["users"], dataset.train.users[plan["rows"]])
  assert np.array_equal(batch["items"][..., 0], dataset.train.items[plan["rows"]])
  assert batch["items"].shape == (*plan["rows"].shape, 3)
  assert all(np.array_equal(batch[k], plan[k]) for k in plan if k != "rows")


@pytest.mark.parametrize("kd_per", ["interaction", "user"])
def test_items_as_entities_are_weighed_by_places_or_once(make_dataset, kd_per):
  dataset = make_dataset(num_users=20, num_items=15, train=6, seed=2)
  seen = jax.tree.map(jnp.asarray, index.seen_of(dataset.train.users, dataset.train.items, 20, 15))
  plan = batches.plan(0, 1, dataset.train, 16, kd_per)
  batch = batches.draw(jax.random.key(0), plan, *batches.to_device(dataset.train, 20, 15), seen, negatives=2,
                       num_items=15, kd_per=kd_per)
  for items, places, weight in zip(*(np.asarray(batch[k]) for k in ("items", "items_weight", "weight")), strict=True):
    real = np.repeat(weight[:, None] > 0, 3, axis=1)
    assert not places[~real].any()
    totals = np.bincount(items[real], weights=places[real], minlength=15)
    counts = np.bincount(items[real], minlength=15)
    assert np.array_equal(totals, counts if kd_per == "interaction" else counts > 0)


def test_negatives_from_a_pool_are_uniform_over_its_unseen_items():
  """Items 0, 3, 8 and 11 are in no training interaction; each user has seen three of the others."""
  pool = np.array([1, 2, 4, 5, 6, 7, 9, 10], np.int32)
  users, items = np.repeat(np.arange(4, dtype=np.int32), 3), pool[[0, 1, 2, 5, 6, 7, 1, 3, 5, 0, 4, 7]]
  seen = jax.tree.map(jnp.asarray, index.seen_of(users, items, 4, 12))
  plan = batches.plan(0, 1, Interactions(users, items), 12, "interaction")
  drawn = batches.draw(jax.random.key(0), plan, jnp.asarray(users), jnp.asarray(items), seen, jnp.asarray(pool),
                       negatives=3000, num_items=12)
  for user in range(4):
    found = np.asarray(drawn["items"])[np.asarray(drawn["users"]) == user, 1:]
    absent = np.setdiff1d(pool, items[users == user])
    assert np.isin(found, absent).all() and np.isin(drawn["items"][..., 0], items).all()
    assert_frequencies(np.bincount(found.reshape(-1), minlength=12)[absent], np.full(len(absent), 1 / len(absent)))


def test_a_share_of_the_interactions_is_the_same_in_every_epoch():
  train = Interactions(np.repeat(np.arange(20, dtype=np.int32), 5), np.arange(100, dtype=np.int32))
  chosen = batches.choose(3, 100, 0.3)
  assert len(chosen) == 30 and (np.diff(chosen) > 0).all() and not np.array_equal(chosen, batches.choose(4, 100, 0.3))
  for epoch in (1, 2):
    found = batches.plan(3, epoch, train, 8, "interaction", chosen=chosen)
    assert sorted(found["rows"][found["weight"] > 0].tolist()) == chosen.tolist()
    assert found["kd_users_weight"].sum() == 30
  assert len(batches.choose(0, 5, 0.01)) == 1
