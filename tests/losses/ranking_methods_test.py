"""Methods that distil rankings: values and gradients against loops written from the formulas."""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.base import Outputs, Ranked, View
from kd_jax.losses import _lists
from kd_jax.losses.bd import bd
from kd_jax.losses.cd import cd
from kd_jax.losses.dcd import dcd
from kd_jax.losses.dllm2rec import dllm2rec
from kd_jax.losses.ensemble import ensemble
from kd_jax.losses.gated import gated
from kd_jax.losses.hetcomp import hetcomp
from kd_jax.losses.ir_rrd import ir_rrd
from kd_jax.losses.listnet import listnet
from kd_jax.losses.mse import mse
from kd_jax.losses.rd import rd
from kd_jax.losses.unkd import unkd

ROWS, ITEMS, TEACHERS = 3, 30, 3


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


SEEN = [3, 11, 17]  # training items of every user, fewer than are asked for


def hetcomp_formula(s, t, o, fields):
  k, n, stage = o["k"], o["unseen"], o["stage"]
  top, drawn, seen = best(t[stage], k), fields["items"][k : k + n], SEEN
  elsewhere = {i for other in t for i in best(other, k)} - set(top)  # in the lists of other stages
  unseen = sum(math.exp(s[i]) for i in drawn) * (ITEMS - k - len(elsewhere)) / n  # the rest
  unseen += sum(math.exp(s[i]) for i in elsewhere)
  if stage < TEACHERS - 1:
    return 2 * sum(-math.log(math.exp(s[i]) / (math.exp(s[i]) + unseen)) for i in [*top, *seen])

  def ordered(m):
    product = 1.0
    for place in range(m):
      product *= math.exp(s[top[place]]) / (sum(math.exp(s[i]) for i in top[place:]) + unseen)
    return -math.log(product)

  mine = seen if o.get("first") else sorted(seen, key=lambda i: -t[stage][i])
  behind = sum(math.exp(s[i]) for i in top[k // 2:]) + unseen
  observed = sum(-math.log(math.exp(s[i]) / (sum(math.exp(s[j]) for j in mine[place:]) + behind))
                 for place, i in enumerate(mine))
  return observed + (ordered(k // 2) + ordered(k // 10)) / 2


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
HETCOMP = {"k": 10, "unseen": 6, "observed": 5}
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
    *(Case(hetcomp, hetcomp_formula, HETCOMP | {"first": True}, stage=stage) for stage in (0, TEACHERS - 1)),
    Case(dllm2rec, dllm2rec_formula, {"k": 6, "position": 0.3, "confidence": 0.5, "consistency": 0.1, "decay": 1.0}),
    Case(bd, bd_formula, {"sampled": 6, "temperature": 5.0, "depth": 15}),
    Case(bd, bd_formula, {"learner": "peer", "sampled": 6, "temperature": 5.0, "depth": 15}),
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
              jnp.asarray(POPULARITY, jnp.int32), jnp.array([*SEEN, -1, -1]), priority=jnp.arange(len(POPULARITY)))


def make(case, seed, scale=2.0):
  """(kd, student [ROWS, ITEMS], teacher [ROWS, (E,) ITEMS], targets)."""
  rng = np.random.default_rng(seed)
  kd = case.factory(**case.options)

  def draw(*shape):
    return (rng.normal(size=shape) * scale).astype(np.float32).astype(np.float64)

  student = draw(ROWS, ITEMS)
  teacher = draw(ROWS, TEACHERS, ITEMS) if kd.all_teachers else draw(ROWS, ITEMS)
  keys = jax.random.split(jax.random.key(seed), ROWS)
  rows = [kd.sample(keys[r], make_view(kd, student[r], teacher[r], rng, case)) for r in range(ROWS)]
  return kd, student, teacher, jax.tree.map(lambda *x: jnp.stack(x), *rows) | {"epoch": case.epoch}


def losses(kd, student, teacher, targets):
  def pick(x):
    return jnp.take_along_axis(jnp.asarray(x, jnp.float32), targets["items"], axis=1)

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


def test_trap_b_the_likelihood_of_large_scores_is_finite_and_exact():
  """cumsum(exp) overflows at 89 in float32, and clamping at 80 as the public code does is another loss."""
  top, others = np.array([[300.0, 290.0, 310.0]]), np.array([[305.0, 100.0]])
  found = _lists.plackett_luce(jnp.asarray(top), jnp.asarray(others))
  assert float(found[0]) == pytest.approx(likelihood(np.append(top, others) - 300, [0, 1, 2], [3, 4]), rel=1e-6)
