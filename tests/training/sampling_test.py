"""Draws have the stated distributions, checked by chi-square and exact enumeration; seeds are fixed."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import bpr
from scipy import stats

from kd_jax import registry
from kd_jax.base import KD, STUDENT, TEACHER, InputError, Interactions, Lists, Ranked, View
from kd_jax.data import index
from kd_jax.losses import _lists
from kd_jax.losses.bd import bd
from kd_jax.losses.rcekd import rcekd
from kd_jax.losses.rrd import rrd
from kd_jax.ranking import rank
from kd_jax.training import batches, graph, kd_targets

LEAST_P = 1e-3  # of a test that is right; seeds are fixed, so that it passes always or never


def assert_frequencies(counts, probabilities):
  expected = np.asarray(probabilities) * np.sum(counts)
  assert expected.min() > 5
  assert stats.chisquare(counts, expected).pvalue > LEAST_P


def ordered_draws(weights, n):
  """{indices in order: probability} of n draws without replacement with p ~ weights, by enumeration."""
  found = {}
  for order in itertools.permutations(range(len(weights)), n):
    left, probability = sum(weights), 1.0
    for i in order:
      probability *= weights[i] / left
      left -= weights[i]
    found[order] = probability
  return found


def make_view(teacher=None, student=None, unseen=None):
  return View(**dict.fromkeys(View._fields) | {"user": jnp.int32(0), "teacher": teacher, "student": student,
                                               "unseen": unseen})


def draws(sample, view, n, seed=0):
  """`n` draws of a method's sampler for one user."""
  return jax.tree.map(np.asarray, jax.vmap(lambda key: sample(key, view))(jax.random.split(jax.random.key(seed), n)))


def test_draws_without_replacement_are_sequential():
  weights = [5.0, 3.0, 1.0, 0.5]
  keys = jax.random.split(jax.random.key(0), 20_000)
  found = np.asarray(jax.vmap(lambda k: _lists.draw_without_replacement(k, jnp.log(jnp.array(weights)), 3))(keys))
  exact = ordered_draws(weights, 3)
  counts = [(found == order).all(axis=1).sum() for order in exact]
  assert sum(counts) == len(found)
  assert_frequencies(counts, list(exact.values()))


DEPTH, TEACHERS_ITEMS = 8, np.array([40, 7, 31, 2, 25, 18, 3, 11])


def rrd_view():
  return make_view(Ranked(jnp.asarray(TEACHERS_ITEMS), jnp.arange(DEPTH)[::-1] * 1.0), None, jnp.array([50, 51]))


def test_rrd_draws_interesting_items_by_exp_of_minus_rank():
  items = draws(rrd(k=3, uninteresting=2, temperature=3.0, depth=DEPTH).sample, rrd_view(), 20_000)["items"]
  ranks = np.searchsorted(np.sort(TEACHERS_ITEMS), items[:, :3])
  ranks = np.argsort(TEACHERS_ITEMS)[ranks]  # rank of each item in the teacher's list
  exact = ordered_draws([math.exp(-rank / 3.0) for rank in range(1, DEPTH + 1)], 3)
  sets = {}
  for order, probability in exact.items():
    sets[tuple(sorted(order))] = sets.get(tuple(sorted(order)), 0.0) + probability
  counts = np.array([(ranks == chosen).all(axis=1).sum() for chosen in sets])  # sorted by rank, as drawn
  assert counts.sum() == len(items), "not sorted back by the teacher's rank, or an item twice"
  likely = np.array(list(sets.values())) * len(items) > 10
  rest = np.append(counts[likely], counts[~likely].sum())
  probabilities = np.array(list(sets.values()))
  assert_frequencies(rest, np.append(probabilities[likely], probabilities[~likely].sum()))


def test_rrd_puts_unseen_items_after_the_interesting_ones():
  items = draws(rrd(k=3, uninteresting=2, temperature=3.0, depth=DEPTH).sample, rrd_view(), 10)["items"]
  assert (items[:, 3:] == [50, 51]).all()
  assert np.isin(items[:, :3], TEACHERS_ITEMS).all()


def test_first_draw_of_rrds_defaults_is_from_five_hundred():
  """k=1 makes the only draw the first: its exact frequencies over all ranks."""
  teacher = Ranked(jnp.arange(500), -jnp.arange(500.0))
  found = draws(rrd(k=1, uninteresting=1).sample, make_view(teacher, None, jnp.array([600])), 20_000)
  probabilities = np.exp(-np.arange(1, 501) / 10.0)
  probabilities /= probabilities.sum()
  counts = np.bincount(found["items"][:, 0], minlength=500)
  assert_frequencies(np.append(counts[:50], counts[50:].sum()),
                     np.append(probabilities[:50], probabilities[50:].sum()))


def test_rcekd_draws_by_the_number_of_teacher_items_at_or_below():
  listed, teacher = np.array([9, 4, 17, 2, 30, 21]), np.array([2, 99, 4])
  view = make_view(Ranked(jnp.asarray(teacher), jnp.zeros(3)), Ranked(jnp.asarray(listed), jnp.zeros(6)))
  kd = rcekd(k=3, sampled=2, depth=6, sampling_temperature=1.5)
  found = draws(kd.sample, view, 20_000)
  below = [sum(listed[j] in teacher for j in range(i, 6)) for i in range(6)]
  assert below == [2, 2, 1, 1, 0, 0]
  exact = ordered_draws([math.exp((c + 1) / 1.5) for c in below], 2)
  drawn = found["items"][:, 3:5]
  counts = [((drawn == listed[list(order)]).all(axis=1)).sum() for order in exact]
  assert sum(counts) == len(drawn)
  assert_frequencies(counts, list(exact.values()))
  assert (found["items"][:, :3] == listed[:3]).all() and (found["items"][:, 5:] == teacher).all()


def test_rcekds_count_is_capped_at_fifty():
  listed = np.arange(60)
  view = make_view(Ranked(jnp.asarray(listed[::-1]), jnp.zeros(60)), Ranked(jnp.asarray(listed), jnp.zeros(60)))
  found = draws(rcekd(k=60, sampled=1, depth=60).sample, view, 40_000)["items"][:, 60]
  weights = np.exp((np.minimum(60 - np.arange(60), 50) + 1) / 10.0)
  assert_frequencies(np.bincount(found, minlength=60), weights / weights.sum())


@pytest.fixture(scope="module")
def rows():
  """(Seen, [set of items]) of 150 users and 37 items: empty, full but one, first, last and random rows."""
  rng = np.random.default_rng(0)
  sets = [set(), set(range(1, 37)), set(range(36)), {0}, {36}, {0, 36}, set(range(37)) - {17}]
  sets += [set(rng.permutation(37)[: rng.integers(0, 36)].tolist()) for _ in range(143)]
  users = np.concatenate([np.full(len(s), u) for u, s in enumerate(sets)]).astype(np.int32)
  items = np.concatenate([rng.permutation(sorted(s)) for s in sets]).astype(np.int32)
  return jax.tree.map(jnp.asarray, index.seen_of(users, items, 150, 37)), sets


def test_nth_absent_is_the_nth_of_the_missing_items(rows):
  seen, sets = rows
  users, n, expected = [], [], []
  for user, items in enumerate(sets):
    absent = [i for i in range(37) if i not in items]
    users += [user] * len(absent)
    n += range(len(absent))
    expected += absent
  assert np.array_equal(index.nth_absent(seen, jnp.array(users), jnp.array(n)), expected)
  counts = index.num_absent(seen, jnp.arange(150), 37)
  assert np.array_equal(counts, [37 - len(s) for s in sets])


def test_repeated_interactions_count_once():
  seen = index.seen_of(np.array([1, 0, 1, 1]), np.array([3, 2, 3, 0]), 3, 5)
  assert seen.starts.tolist() == [0, 1, 3, 3] and seen.items.tolist() == [2, 0, 3]


@pytest.fixture(scope="module")
def negatives():
  """(users [M], negatives [M, 3], train sets) of many BPR batches of 6 users and 12 items."""
  rng = np.random.default_rng(1)
  sets = [rng.permutation(12)[:n] for n in (1, 3, 5, 8, 10, 11)]
  users = np.repeat(np.arange(6, dtype=np.int32), [len(s) for s in sets])
  items = np.concatenate(sets).astype(np.int32)
  seen = jax.tree.map(jnp.asarray, index.seen_of(users, items, 6, 12))
  drawn_users, drawn_items = [], []
  for epoch in range(200):
    plan = batches.plan(0, epoch, Interactions(users, items), 16, "interaction")
    batch = batches.draw(jax.random.key(epoch), plan, jnp.asarray(users), jnp.asarray(items), seen, negatives=3,
                         num_items=12)
    real = plan["weight"] > 0
    drawn_users.append(np.asarray(batch["users"])[real])
    drawn_items.append(np.asarray(batch["items"])[real])
  return np.concatenate(drawn_users), np.concatenate(drawn_items), sets


def test_bpr_positives_come_first_and_negatives_are_never_seen(negatives):
  users, items, sets = negatives
  for user, positive, *others in zip(users, *items.T, strict=True):
    assert positive in sets[user] and not set(others) & set(sets[user].tolist())


def test_bpr_negatives_are_uniform_over_unseen_items(negatives):
  users, items, sets = negatives
  for user, own in enumerate(sets[:5]):  # the sixth has one unseen item
    absent = np.setdiff1d(np.arange(12), own)
    for column in range(1, 4):
      counts = np.bincount(items[users == user, column], minlength=12)[absent]
      assert_frequencies(counts, np.full(len(absent), 1 / len(absent)))


def test_bpr_negatives_of_a_row_are_independent(negatives):
  users, items, sets = negatives
  absent = np.setdiff1d(np.arange(12), sets[4])  # two unseen items: pairs are four, equally likely
  pairs = np.searchsorted(absent, items[users == 4, 1:3])
  assert_frequencies(np.bincount(pairs @ [2, 1], minlength=4), np.full(4, 0.25))


def test_unseen_draws_are_distinct_unseen_and_uniform(rows):
  seen, sets = rows
  user = next(u for u, s in enumerate(sets) if 8 <= len(s) <= 20)
  absent = np.setdiff1d(np.arange(37), list(sets[user]))
  many = jnp.full(20_000, user)
  for n in (1, 4):
    found = np.asarray(index.draw_unseen(jax.random.key(n), seen, many, n, 37))
    assert all(len(set(row)) == n for row in found.tolist())
    assert np.isin(found, absent).all()
    share, expected = np.bincount(found.reshape(-1), minlength=37)[absent] / len(found), n / len(absent)
    z = (share - expected) / math.sqrt(expected * (1 - expected) / len(found))
    assert np.abs(z).max() < 4
  everything = index.draw_unseen(jax.random.key(0), seen, jnp.array([user]), len(absent), 37)
  assert np.array_equal(np.sort(everything[0]), absent)


def test_unseen_draws_are_distinct_where_the_number_does_not_divide(rows):
  seen, sets = rows
  users = jnp.arange(150)
  fits = np.array([37 - len(s) >= 6 for s in sets])
  for seed in range(20):
    found = np.asarray(index.draw_unseen(jax.random.key(seed), seen, users, 6, 37))[fits]
    assert all(len(set(row)) == 6 for row in found.tolist())


def echo():
  """A method that returns what its sampler is shown."""
  def sample(rng, view):
    return {"items": jnp.concatenate([view.teacher.items, view.student.items, view.unseen]), "user": view.user}

  return KD(lambda student, teacher, batch: student.scores[:, 0], Lists(teacher=7, student=5, unseen=6), sample)


def test_views_hold_top_lists_of_unseen_items_and_the_teacher_scores_every_candidate(make_dataset):
  dataset = make_dataset(num_users=70, num_items=60, train=20)  # users fill no block
  modules = [registry.build("models", registry.Call("mf", (("dim", 3),)), num_users=70, num_items=60)] * 2
  rng = np.random.default_rng(3)
  tables = [{k: jnp.asarray(rng.normal(size=(n, 3)), jnp.float32) for k, n in (("user", 70), ("item", 60))}
            for _ in range(2)]
  run = graph.Run(((STUDENT, modules[0]), (TEACHER, modules[1])), (STUDENT,),
                  ((STUDENT, TEACHER),), ((1.0, echo()),), bpr(), optax.sgd(0.1), "sum")
  given = graph.Given({TEACHER: tables[1]}, {})
  sources = kd_targets.prepare(run, dataset, given)
  params = {"networks": {STUDENT: tables[0]}, "adapters": {}}
  lists = kd_targets.learner_lists(run, params, given, sources, 0, None)
  (fields,) = kd_targets.targets(jax.random.key(0), params, given, sources, lists, {}, jnp.int32(0), run=run).values()
  assert np.array_equal(fields["user"], np.arange(70))
  scores = [np.array(t["user"] @ t["item"].T) for t in tables]
  expected = np.take_along_axis(scores[1], np.asarray(fields["items"]), axis=1)
  np.testing.assert_allclose(fields["teacher"], expected, rtol=1e-5, atol=1e-6)
  for table in scores:
    table[dataset.train.users, dataset.train.items] = -np.inf
  items = np.asarray(fields["items"])
  assert np.array_equal(items[:, :7], np.argsort(-scores[1], axis=1, kind="stable")[:, :7])
  assert np.array_equal(items[:, 7:12], np.argsort(-scores[0], axis=1, kind="stable")[:, :5])
  for user, row in enumerate(items[:, 12:]):
    own = dataset.train.items[dataset.train.users == user]
    assert not set(row.tolist()) & (set(own.tolist()) | set(items[user, :7].tolist()))


PRIORITY = jnp.array([2, 3, 0, 1])


def test_top_k_breaks_ties_by_priority_and_marks_what_is_missing():
  scores = jnp.array([[1.0, 3.0, 3.0, -jnp.inf], [-jnp.inf, 2.0, -jnp.inf, -jnp.inf]])
  assert rank.top_k(scores, PRIORITY, 3).items.tolist() == [[2, 1, 0], [1, -1, -1]]


def test_top_k_ties_zeros_of_either_sign():
  assert rank.top_k(jnp.array([[-0.0, 0.0, -0.0, 0.0]]), PRIORITY, 3).items.tolist() == [[2, 3, 0]]


def test_seen_draws_are_distinct_training_items_and_uniform(rows):
  seen, sets = rows
  draw = jax.jit(jax.vmap(lambda key: index.draw_seen(key, seen, jnp.arange(len(sets)), 5)))
  found = np.asarray(draw(jax.random.split(jax.random.key(0), 2000)))
  for user, items in enumerate(sets):
    mine = found[:, user]
    if len(items) <= 5:
      assert (mine == np.pad(sorted(items), (0, 5 - len(items)), constant_values=-1)).all()
    else:
      assert set(np.unique(mine)) == items and (np.diff(mine, axis=1) > 0).all()
      share = np.array([(mine == i).any(axis=1).mean() for i in items])
      assert np.abs(share - 5 / len(items)).max() < 5 * 0.5 / np.sqrt(2000)


def test_check_refuses_a_learner_that_is_not_there(make_dataset):
  run = graph.Run((), (STUDENT,), (), ((1.0, bd(learner="peer")),), None, None, "sum")
  with pytest.raises(InputError, match="`peer=MODEL`"):
    kd_targets.check(run, make_dataset())


def test_check_counts_users_who_cannot_fill_the_lists_and_refuses_lists_that_nobody_can(make_dataset):
  """Four users have 20 unseen items, the fifth has 23."""
  dataset = make_dataset(num_users=5, num_items=30, train=10)
  some = Interactions(dataset.train.users[:-3], dataset.train.items[:-3])
  run = graph.Run((), (STUDENT,), ((STUDENT, TEACHER),), (), None, optax.sgd(0.1), "sum")

  def fits(lists):
    return kd_targets.check(run._replace(kds=((1.0, KD(None, lists)),)), dataset._replace(train=some))

  for lists in (Lists(teacher=20), Lists(teacher=10, unseen=10), Lists(student=30, exclude_seen=False)):
    assert fits(lists) == []
  for lists in (Lists(teacher=21), Lists(student=21), Lists(teacher=10, unseen=11), Lists(teacher=23)):
    said, = fits(lists)
    assert "1 of 5 users have" in said and str(max(lists.student, lists.teacher + lists.unseen)) in said
  too_long = Lists(teacher=24), Lists(student=24), Lists(teacher=10, unseen=14), Lists(student=31, exclude_seen=False)
  for wrong in too_long:
    with pytest.raises(InputError, match="`kd`"):
      fits(wrong)
