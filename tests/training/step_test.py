"""Steps of training written out in NumPy, and what weighs what."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import bpr

from kd_jax import registry
from kd_jax.base import KD, STUDENT, TEACHER, Outputs
from kd_jax.devices import parallel
from kd_jax.losses.kl import kl
from kd_jax.optimizers.adam import adam
from kd_jax.optimizers.adamw import adamw
from kd_jax.optimizers.sgd import sgd
from kd_jax.training import graph, step

U, I, D = 6, 9, 3  # noqa: E741 (as everywhere)
NOTHING = graph.Given({}, {})
KEY = f"0:{STUDENT}<-{TEACHER}"


def mf(dim=D):
  return registry.build("models", registry.Call("mf", (("dim", dim),)), num_users=U, num_items=I)


def tables(seed, dim=D):
  rng = np.random.default_rng(seed)
  return {"user": rng.normal(size=(U, dim)), "item": rng.normal(size=(I, dim))}


def to_jax(tree):
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def make_run(optimizer, reduction="sum", kds=()):
  networks = ((STUDENT, mf()), (TEACHER, mf(4)))
  edges = ((STUDENT, TEACHER),) if kds else ()
  return graph.Run(networks[: 1 + bool(kds)], (STUDENT,), edges, tuple(kds), bpr(), optimizer, reduction)


def start(run, params):
  params = {"networks": {STUDENT: to_jax(params)}, "adapters": {}}
  return graph.TrainState(jnp.int32(0), params, run.optimizer.init(params))


def a_batch(seed, weight=None):
  """Five rows of a positive and two negatives; users and items occur twice. User 5 and item 8 never."""
  rng = np.random.default_rng(seed)
  users = np.array([0, 2, 2, 4, 1])
  items = rng.integers(0, 8, size=(5, 3))
  weight = np.ones(5, np.float32) if weight is None else weight
  batch = {"users": users, "items": items, "weight": weight, "items_weight": np.repeat(weight[:, None], 3, axis=1)}
  for side, column in (("kd_users", users), ("kd_items", items[:, 0])):
    who, count = np.unique(column, return_counts=True)
    padding = (0, 5 - len(who))
    batch |= {side: np.pad(who, padding), f"{side}_weight": np.pad(count, padding).astype(np.float32)}
  return batch


def bpr_by_hand(params, batch):
  """(loss, gradients) summed over rows, mean over negatives, in loops."""
  loss, gradient = 0.0, {k: np.zeros_like(v) for k, v in params.items()}
  for user, items, weight in zip(batch["users"], batch["items"], batch["weight"], strict=True):
    p, q = params["user"][user], params["item"]
    for negative in items[1:]:
      difference = p @ q[items[0]] - p @ q[negative]
      share = weight / (len(items) - 1)
      loss -= share * math.log(1 / (1 + math.exp(-difference)))
      slope = -share / (1 + math.exp(difference))
      gradient["user"][user] += slope * (q[items[0]] - q[negative])
      gradient["item"][items[0]] += slope * p
      gradient["item"][negative] -= slope * p
  return loss, gradient


def adam_by_hand(params, gradients_of, steps, rate, decay):
  """Adam of Kingma, Ba 2015, alg. 1, L2 added to the gradient of every row."""
  m, v = ({k: np.zeros_like(x) for k, x in params.items()} for _ in range(2))
  for t in range(1, steps + 1):
    gradients = gradients_of(params, t)
    for k in params:
      g = gradients[k] + decay * params[k]
      m[k], v[k] = 0.9 * m[k] + 0.1 * g, 0.999 * v[k] + 0.001 * g**2
      params = params | {k: params[k] - rate * (m[k] / (1 - 0.9**t)) / (np.sqrt(v[k] / (1 - 0.999**t)) + 1e-8)}
  return params


def run_steps(run, state, steps, given=NOTHING, targets=None):
  losses = []
  for t in range(1, steps + 1):
    state, loss = step.train_step(state, given, targets or {}, a_batch(t), jax.random.key(0), run=run)
    losses.append({k: float(v) for k, v in loss.items()})
  return state.params["networks"][STUDENT], losses


def assert_tables(found, expected, rtol=1e-5):
  for k in expected:
    np.testing.assert_allclose(found[k], expected[k], rtol=rtol, atol=1e-6, err_msg=k)


def test_one_step_of_sgd_is_bpr_by_hand():
  params = tables(0)
  loss, gradient = bpr_by_hand(params, a_batch(1))
  run = make_run(sgd(0.1, 0.0, None))
  found, losses = run_steps(run, start(run, params), 1)
  assert losses[0]["base"] == pytest.approx(loss / 5, rel=1e-5)
  assert_tables(found, {k: params[k] - 0.1 * gradient[k] for k in params})


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_three_steps_of_adam_with_coupled_l2_by_hand(decay):
  params = tables(1)
  expected = adam_by_hand(params, lambda p, t: bpr_by_hand(p, a_batch(t))[1], 3, rate=0.02, decay=decay)
  run = make_run(adam(0.02, decay, None))
  assert_tables(run_steps(run, start(run, params), 3)[0], expected)


def test_coupled_l2_decays_rows_outside_the_batch_and_adamw_decays_otherwise():
  params = tables(2)
  outside = {"user": 5, "item": 8}
  found = {}
  for name, optimizer in (("adam", adam), ("adamw", adamw)):
    run = make_run(optimizer(0.02, 0.3, None))
    found[name] = run_steps(run, start(run, params), 1)[0]
  for k, row in outside.items():
    before = params[k][row]
    # Adam's first step has the length of the rate, whatever the gradient; here that is the decay alone.
    np.testing.assert_allclose(found["adam"][k][row], before - 0.02 * np.sign(before), rtol=1e-4)
    np.testing.assert_allclose(found["adamw"][k][row], before * (1 - 0.02 * 0.3), rtol=1e-5)


def test_sgd_with_decay_adds_it_to_the_gradient():
  params = tables(3)
  gradient = bpr_by_hand(params, a_batch(1))[1]
  run = make_run(sgd(0.1, 0.3, None))
  assert_tables(run_steps(run, start(run, params), 1)[0],
                {k: params[k] - 0.1 * (gradient[k] + 0.3 * params[k]) for k in params})


def test_mean_reduction_divides_by_the_rows_that_count():
  params, weight = tables(4), np.array([1, 1, 0, 1, 0], np.float32)
  batch = a_batch(1, weight)
  loss, gradient = bpr_by_hand(params, batch)
  run = make_run(sgd(0.1, 0.0, None), reduction="mean")
  state, losses = step.train_step(start(run, params), NOTHING, {}, batch, jax.random.key(0), run=run)
  assert float(losses["base"]) == pytest.approx(loss / 3, rel=1e-5)
  assert_tables(state.params["networks"][STUDENT], {k: params[k] - 0.1 * gradient[k] / 3 for k in params})


def test_base_losses_by_hand():
  rows = [[1.3, -0.4, 2.0], [0.0, 5.0, -5.0]]

  def sigmoid(x):
    return 1 / (1 + math.exp(-x))

  def log(x):
    return -math.log(x)

  expected = {
      "bpr": [sum(log(sigmoid(r[0] - n)) for n in r[1:]) / 2 for r in rows],
      "bce": [log(sigmoid(r[0])) + sum(log(1 - sigmoid(n)) for n in r[1:]) for r in rows],
      "softmax": [log(math.exp(r[0]) / sum(map(math.exp, r))) for r in rows]}
  made = {name: registry.build("objectives", registry.Call(name)) for name in registry.names("objectives")}
  assert set(expected) == {n for n, x in made.items() if "interactions" in x.on and not x.all_items}
  for name, values in expected.items():
    found = made[name].loss(Outputs(jnp.array(rows)), {}, jax.random.key(0))
    np.testing.assert_allclose(found, values, rtol=1e-5)


def test_a_padded_batch_gives_what_the_rows_alone_give():
  run = make_run(adam(0.02, 0.1, None), kds=[(0.7, kl(candidates="full"))])
  given = graph.Given({TEACHER: to_jax(tables(9, 4))}, {})
  batch = a_batch(1)
  padded = {k: np.concatenate([v, np.zeros((3, *v.shape[1:]), v.dtype)]) for k, v in batch.items()}

  def after(b):
    return step.train_step(start(run, tables(5)), given, {}, b, jax.random.key(0), run=run)

  for a, b in zip(jax.tree.leaves(after(batch)), jax.tree.leaves(after(padded)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kd_per", ["interaction", "user"])
def test_distillation_is_weighed_by_interactions_or_by_users(kd_per):
  run = make_run(sgd(0.1, 0.0, None), kds=[(1.0, kl(candidates="full"))])
  teacher, params, batch = tables(9, 4), tables(6), a_batch(1)
  if kd_per == "user":
    batch["kd_users_weight"] = np.minimum(batch["kd_users_weight"], 1)

  def of(user):
    t, s = (x["user"][user] @ x["item"].T for x in (teacher, params))
    p, q = (np.exp(x) / np.exp(x).sum() for x in (t, s))
    return (p * np.log(p / q)).sum()

  users = batch["users"] if kd_per == "interaction" else sorted(set(batch["users"]))
  given = graph.Given({TEACHER: to_jax(teacher)}, {})
  _, losses = step.train_step(start(run, params), given, {}, batch, jax.random.key(0), run=run)
  assert 5 * float(losses[KEY]) == pytest.approx(sum(of(u) for u in users), rel=1e-5)


@pytest.mark.parametrize("rows", [2, 5])  # of few there are fewer than items
def test_sampled_items_are_rows_beside_the_positives(rows):
  of_users = KD(lambda student, teacher, batch: student.scores[:, 0], sample=lambda rng, view: {"items": view.unseen})
  of_items = dataclasses.replace(of_users, rows="items", sampled_items=True)
  run = make_run(sgd(0.1, 0.0, None), kds=[(1.0, of_users), (1.0, of_items)])
  rng, params, batch = np.random.default_rng(0), tables(6), a_batch(1)
  batch |= {name: batch[name][:rows] for name in ("kd_users", "kd_users_weight", "kd_items", "kd_items_weight")}
  keys = [f"{i}:{STUDENT}<-{TEACHER}" for i in range(2)]
  targets = {keys[0]: {"items": rng.integers(I, size=(U, 2))}, keys[1]: {"items": rng.integers(U, size=(I, 1))}}

  weight = {}
  for item, w in zip(batch["kd_items"], batch["kd_items_weight"], strict=True):
    weight[item] = max(weight.get(item, 0), w)
  for user, w in zip(batch["kd_users"], batch["kd_users_weight"], strict=True):
    for item in targets[keys[0]]["items"][user]:
      weight[item] = max(weight.get(item, 0), w)
  assert len({w for w in weight.values() if w}) > 1 and (len(weight) < I or rows == 5)
  expected = sum(w * (params["user"][targets[keys[1]]["items"][i, 0]] @ params["item"][i]) for i, w in weight.items())

  given = graph.Given({TEACHER: to_jax(tables(9, 4))}, {})
  _, losses = step.train_step(start(run, params), given, jax.tree.map(jnp.asarray, targets), batch, jax.random.key(0),
                               run=run)
  assert 5 * float(losses[keys[1]]) == pytest.approx(expected, rel=1e-5)
  (_, _), (found, _) = step.per_example_loss(
      {"networks": {STUDENT: to_jax(params)}, "adapters": {}}, given, batch, jax.tree.map(jnp.asarray, targets),
      jax.random.key(0), run=run)[1].values()
  assert len(found) == min(I, 3 * rows)


def test_the_update_is_of_base_plus_weighted_methods():
  kds = [(0.5, kl(candidates="full")), (2.0, kl(candidates="full", temperature=3.0))]
  given = graph.Given({TEACHER: to_jax(tables(9, 4))}, {})
  moves = []
  for chosen in ([], kds[:1], kds[1:], kds):
    run = make_run(sgd(0.1, 0.0, None), kds=chosen)
    moves.append(run_steps(run, start(run, tables(7)), 1, given)[0])
  for k in ("user", "item"):
    base, first, second, both = (np.asarray(m[k], np.float64) for m in moves)
    np.testing.assert_allclose(both, first + second - base, rtol=1e-4, atol=1e-5)
    assert np.abs(first - base).max() > 1e-3


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_the_base_loss_has_a_weight_too(weight):
  kds, moves = [(0.5, kl(candidates="full"))], []
  given = graph.Given({TEACHER: to_jax(tables(9, 4))}, {})
  for own, chosen in ((1.0, []), (0.0, kds), (weight, kds)):
    run = make_run(sgd(0.1, 0.0, None), kds=chosen)._replace(loss_weight=own)
    found, losses = run_steps(run, start(run, tables(7)), 1, given)
    moves.append({k: np.asarray(found[k], np.float64) - tables(7)[k] for k in found})
    assert losses[0]["base"] > 0  # what is logged is not weighted
  for k in ("user", "item"):
    base, method, both = (m[k] for m in moves)
    np.testing.assert_allclose(both, weight * base + method, rtol=1e-4, atol=1e-5)


class Same(nn.Module):
  """An adapter with a parameter, that changes nothing."""

  @nn.compact
  def __call__(self, student, teacher, batch):
    one = self.param("one", nn.initializers.ones, ())
    return student._replace(scores=one * student.scores)


def test_an_adapter_is_initialised_beside_a_method_of_sampled_users_of_items():
  of_items = KD(lambda student, teacher, batch: student.scores[:, 0], rows="items",
                sample=lambda rng, view: {"items": jnp.zeros(2, jnp.int32)})
  run = make_run(sgd(0.1, 0.0, None),
                 kds=[(1.0, dataclasses.replace(kl(candidates="full"), adapter=Same())), (1.0, of_items)])
  batch = jax.tree.map(jnp.asarray, a_batch(1))
  state = step.init(jax.random.key(0), run, graph.Given({TEACHER: to_jax(tables(9, 4))}, {}), batch)
  assert jax.tree.leaves(state.params["adapters"]) == [1.0]


def test_lists_side_by_side_are_separate_applies():
  rng = np.random.default_rng(0)
  batch = a_batch(1)
  users = batch["kd_users"]
  asked = {"base": batch, "all": {"users": users},
           "a": {"users": users, "items": rng.integers(0, I, (len(users), 4))},
           "b": {"users": users, "items": rng.integers(0, I, (len(users), 11))}}
  variables = {"params": to_jax(tables(8)), "constants": {}}
  outs = step.forward(mf(), variables, asked)
  for key, one in asked.items():
    expected = mf().apply(variables, one)
    for a, b in zip(outs[key], expected, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["jit", "pmap"])
def test_an_epoch_leaves_the_teacher_as_it_was(name):
  run = make_run(adam(0.1, 0.5, None), kds=[(5.0, kl(candidates="full"))])
  given = graph.Given({TEACHER: to_jax(tables(9, 4))}, {})
  before = jax.tree.map(np.array, given.params)
  epoch = jax.tree.map(lambda *x: np.stack(x), a_batch(1), a_batch(2))
  state, _ = parallel.compile_epoch(run, name, 5)(start(run, tables(5)), given, {}, epoch, jax.random.key(0))
  assert set(state.params["networks"]) == {STUDENT}
  assert all(np.array_equal(a, b) for a, b in
             zip(jax.tree.leaves(before), jax.tree.leaves(given.params), strict=True))


def test_an_epoch_is_its_steps():
  run = make_run(adam(0.1, 0.0, None))
  epoch = jax.tree.map(lambda *x: np.stack(x), a_batch(1), a_batch(2))
  found, losses = step.train_epoch(start(run, tables(5)), NOTHING, {}, epoch, jax.random.key(0), run=run)
  expected, each = run_steps(run, start(run, tables(5)), 2)
  assert_tables(found.params["networks"][STUDENT], expected)
  assert float(losses["base"]) == pytest.approx((each[0]["base"] + each[1]["base"]) / 2, rel=1e-5)
  assert int(found.step) == 2
