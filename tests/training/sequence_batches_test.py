"""Batches of sequences: every item after a user's first once an epoch, in stretches that end where histories do."""

import itertools

import jax
import numpy as np
import pytest

from kd_jax.base import InputError, Interactions
from kd_jax.training import batches, sequence_batches


@pytest.fixture(scope="module")
def log():
  """300 users with 1 to 40 interactions at random times, in random order."""
  rng = np.random.default_rng(0)
  users = rng.permutation(np.repeat(np.arange(300), rng.integers(1, 41, size=300)))
  items, times = rng.integers(0, 90, size=len(users)), rng.integers(0, 10**6, size=len(users))
  return Interactions(users.astype(np.int32), items.astype(np.int32), None, times)


@pytest.fixture(scope="module", params=[1, 7, 16, 64])
def packing(request, log):
  return sequence_batches.pack(log, request.param)


def examples(plan, length):
  """[(row, column, interaction, position, place)] of the real examples."""
  real = np.argwhere(plan["weight"].reshape(-1, length) > 0)
  fields = [plan[k].reshape(-1, length) for k in ("rows", "position", "place")]
  return [(r, c, *(int(f[r, c]) for f in fields)) for r, c in real]


def test_every_item_but_a_users_first_is_predicted_once(log, packing):
  plan = sequence_batches.plan(0, 1, log, packing, 128, "interaction")
  found = [e[2] for e in examples(plan, packing.length)]
  order = np.lexsort((log.timestamps, log.users))
  first = order[np.searchsorted(log.users[order], np.unique(log.users))]
  assert sorted(found) == sorted(set(range(len(log.users))) - set(first.tolist()))


def test_stretches_are_histories_from_their_end(log, packing):
  length = packing.length
  plan = sequence_batches.plan(0, 1, log, packing, 128, "interaction")
  history = {u: [i for i in np.lexsort((log.timestamps, log.users)) if log.users[i] == u] for u in range(300)}
  rows = {}
  for row, column, interaction, position, place in examples(plan, length):
    user = log.users[interaction]
    assert history[user][position] == interaction
    assert place == length - 1 - (len(history[user]) - 1 - position) % length, "stretches are counted from the end"
    rows.setdefault(row, []).append((column, user, position, place))
  for found in rows.values():
    assert [c for c, *_ in found] == list(range(len(found))), "padding is at the end of a row"
    for (_, a, p, x), (_, b, q, y) in itertools.pairwise(found):
      assert (q, y) == (p + 1, x + 1) if a == b else x == length - 1
    assert found[-1][-1] == length - 1
    changes = 1 + sum(a[1] != b[1] for a, b in itertools.pairwise(found))
    assert changes == len({user for _, user, *_ in found}), "a user is in a row once"


def test_rows_are_nearly_full_and_as_many_in_every_epoch(log):
  packing = sequence_batches.pack(log, 16)
  shapes = {sequence_batches.plan(0, e, log, packing, 128, "user")["weight"].shape for e in range(3)}
  assert shapes == {(-(-packing.num_rows // 8), 128)}
  assert packing.sizes.sum() > 0.95 * packing.num_rows * 16


def test_a_plan_is_a_function_of_seed_and_epoch_and_mixes_users(log, packing):
  def plan(seed, epoch):
    return sequence_batches.plan(seed, epoch, log, packing, 128, "interaction")["rows"]

  assert np.array_equal(plan(0, 1), plan(0, 1))
  assert not np.array_equal(plan(0, 1), plan(0, 2)) and not np.array_equal(plan(0, 1), plan(1, 1))
  if packing.length == 16:
    def beside(rows):
      return {x for x in (frozenset(log.users[r].tolist()) for r in rows.reshape(-1, 16)) if len(x) > 2}

    assert len(beside(plan(0, 1)) & beside(plan(0, 2))) < 0.1 * len(beside(plan(0, 1)))


def test_drawn_sequences_have_users_items_and_unseen_negatives(log):
  from kd_jax.data import index

  packing = sequence_batches.pack(log, 8)
  plan = sequence_batches.plan(0, 1, log, packing, 64, "interaction")
  seen = jax.tree.map(np.asarray, index.seen_of(log.users, log.items, 300, 90))
  batch = batches.draw(jax.random.key(0), plan, *batches.to_device(log, 300, 90), seen, negatives=2, num_items=90)
  known = set(zip(log.users.tolist(), log.items.tolist(), strict=True))
  assert np.array_equal(batch["position"], plan["position"]) and np.array_equal(batch["place"], plan["place"])
  assert np.array_equal(batch["users"], log.users[plan["rows"]])
  for user, items in zip(np.ravel(batch["users"]), np.reshape(batch["items"], (-1, 3)), strict=True):
    assert [(int(user), int(i)) in known for i in items] == [True, False, False]


def test_batches_too_small_for_a_sequence_are_refused(flags, small):
  from kd_jax.runs import setup

  with pytest.raises(InputError, match="`batch_size=49`: holds 0 sequences of 50"):
    setup.prepare(flags(*small, "--model=sasrec()", "--batch_size=49", "--workdir=x"))
  with pytest.raises(InputError, match="`peer`"):
    setup.prepare(flags(*small, "--model=sasrec(length=5)", "--peer=sasrec(length=6)", "--kd=kl()", "--workdir=x"))


@pytest.mark.parametrize("peer", ["sasrec(dim=4, length=5)", "mf(dim=4)"])
def test_peers_share_batches(flags, small, peer):
  from kd_jax.runs import setup

  ready = setup.prepare(flags(*small, "--model=sasrec(dim=8, length=5)", f"--peer={peer}", "--kd=kl()", "--workdir=x"))
  assert ready.planner(ready.dataset)(1)["place"].shape[1] == 255


def test_one_interaction_each_is_nothing_to_learn_from():
  with pytest.raises(InputError, match="two training interactions"):
    sequence_batches.pack(Interactions(np.arange(3), np.arange(3)), 5)
