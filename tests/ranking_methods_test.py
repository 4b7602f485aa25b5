"""Methods that distil rankings: values, gradients and draws against loops written from the formulas."""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from kd_jax.base import InputError, Outputs, Ranked, View
from kd_jax.losses import lists
from kd_jax.losses.bce import bce
from kd_jax.losses.bd import bd
from kd_jax.losses.cd import cd
from kd_jax.losses.dcd import dcd
from kd_jax.losses.dllm2rec import dllm2rec
from kd_jax.losses.ensemble import ensemble
from kd_jax.losses.gated import gated
from kd_jax.losses.hetcomp import hetcomp, overlap
from kd_jax.losses.ir_rrd import ir_rrd
from kd_jax.losses.kl import kl
from kd_jax.losses.listnet import listnet
from kd_jax.losses.mse import mse
from kd_jax.losses.rd import rd
from kd_jax.losses.rrd import rrd
from kd_jax.losses.unkd import popularity_groups, unkd

ROWS, ITEMS, TEACHERS = 3, 30, 3
LEAST_P = 1e-3  # of a test that is right; seeds are fixed, so that it passes always or never


# The formulas, in float64 and loops. s and t speak of all items; t [E, items] where there are several teachers.


def sigmoid(x):
  return 1 / (1 + math.exp(-x))


def softmax(x):
  total = sum(math.exp(v) for v in x)
  return [math.exp(v) / total for v in x]


def best(scores, k):
  return sorted(range(len(scores)), key=lambda i: -scores[i])[:k]


def binary(target, score):
  return -target * math.log(sigmoid(score)) - (1 - target) * math.log(1 - sigmoid(score))


def likelihood(s, interesting, uninteresting):
  """-log of the product over the interesting, in order, of e^s / (sum over what is left, and the others)."""
  product = 1.0
  for place, item in enumerate(interesting):
    left = [*interesting[place:], *uninteresting]
    product *= math.exp(s[item]) / sum(math.exp(s[i]) for i in left)
  return -math.log(product)


def mse_formula(s, t, o, fields):
  items = best(t, o["k"])
  return sum((s[i] - t[i]) ** 2 for i in items) / len(items)


def listnet_formula(s, t, o, fields):
  items, tau = best(t, o["k"]), o["temperature"]
  p, q = softmax([t[i] / tau for i in items]), softmax([s[i] / tau for i in items])
  return -sum(a * math.log(b) for a, b in zip(p, q, strict=True))


def rd_formula(s, t, o, fields):
  k, top = o["k"], best(t, o["k"])
  others = fields["items"][k:]
  a = [math.exp(-r / o["decay"]) for r in range(1, k + 1)]
  weight = [x / sum(a) for x in a]
  if o["epoch"] >= o["start_epoch"]:
    for r, item in enumerate(top, start=1):
      above = sum(o["student"][i] > o["student"][item] for i in others)
      estimated = math.floor((ITEMS - 1) * above / len(others)) + 1
      weight[r - 1] *= math.tanh(max(o["sharpness"] * (estimated - r), 0))
    if o["renormalize"]:
      weight = [w / sum(weight) for w in weight]
  return -sum(w * math.log(sigmoid(s[i])) for w, i in zip(weight, top, strict=True))


def cd_formula(s, t, o, fields):
  targets = [sigmoid((t[i] + o["shift"]) / o["softness"]) for i in fields["items"]]
  return sum(binary(q, s[i]) for q, i in zip(targets, fields["items"], strict=True)) / len(targets)


def likelihood_formula(s, t, o, fields):
  interesting, others = fields["items"][: o["k"]], fields["items"][o["k"] :]
  assert list(interesting) == sorted(interesting, key=lambda i: -t[i]), "not in the teacher's order"
  return likelihood(s, interesting, others)


def unkd_formula(s, t, o, fields):
  n, items = o["pairs"], fields["items"]
  assert all(t[a] >= t[b] for a, b in zip(items[:n], items[n:], strict=True))
  return sum(-math.log(sigmoid(s[a] - s[b])) for a, b in zip(items[:n], items[n:], strict=True)) / n


def hetcomp_formula(s, t, o, fields):
  k, n, stage = o["k"], o["unseen"], o["stage"]
  top, drawn = best(t[stage], k), fields["items"][k:]
  unseen = sum(math.exp(s[i]) for i in drawn) * (ITEMS - k) / n  # all that are not in the list
  if stage < TEACHERS - 1:
    return 2 * sum(-math.log(math.exp(s[i]) / (math.exp(s[i]) + unseen)) for i in top)

  def ordered(m):
    product = 1.0
    for place in range(m):
      product *= math.exp(s[top[place]]) / (sum(math.exp(s[i]) for i in top[place:]) + unseen)
    return -math.log(product)

  return (ordered(k // 2) + ordered(k // 10)) / 2


def dllm2rec_formula(s, t, o, fields):
  k, top, mine = o["k"], best(t, o["k"]), best(o["student"], o["k"])
  p = [math.exp(-r / o["decay"]) for r in range(1, k + 1)]
  c = softmax([t[i] for i in top])
  w = [o["position"] * p[j] / sum(p) + o["confidence"] * c[j] + o["consistency"] * (top[j] in mine) for j in range(k)]
  pulled = sum(w[j] / sum(w) * math.log(sigmoid(s[i])) for j, i in enumerate(top))
  return -pulled - math.log(1 - sigmoid(s[fields["items"][k]]))


def bd_formula(s, t, o, fields):
  return sum(binary(sigmoid(t[i] / o["temperature"]), s[i]) for i in fields["items"])


def union(t, k):
  return sorted({i for scores in t for i in best(scores, k)})


def ensemble_formula(s, t, o, fields):
  tau, items = o["temperature"], union(t, o["k"])
  each = [softmax([scores[i] / tau for i in items]) for scores in t]
  p = [sum(x) / len(each) for x in zip(*each, strict=True)]
  q = softmax([s[i] / tau for i in items])
  return tau**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


SLOPES, BIASES = [0.7, -0.4, 0.1], [0.2, 0.5, -1.0]


def gated_formula(s, t, o, fields):
  tau, items = o["temperature"], union(t, o["k"])
  total = 0.0
  for i in items:
    gate = softmax([w * scores[i] + b for w, b, scores in zip(SLOPES, BIASES, t, strict=True)])
    total += binary(sum(g * sigmoid(scores[i] / tau) for g, scores in zip(gate, t, strict=True)), s[i] / tau)
  return total / len(items)


class Case(NamedTuple):
  factory: object
  formula: object
  options: dict
  epoch: int = 0
  stage: int = 0  # of a curriculum


RD = {"k": 5, "decay": 1.5, "sharpness": 0.05, "dynamic_samples": 8, "start_epoch": 10}
HETCOMP = {"k": 10, "unseen": 6}
CASES = [
    Case(mse, mse_formula, {"k": 7}),
    Case(listnet, listnet_formula, {"k": 7, "temperature": 1.7}),
    Case(rd, rd_formula, RD | {"renormalize": True}, 9),
    Case(rd, rd_formula, RD | {"renormalize": True}, 10),
    Case(rd, rd_formula, RD | {"renormalize": False}, 10),
    Case(cd, cd_formula, {"sampled": 6, "depth": 15, "softness": 1.5, "shift": 0.3}),
    Case(cd, cd_formula, {"sampled": 6, "depth": 15, "softness": 2.0, "shift": -0.2, "guide": "student"}),
    Case(ir_rrd, likelihood_formula, {"k": 5, "uninteresting": 6, "depth": 12, "temperature": 4.0}),
    Case(dcd, likelihood_formula, {"k": 5, "depth": 15, "temperature": 1.0}),
    Case(dcd, likelihood_formula, {"side": "items", "k": 4, "depth": 12, "temperature": 1.5}),
    Case(unkd, unkd_formula, {"groups": 3, "pairs": 7, "temperature": 2.0, "depth": 20}),
    *(Case(hetcomp, hetcomp_formula, HETCOMP, stage=stage) for stage in range(TEACHERS)),
    Case(dllm2rec, dllm2rec_formula, {"k": 6, "position": 0.3, "confidence": 0.5, "consistency": 0.1, "decay": 1.0}),
    Case(bd, bd_formula, {"sampled": 6, "temperature": 5.0, "depth": 15}),
    Case(ensemble, ensemble_formula, {"k": 7, "temperature": 2.5}),
    Case(gated, gated_formula, {"k": 7, "temperature": 1.5}),
]
IDS = [f"{c.factory.__name__}-{i}" for i, c in enumerate(CASES)]
POPULARITY = np.random.default_rng(9).integers(1, 20, ITEMS)


def ranked(scores, k):
  items = np.argsort(-scores, axis=-1)[..., :k]
  chosen = np.take_along_axis(scores, items, axis=-1)
  return Ranked(jnp.asarray(items, jnp.int32), jnp.asarray(chosen, jnp.float32)) if k else None


def make_view(kd, student, teacher, rng, case):
  listed = np.argsort(-teacher, axis=-1)[..., : kd.lists.teacher]
  unseen = rng.permutation(np.setdiff1d(np.arange(ITEMS), listed))
  if len(unseen) < kd.lists.unseen:  # three teachers list nearly everything here
    unseen = rng.permutation(np.setdiff1d(np.arange(ITEMS), listed[case.stage]))
  previous = {"stage": jnp.int32(case.stage), "distance": jnp.float32(0.5)} if kd.remember else {}
  return View(jnp.int32(0), ranked(teacher, kd.lists.teacher), ranked(student, kd.lists.student),
              jnp.asarray(unseen[: kd.lists.unseen], jnp.int32), jnp.int32(case.epoch), previous,
              jnp.asarray(POPULARITY, jnp.int32))


def make(case, seed, scale=2.0):
  """(kd, student [ROWS, ITEMS], teacher [ROWS, (E,) ITEMS], targets)."""
  rng = np.random.default_rng(seed)
  kd = case.factory(**case.options)
  draw = lambda *shape: (rng.normal(size=shape) * scale).astype(np.float32).astype(np.float64)
  student = draw(ROWS, ITEMS)
  teacher = draw(ROWS, TEACHERS, ITEMS) if kd.all_teachers else draw(ROWS, ITEMS)
  keys = jax.random.split(jax.random.key(seed), ROWS)
  rows = [kd.sample(keys[r], make_view(kd, student[r], teacher[r], rng, case)) for r in range(ROWS)]
  return kd, student, teacher, jax.tree.map(lambda *x: jnp.stack(x), *rows) | {"epoch": case.epoch}


def losses(kd, student, teacher, targets):
  pick = lambda x: jnp.take_along_axis(jnp.asarray(x, jnp.float32), targets["items"], axis=1)
  said = targets.get("teacher")
  if said is None:
    said = jnp.stack([pick(x) for x in np.moveaxis(teacher, 1, 0)]) if kd.all_teachers else pick(teacher)
  outputs, teacher = Outputs(pick(student)), Outputs(said)
  if kd.adapter is not None:
    gate = {"slope": jnp.array(SLOPES).reshape(-1, 1, 1), "bias": jnp.array(BIASES).reshape(-1, 1, 1)}
    outputs = kd.adapter.apply({"params": gate}, outputs, teacher, targets)
  return kd.loss(outputs, teacher, targets)


def formula(case, student, teacher, targets, row, scored):
  """`student` made the targets, `scored` is scored: weights of a method are constants."""
  fields = {"items": targets["items"][row].tolist()}
  options = case.options | {"student": student[row], "epoch": case.epoch, "stage": case.stage}
  return case.formula(scored, teacher[row], options, fields)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_value_is_the_formula(case, seed):
  kd, student, teacher, targets = make(case, seed)
  expected = [formula(case, student, teacher, targets, r, student[r]) for r in range(ROWS)]
  found = losses(kd, student, teacher, targets)
  assert found.shape == (ROWS,)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_gradient_is_the_central_difference_of_the_formula(case):
  kd, student, teacher, targets = make(case, 2)
  gradient = jax.grad(lambda s: losses(kd, s, teacher, targets).sum())(jnp.asarray(student, jnp.float32))
  expected, step = np.zeros_like(student), 1e-5
  for r, i in itertools.product(range(ROWS), range(ITEMS)):
    moved = [student[r] + sign * step * (np.arange(ITEMS) == i) for sign in (1, -1)]
    up, down = (formula(case, student, teacher, targets, r, s) for s in moved)
    expected[r, i] = (up - down) / (2 * step)
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=5e-6)
  assert np.abs(expected).max() > 1e-2


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_scores_of_ten_thousand_give_finite_values_and_gradients(case):
  kd, student, teacher, targets = make(case, 3)
  for s_scale, t_scale in ((1e4, 1e4), (-1e4, 1e4), (1e4, 0.0)):
    s, t = (np.clip(x * f, -1e4, 1e4) for x, f in ((student, s_scale), (teacher, t_scale)))
    if "teacher" in targets:
      targets["teacher"] = jnp.take_along_axis(jnp.asarray(t, jnp.float32), targets["items"], axis=1)
    value, gradient = jax.value_and_grad(lambda s, t=t: losses(kd, s, t, targets).sum())(jnp.asarray(s, jnp.float32))
    assert np.isfinite(value) and np.isfinite(gradient).all()


# Samplers


def view_of(teacher=None, student=None, unseen=None, popularity=None, epoch=0, previous=None):
  as_list = lambda x: None if x is None else Ranked(jnp.asarray(x, jnp.int32), -jnp.arange(np.shape(x)[-1]) * 1.0)
  one = lambda x: None if x is None else jnp.asarray(x, jnp.int32)
  return View(jnp.int32(0), as_list(teacher), as_list(student), one(unseen), jnp.int32(epoch), previous or {},
              one(popularity))


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


def test_first_draw_of_cd_is_exact():
  found = draws(cd(1, 40, 0.2), view_of(teacher=np.arange(40)))["items"][:, 0]
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


def test_trap_b_the_likelihood_of_large_scores_is_finite_and_exact():
  """cumsum(exp) overflows at 89 in float32, and clamping at 80 as the public code does is another loss."""
  top, others = np.array([[300.0, 290.0, 310.0]]), np.array([[305.0, 100.0]])
  found = lists.plackett_luce(jnp.asarray(top), jnp.asarray(others))
  assert float(found[0]) == pytest.approx(likelihood(np.append(top, others) - 300, [0, 1, 2], [3, 4]), rel=1e-6)


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
  found = draws(kd, view_of(TEACHER, student))["items"]
  assert_inclusion(found, TEACHER, positive)
  agreed = np.isin(found, [i for i, w in zip(TEACHER, weights, strict=True) if w == 0])
  assert not agreed.any()


def test_bds_unlisted_items_are_saturated():
  assert 1 - math.tanh(bd().lists.student * 0.01) < 1e-4


def test_rank_in_a_list():
  assert lists.rank_in(jnp.array([5, 2, 9]), jnp.array([9, 1, 5, 2])).tolist() == [2, 3, 0, 1]


def test_first_met():
  assert lists.first_met(jnp.array([4, 4, 1, 4, 1, 0])).tolist() == [True, False, True, False, False, True]


def test_popularity_groups_have_equal_total_popularity():
  popularity = np.random.default_rng(0).zipf(1.6, 3000).clip(max=60)
  popularity[:100] = 0
  group = np.asarray(popularity_groups(jnp.asarray(popularity), 4))
  assert (group[:100] == 4).all() and set(group[100:].tolist()) == {0, 1, 2, 3}
  totals = np.bincount(group, weights=popularity)[:4]
  assert np.abs(totals - popularity.sum() / 4).max() <= popularity.max()
  for g in range(3):
    assert popularity[group == g].min() >= popularity[(group > g) & (group < 4)].max()


def test_popularity_groups_by_hand():
  # 8 | 4 4 | 2 2 2 2: middles of the shares are 4/24, 10/24 14/24, 17/24 .. 23/24
  assert popularity_groups(jnp.array([2, 8, 2, 4, 0, 2, 4, 2]), 3).tolist() == [2, 0, 2, 1, 3, 2, 1, 2]


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


def overlap_reference(student, teacher):
  gain = [(2 ** math.exp(-i / 10) - 1) / math.log2(i + 2) for i in range(len(student))]
  return sum(g for g, item in zip(gain, student, strict=True) if item in teacher) / sum(gain)


def test_hetcomps_discrepancy():
  rng = np.random.default_rng(0)
  for _ in range(5):
    student, teacher = rng.permutation(30)[:12], rng.permutation(30)[:12]
    assert float(overlap(jnp.array(student), jnp.array(teacher))) == pytest.approx(
        overlap_reference(student.tolist(), teacher.tolist()), rel=1e-5)
  assert float(overlap(jnp.arange(9), jnp.arange(9))) == pytest.approx(1)


def test_hetcomp_moves_through_the_curriculum_as_the_published_procedure():
  """60 epochs of a student that comes nearer to the teachers, replayed with loops and plain numbers."""
  k, period, threshold = 10, 5, 1.05
  rng = np.random.default_rng(1)
  teachers = np.stack([rng.permutation(40)[:k] for _ in range(4)])
  kd = hetcomp(k=k, unseen=5, period=period, threshold=threshold)
  stage, distance, student = 0, 0.0, rng.permutation(40)[:k]
  previous, stages = {"stage": jnp.int32(0), "distance": jnp.float32(0)}, []
  sample = jax.jit(kd.sample)
  for epoch in range(60):
    if epoch % period == 0:  # the student's list is of that epoch
      goal = teachers[min(stage + 1, 3)] if rng.random() < 0.7 else rng.permutation(40)
      student = np.array([*goal[: rng.integers(0, k)], *[i for i in student if i not in goal], *goal])
      student = student[np.sort(np.unique(student, return_index=True)[1])][:k]
      away = lambda v, s=student: 1 - overlap_reference(s.tolist(), teachers[min(v, 3)].tolist())
      if epoch == period:
        distance = away(1)
      elif epoch > period and stage < 3:
        ratio = distance / away(stage + 1) if away(stage + 1) else math.inf
        if ratio > threshold * 0.995 ** (epoch // period) or ratio < 1:
          stage += 1
          distance = away(stage + 1)
    found = sample(jax.random.key(0), view_of(teachers, student, np.arange(5), np.ones(40), epoch, previous))
    previous = {"stage": found["stage"], "distance": found["distance"]}
    assert int(found["stage"]) == stage and float(found["distance"]) == pytest.approx(distance, abs=1e-5)
    assert found["items"][:k].tolist() == teachers[stage].tolist()
    assert bool(found["ordered"]) == (stage == 3)
    stages.append(stage)
  assert stages[0] == 0 and stages[-1] == 3 and len(set(stages)) == 4


def test_dllm2recs_weights_by_hand():
  kd = dllm2rec(k=2)
  teacher = Ranked(jnp.array([4, 7]), jnp.array([math.log(3), 0.0]))
  view = view_of(student=[7, 1], unseen=[9])._replace(teacher=teacher)
  first = 0.3 / (1 + math.exp(-1)) + 0.5 * 0.75
  second = 0.3 / (1 + math.e) + 0.5 * 0.25 + 0.1
  found = kd.sample(jax.random.key(0), view)
  assert found["importance"].tolist() == pytest.approx([first / (first + second), second / (first + second)], rel=1e-5)
  assert found["items"].tolist() == [4, 7, 9]


def test_rds_discrepancy_of_what_the_student_ranks_first_is_zero():
  kd = rd(k=2, dynamic_samples=3)
  fields = {"num_items": jnp.array([100.0]), "epoch": 10}
  scores = jnp.array([[5.0, -5.0, 0.0, 0.0, 0.0]])  # the second is below all random items
  assert float(kd.loss(Outputs(scores), Outputs(None), fields)[0]) == pytest.approx(-math.log(sigmoid(-5)), rel=1e-5)
  satisfied = jnp.array([[5.0, 5.0, 0.0, 0.0, 0.0]])
  gradient = jax.grad(lambda s: kd.loss(Outputs(s), Outputs(None), fields).sum())(satisfied)
  assert np.isfinite(gradient).all() and not np.any(gradient)


# Relations between methods


def candidates_of(k=6):
  rng = np.random.default_rng(4)
  return jnp.asarray(rng.normal(size=(2, k)), jnp.float32), jnp.asarray(rng.normal(size=(3, 2, k)), jnp.float32)


def test_listnet_is_kl_plus_the_teachers_entropy():
  s, t = candidates_of()
  slope = lambda kd: jax.grad(lambda x: kd.loss(Outputs(x), Outputs(t[0]), {}).sum())(s)
  np.testing.assert_allclose(slope(listnet(temperature=2.0)) * 4, slope(kl(temperature=2.0)), rtol=1e-5, atol=1e-7)


def test_an_ensemble_of_one_is_kl_and_of_equals_too():
  s, t = candidates_of()
  alone = kl(temperature=2.0).loss(Outputs(s), Outputs(t[0]), {})
  for times in (1, 3):
    found = ensemble(temperature=2.0).loss(Outputs(s), Outputs(jnp.stack([t[0]] * times)), {})
    np.testing.assert_allclose(found, alone, rtol=1e-5)


def test_the_gate_starts_as_the_mean_and_learns_which_teacher_agrees():
  s, t = candidates_of()
  kd = gated()
  params = kd.adapter.init(jax.random.key(0), Outputs(s), Outputs(t), {})["params"]

  def total(params, teachers=t):
    return kd.loss(kd.adapter.apply({"params": params}, Outputs(s), Outputs(teachers), {}), Outputs(teachers), {}).sum()

  target = jnp.mean(jax.nn.sigmoid(t), axis=0)
  np.testing.assert_allclose(total(params), bce().loss(Outputs(s), Outputs(jnp.log(target / (1 - target))), {}).sum(),
                             rtol=1e-5)
  liked, disliked = jnp.full_like(s, 3.0), jnp.full_like(s, -3.0)
  agrees = jnp.stack([jnp.where(s > 0, liked, disliked), jnp.where(s > 0, disliked, liked), jnp.zeros_like(s)])
  gradient = jax.grad(lambda p: total(p, agrees))(params)
  assert gradient["bias"][0, 0, 0] < gradient["bias"][2, 0, 0] < gradient["bias"][1, 0, 0]


def test_an_item_of_two_teachers_lists_counts_once():
  view = view_of(np.array([[1, 2, 3], [3, 1, 4]]))
  for factory in (ensemble, gated):
    fields = factory(k=3).sample(jax.random.key(0), view)
    assert fields["items"].tolist() == [1, 2, 3, 3, 1, 4]
    assert fields["counted"].tolist() == [True, True, True, False, False, True]


@pytest.mark.parametrize(("factory", "options"), [(cd, {"guide": "both"}), (dcd, {"side": "left"}),
                                                   (mse, {"candidates": "some"}), (ensemble, {"candidates": "all"})])
def test_words_that_are_no_choice_are_refused(factory, options):
  with pytest.raises(InputError, match="choose from"):
    factory(**options)
