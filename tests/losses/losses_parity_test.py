"""Every shipped loss against its formula in float64 and loops, in value and gradient."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.base import Outputs, Ranked, View
from kd_jax.losses.bce import bce
from kd_jax.losses.kl import kl
from kd_jax.losses.rcekd import rcekd
from kd_jax.losses.rrd import rrd

pytestmark = pytest.mark.short
ROWS, ITEMS = 3, 30


def softmax(x):
  powers = [math.exp(v - max(x)) for v in x]
  return [p / sum(powers) for p in powers]


def sigmoid(x):
  return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def cross_entropy(t, s):
  return -sum(p * math.log(q) for p, q in zip(softmax(t), softmax(s), strict=True))


def listed(scores, options, t, s):
  """The candidates: all items, or the best k by the teacher or by the student."""
  if options["candidates"] == "full":
    return range(len(scores))
  by = t if options["candidates"] == "teacher" else s
  return sorted(range(len(scores)), key=lambda i: (-by[i], i))[: options["k"]]


def kl_reference(s, t, items, options):
  tau = options["temperature"]
  candidates = listed(s, options, t, options["student"])
  p = softmax([t[i] / tau for i in candidates])
  q = softmax([s[i] / tau for i in candidates])
  return tau**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def bce_reference(s, t, items, options):
  tau, total = options["temperature"], 0.0
  candidates = listed(s, options, t, options["student"])
  for i in candidates:
    target, likes = sigmoid(t[i] / tau), sigmoid(s[i] / tau)
    total -= target * math.log(likes) + (1 - target) * math.log(1 - likes)
  return total / len(candidates)


def rrd_reference(s, t, items, options):
  """Minus the log of the product over k of e^{s_k} / (sum_{i >= k} e^{s_i} + sum over uninteresting)."""
  interesting, uninteresting = items[: options["k"]], items[options["k"] :]
  likelihood = 1.0
  for place, item in enumerate(interesting):
    left = [*interesting[place:], *uninteresting]
    likelihood *= math.exp(s[item]) / sum(math.exp(s[i]) for i in left)
  return -math.log(likelihood)


def rcekd_reference(s, t, items, options):
  k, tau = options["k"], options["temperature"]

  def best(scores):
    return sorted(range(len(scores)), key=lambda i: -scores[i])

  q_s, q_t = best(options["student"])[:k], best(t)[:k]
  drawn = list(items[k : k + options["sampled"]])
  second = drawn + [i for i in q_t if i not in drawn and i not in q_s]
  g = math.exp(-options["beta"] * len(set(q_t) & set(drawn)) / k)

  def ce(items):
    return cross_entropy([t[i] / tau for i in items], [s[i] / tau for i in items])

  return (1 - g) * ce(q_s) + g * ce(second)


CASES = [
  *((kl, kl_reference, {"temperature": tau, "candidates": c, "k": 7})
    for c in ("full", "teacher", "student") for tau in (1.0, 2.5)),
  *((bce, bce_reference, {"temperature": tau, "candidates": c, "k": 7})
    for c in ("full", "teacher", "student") for tau in (1.0, 2.5)),
  (rrd, rrd_reference, {"k": 5, "uninteresting": 6, "depth": 12, "temperature": 4.0}),
  (rrd, rrd_reference, {"k": 1, "uninteresting": 1, "depth": 3}),
  (rcekd, rcekd_reference, {"k": 6, "sampled": 5, "depth": 15, "temperature": 1.7, "beta": 0.9}),
  (rcekd, rcekd_reference, {"k": 4, "sampled": 9, "depth": 30, "temperature": 1.0, "beta": 3.0}),
]
IDS = [f"{f.__name__}-{'-'.join(map(str, o.values()))}" for f, _, o in CASES]


def ranked(scores, k):
  items = np.argsort(-scores, kind="stable")[:k]
  return Ranked(jnp.asarray(items, jnp.int32), jnp.asarray(scores[items], jnp.float32)) if k else None


def make(factory, options, seed, scale=2.0):
  """(kd, student [ROWS, ITEMS], teacher, targets): targets by the method's sampler, row by row."""
  rng = np.random.default_rng(seed)
  student, teacher = (rng.normal(size=(2, ROWS, ITEMS)) * scale).astype(np.float32).astype(np.float64)
  kd = factory(**options)
  targets = []
  for row in range(ROWS):
    best = np.argsort(-teacher[row])[: kd.lists.teacher]
    unseen = rng.permutation(np.setdiff1d(np.arange(ITEMS), best))[: kd.lists.unseen]
    view = View(**dict.fromkeys(View._fields) | {
        "user": jnp.int32(row), "teacher": ranked(teacher[row], kd.lists.teacher),
        "student": ranked(student[row], kd.lists.student), "unseen": jnp.asarray(unseen, jnp.int32)})
    sample = kd.sample or (lambda key, view: {"items": jnp.arange(ITEMS)})
    targets.append(sample(jax.random.key(seed * 100 + row), view))
  return kd, student, teacher, jax.tree.map(lambda *x: jnp.stack(x), *targets)


def losses(kd, student, teacher, targets):
  def pick(scores):
    return jnp.take_along_axis(jnp.asarray(scores, jnp.float32), targets["items"], axis=1)

  return kd.loss(Outputs(pick(student)), Outputs(targets.get("teacher", pick(teacher))), targets)


@pytest.mark.parametrize(("factory", "reference", "options"), CASES, ids=IDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_value_is_the_formula(factory, reference, options, seed):
  kd, student, teacher, targets = make(factory, options, seed)
  expected = [reference(student[r], teacher[r], targets["items"][r].tolist(), options | {"student": student[r]})
              for r in range(ROWS)]
  found = losses(kd, student, teacher, targets)
  assert found.shape == (ROWS,)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)  # float32 rounds scores of size 1


@pytest.mark.parametrize(("factory", "reference", "options"), CASES, ids=IDS)
def test_gradient_is_the_central_difference_of_the_formula(factory, reference, options):
  kd, student, teacher, targets = make(factory, options, 2)
  gradient = jax.grad(lambda s: losses(kd, s, teacher, targets).sum())(jnp.asarray(student, jnp.float32))
  expected, step = np.zeros_like(student), 1e-5
  for r in range(ROWS):
    for i in range(ITEMS):
      ends = []
      for sign in (1, -1):
        moved = student[r].copy()
        moved[i] += sign * step
        ends.append(reference(moved, teacher[r], targets["items"][r].tolist(), options | {"student": student[r]}))
      expected[r, i] = (ends[0] - ends[1]) / (2 * step)
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=2e-6)
  assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize(("factory", "reference", "options"), CASES, ids=IDS)
def test_scores_of_ten_thousand_give_finite_values_and_gradients(factory, reference, options):
  kd, student, teacher, targets = make(factory, options, 3)
  for s_scale, t_scale in ((1e4, 1e4), (-1e4, 1e4), (1e4, 0.0)):
    s, t = (np.clip(x * f, -1e4, 1e4) for x, f in ((student, s_scale), (teacher, t_scale)))
    if "teacher" in targets:
      targets["teacher"] = jnp.take_along_axis(jnp.asarray(t, jnp.float32), targets["items"], axis=1)
    value, gradient = jax.value_and_grad(lambda s, t=t: losses(kd, s, t, targets).sum())(
        jnp.asarray(s, jnp.float32))
    assert np.isfinite(value) and np.isfinite(gradient).all()


def loss_of(kd, student, teacher, **fields):
  return float(kd.loss(Outputs(jnp.array([student])), Outputs(jnp.array([teacher])), fields)[0])


def test_kl_of_two_items_by_hand():
  # p = (1/4, 3/4), q = (1/2, 1/2)
  by_hand = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
  assert loss_of(kl(candidates="full"), [5.0, 5.0], [0.0, math.log(3)]) == pytest.approx(by_hand, rel=1e-6)
  assert loss_of(kl(temperature=2.0, candidates="full"), [1.0, 1.0], [0.0, 2 * math.log(3)]) == (
      pytest.approx(4 * by_hand, rel=1e-6))


def test_bce_of_one_item_by_hand():
  # target 3/4; the student says 1/2, whatever the target that costs log 2
  assert loss_of(bce(candidates="full"), [0.0], [math.log(3)]) == pytest.approx(math.log(2), rel=1e-6)
  # the student says 1/4
  by_hand = -0.75 * math.log(0.25) - 0.25 * math.log(0.75)
  assert loss_of(bce(candidates="full"), [-math.log(3)], [math.log(3)]) == pytest.approx(by_hand, rel=1e-6)


def test_rrd_of_equal_scores_counts_what_is_left():
  kd = rrd(k=3, uninteresting=2, depth=3)
  by_hand = math.log(5) + math.log(4) + math.log(3)
  assert loss_of(kd, [1.0] * 5, [0.0] * 5) == pytest.approx(by_hand, rel=1e-6)


def test_rrd_prefers_the_teachers_order_and_interesting_items():
  kd = rrd(k=2, uninteresting=2, depth=2)
  right, swapped, upside_down = ([3.0, 2.0, 0.0, 0.0], [2.0, 3.0, 0.0, 0.0], [0.0, 0.0, 2.0, 3.0])

  def of(scores):
    return loss_of(kd, scores, [0.0] * 4)

  assert of(right) < of(swapped) < of(upside_down)
  assert of([3.0, 2.0, 0.0, 1.0]) == pytest.approx(of([3.0, 2.0, 1.0, 0.0]), rel=1e-6)


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("factory", [kl, bce])
def test_lists_are_those_asked_for(factory, exclude_seen):
  by_teacher = factory(candidates="teacher", k=9, exclude_seen=exclude_seen).lists
  by_student = factory(candidates="student", k=9, exclude_seen=exclude_seen).lists
  assert (by_teacher.teacher, by_teacher.student, by_teacher.exclude_seen) == (9, 0, exclude_seen)
  assert (by_student.teacher, by_student.student, by_student.exclude_seen) == (0, 9, exclude_seen)
  assert factory(candidates="full").sample is None
