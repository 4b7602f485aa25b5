"""What methods that distil rankings draw: distributions, orders and exclusions."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from kd_jax.base import Outputs, Ranked, View
from kd_jax.losses import _lists
from kd_jax.losses.bd import bd
from kd_jax.losses.cd import cd
from kd_jax.losses.dcd import dcd
from kd_jax.losses.ensemble import ensemble
from kd_jax.losses.gated import gated
from kd_jax.losses.hetcomp import hetcomp
from kd_jax.losses.ir_rrd import ir_rrd
from kd_jax.losses.kl import kl
from kd_jax.losses.listnet import listnet
from kd_jax.losses.mse import mse
from kd_jax.losses.rd import rd
from kd_jax.losses.rrd import rrd
from kd_jax.losses.unkd import popularity_groups, unkd

LEAST_P = 1e-3  # of a test that is right; seeds are fixed, so that it passes always or never


def view_of(teacher=None, student=None, unseen=None, popularity=None, epoch=0, previous=None):
  def as_list(x):
    return None if x is None else Ranked(jnp.asarray(x, jnp.int32), -jnp.arange(np.shape(x)[-1]) * 1.0)

  def one(x):
    return None if x is None else jnp.asarray(x, jnp.int32)

  return View(jnp.int32(0), as_list(teacher), as_list(student), one(unseen), jnp.int32(epoch), previous or {},
              one(popularity), priority=None if popularity is None else jnp.arange(len(popularity)))


def draws(kd, view, n=20_000):
  sample = jax.jit(jax.vmap(lambda key: kd.sample(key, view)))
  return jax.tree.map(np.asarray, sample(jax.random.split(jax.random.key(5), n)))


def assert_frequencies(counts, probabilities):
  """Chi-square; what is expected fewer than 10 times is put together."""
  counts, expected = np.asarray(counts), np.asarray(probabilities) * np.sum(counts)
  rare = expected < 10
  if rare.any():
    if expected[rare].sum() < 10:
      rare |= expected == expected[~rare].min()
    counts, expected = np.append(counts[~rare], counts[rare].sum()), np.append(expected[~rare], expected[rare].sum())
  assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > LEAST_P


def inclusion(weights, n):
  """P(i is among n draws without replacement, p ~ weights), by enumeration."""
  found = np.zeros(len(weights))
  for order in itertools.permutations(range(len(weights)), n):
    left, probability = sum(weights), 1.0
    for i in order:
      probability *= weights[i] / left
      left -= weights[i]
    found[list(order)] += probability
  return found


def assert_inclusion(drawn, items, weights):
  """Each item is among the drawn [n, c] as often as sequential draws by weight say (within 5 standard errors)."""
  n, c = drawn.shape
  expected = inclusion(weights, c)
  found = np.array([(drawn == i).any(axis=1).mean() for i in items])
  assert (np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / n) + 1e-9).all()
  assert all(len(set(row)) == c for row in drawn[:200].tolist())


@pytest.mark.parametrize("guide", ["teacher", "student"])
def test_cd_keeps_the_better_of_two_draws_until_enough_are_distinct(guide):
  depth, sampled, temperature = 6, 3, 0.4
  listed = np.array([30, 4, 17, 9, 21, 2])
  kd = cd(sampled, depth, temperature, guide=guide)
  found = draws(kd, view_of(**{guide: listed}))["items"]
  rng, p = np.random.default_rng(0), np.exp(-np.arange(1, 7) / (depth * temperature))
  counts, reference = np.zeros(6), np.zeros(6)
  for _ in range(6000):
    kept = set()
    while len(kept) < sampled:
      kept.add(min(rng.choice(6, 2, p=p / p.sum())))
    reference[list(kept)] += 1
  counts = np.array([(found == i).sum() for i in listed])
  share, share_reference = counts / len(found), reference / 6000
  assert np.abs(share - share_reference).max() < 0.03 and counts.sum() == 3 * len(found)
  assert all(len(set(row)) == sampled for row in found.tolist())


@pytest.mark.parametrize("redraw", [True, False])
def test_first_draw_of_cd_is_exact(redraw):
  kd, view = cd(1, 40, 0.2, redraw=redraw), view_of(teacher=np.arange(40))
  of_users = jax.vmap(lambda key, user: kd.sample(key, view._replace(user=user))["items"])
  keys, users = jax.random.split(jax.random.key(5), 20_000), jnp.arange(20_000)
  found = np.asarray(of_users(keys, users))[:, 0]
  again = np.asarray(of_users(keys[::-1], users))[:, 0]
  assert (found == again).all() == (not redraw)
  p = np.exp(-np.arange(1, 41) / 8)
  p /= p.sum()
  pairs = np.outer(p, p)
  exact = [pairs[r, r] + 2 * pairs[r, r + 1 :].sum() for r in range(40)]
  assert_frequencies(np.bincount(found, minlength=40), exact)


def test_cd_hands_over_the_scores_of_what_it_drew():
  teacher = Ranked(jnp.arange(20)[::-1], -jnp.arange(20.0))
  found = cd(5, 20).sample(jax.random.key(0), view_of()._replace(teacher=teacher))
  assert (found["teacher"] == found["items"] - 19).all()


TEACHER, STUDENT = np.array([7, 3, 11, 0, 5]), np.array([0, 3, 8, 9, 11, 20, 21, 22, 23, 24])


def gaps(depth):
  """Student's rank, or `depth` if unlisted, minus the teacher's."""
  place = {item: rank for rank, item in enumerate(STUDENT)}
  return [place.get(item, depth) - rank for rank, item in enumerate(TEACHER)]


@pytest.mark.parametrize("side", ["users", "items"])
def test_dcd_draws_by_the_discrepancy_of_ranks(side):
  temperature = 0.5
  kd = dcd(side, k=2, depth=5, temperature=temperature)
  assert kd.rows == side and kd.lists.student == 10
  found = draws(kd, view_of(TEACHER, STUDENT))["items"]
  under = [max(math.tanh(max(g / temperature, 0)), 1e-5) for g in gaps(10)]
  over = [max(math.tanh(max(-g / temperature, 0)), 1e-5) for g in gaps(10)]
  assert_inclusion(found[:, :2], TEACHER, under)
  assert_inclusion(found[:, 2:], TEACHER, over)


def test_dcds_list_is_long_enough_for_every_weight():
  """An item beyond the student's list has a weight that differs from 1 by less than 1e-8, wherever it is."""
  depth, temperature = 200, 10.0
  longest = dcd().lists.student
  assert longest == depth + 10 * temperature
  for rank in (longest, 10 * longest):
    assert 1 - math.tanh((rank - (depth - 1)) / temperature) < 1e-8


def test_trap_c_samples_are_sorted_by_the_teachers_rank():
  teacher, student = np.random.default_rng(0).permutation(40), np.arange(100, 600)
  for kd, k in ((ir_rrd(k=8, uninteresting=4, depth=40), 8), (dcd(k=8, depth=40, temperature=46.0), 8)):
    found = draws(kd, view_of(teacher, student, np.arange(90, 94)), 200)["items"][:, :k]
    places = np.argsort(teacher)[found]
    assert (np.diff(places, axis=1) > 0).all()


def test_trap_f_which_lists_hold_training_items():
  for factory in (rd, cd, rrd, ir_rrd, dcd, unkd, hetcomp):
    assert factory().lists.exclude_seen
  for factory in (mse, listnet, kl, ensemble, gated):
    assert not factory().lists.exclude_seen


def test_ir_rrd_is_rrd_on_the_other_side():
  item, user = ir_rrd(k=3, uninteresting=2, depth=8), rrd(k=3, uninteresting=2, depth=8)
  assert item.rows == "items" and user.rows == "users" and item.lists == user.lists
  view = view_of(np.arange(8), None, np.array([20, 21]))
  assert np.array_equal(draws(item, view, 50)["items"], draws(user, view, 50)["items"])


def test_bd_draws_what_the_other_ranks_higher():
  student = STUDENT[:5]
  kd = bd(sampled=2, sharpness=0.3, depth=5)
  place = {item: rank for rank, item in enumerate(student)}
  weights = [math.tanh(max(0.3 * (place.get(item, 5) - rank), 0)) for rank, item in enumerate(TEACHER)]
  positive = [max(w, 1e-9) for w in weights]
  assert sum(w > 0 for w in weights) >= 2
  found = draws(kd, view_of(TEACHER, student, popularity=np.ones(30)))["items"]
  assert_inclusion(found, TEACHER, positive)
  agreed = np.isin(found, [i for i, w in zip(TEACHER, weights, strict=True) if w == 0])
  assert not agreed.any()


def test_bd_of_the_greatest_depth_is_the_papers_distribution(monkeypatch):
  """20 items, none seen: p ~ tanh(max(sharpness (student's rank - peer's rank), 0)) over all of them, by long lists."""
  monkeypatch.setattr(_lists, "_LONG", 10)
  rng = np.random.default_rng(0)
  student, teacher = rng.permutation(20), rng.permutation(20)
  kd = bd(sampled=2, sharpness=0.05, depth=20)
  found = draws(kd, view_of(teacher, student, popularity=np.ones(20)))["items"]
  gap = np.argsort(student) - np.argsort(teacher)
  assert_inclusion(found, np.arange(20), np.maximum(np.tanh(0.05 * gap), 1e-9))


def test_bds_peer_draws_from_all_unseen_items_by_the_exponential_of_the_gap():
  """Items 0..5 the student lists, 4..9 the peer; 40 in all, and two drawn unseen ones stand for 34."""
  kd = bd(learner="peer", sampled=2, peer_sharpness=0.05, depth=6)
  assert kd.learner == "peer" and kd.lists.unseen == 2 and bd().learner == "student" and not bd().lists.unseen
  student, behind = list(range(6)), (6 + 39) / 2

  def own(i):
    return {item: rank for rank, item in enumerate(range(4, 10))}.get(i, behind)

  view = view_of(student, list(range(4, 10)), np.array([7, 20]), np.ones(40))
  weights = [math.exp(0.05 * (own(i) - rank)) for rank, i in enumerate(student)]
  weights += [17 * math.exp(0.05 * (own(i) - behind)) for i in (7, 20)]
  assert_inclusion(draws(kd, view)["items"], [*student, 7, 20], weights)
  listed = draws(kd, view._replace(unseen=jnp.array([5, 20])), 2000)["items"]
  assert all(len(set(row)) == 2 for row in listed.tolist()), "an item of the list is not drawn twice"


def test_bds_unlisted_items_are_saturated():
  assert 1 - math.tanh(bd().lists.student * 0.01) < 1e-4


@pytest.mark.parametrize("long", [2, 3])
def test_rank_in_a_list(long, monkeypatch):
  monkeypatch.setattr(_lists, "_LONG", long)
  assert _lists.rank_in(jnp.array([5, 2, 9]), jnp.array([9, 1, 5, 2]), 10).tolist() == [2, 3, 0, 1]


def test_first_met():
  assert _lists.first_met(jnp.array([4, 4, 1, 4, 1, 0])).tolist() == [True, False, True, False, False, True]


def test_popularity_groups_have_equal_total_popularity():
  popularity = np.random.default_rng(0).zipf(1.6, 3000).clip(max=60)
  popularity[:100] = 0
  group = np.asarray(popularity_groups(jnp.asarray(popularity), jnp.arange(3000), 4))
  assert (group[:100] == 4).all() and set(group[100:].tolist()) == {0, 1, 2, 3}
  totals = np.bincount(group, weights=popularity)[:4]
  assert np.abs(totals - popularity.sum() / 4).max() <= popularity.max()
  for g in range(3):
    assert popularity[group == g].min() >= popularity[(group > g) & (group < 4)].max()


def test_popularity_groups_by_hand():
  # 8 | 4 4 | 2 2 2 2: middles of the shares are 4/24, 10/24 14/24, 17/24 .. 23/24
  popularity, places = jnp.array([2, 8, 2, 4, 0, 2, 4, 2]), jnp.arange(8)
  assert popularity_groups(popularity, places, 3).tolist() == [2, 0, 2, 1, 3, 2, 1, 2]
  # of four groups, the border is between the two with 4, and after the first with 2
  assert popularity_groups(popularity, places, 4).tolist() == [2, 0, 3, 1, 4, 3, 2, 3]
  assert popularity_groups(popularity, places[::-1], 4).tolist() == [3, 0, 3, 2, 4, 3, 1, 2]


def test_unkd_draws_pairs_of_one_group_by_rank_and_never_an_item_twice():
  popularity = np.array([1, 1, 6, 1, 6, 1, 0, 1, 1, 5])  # groups: 2, 4, 9 | 0, 1, 3, 5, 7, 8
  popularity[[0, 1, 3, 5, 7, 8]] = 3
  teacher = np.array([3, 9, 6, 0, 2, 7, 4, 1])
  in_list = {0: [9, 2, 4], 1: [3, 0, 7, 1]}
  kd = unkd(groups=2, pairs=5, temperature=2.0, depth=8)
  found = draws(kd, view_of(teacher, popularity=popularity))["items"]
  for pair in range(5):
    items = in_list[pair % 2]
    p = np.exp(-np.arange(1, len(items) + 1) / 2.0)
    both = {(i, j): p[i] * p[j] for i, j in itertools.combinations(range(len(items)), 2)}
    total = sum(both.values())
    better, worse = found[:, pair], found[:, 5 + pair]
    counts = [((better == items[i]) & (worse == items[j])).sum() for i, j in both]
    assert len(found) - sum(counts) < 20, "a pair of another group, of one item, or in the wrong order"
    assert_frequencies(counts, [x / total for x in both.values()])
  assert not (found == 6).any(), "an item without interactions is in no group"


def test_unkd_of_a_group_with_one_item_has_no_gradient():
  kd = unkd(groups=2, pairs=2, depth=3)
  view = view_of(np.array([0, 1, 2]), popularity=np.array([2, 1, 1]))  # groups: 0 | 1, 2
  fields = jax.tree.map(lambda x: x[None], kd.sample(jax.random.key(0), view))
  gradient = jax.grad(lambda s: kd.loss(Outputs(s[fields["items"]]), Outputs(None), fields).sum())(jnp.zeros(3))
  assert gradient[0] == 0 and gradient[1] < 0 < gradient[2]
