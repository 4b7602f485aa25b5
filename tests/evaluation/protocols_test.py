"""Protocols that are graphs of runs and learners: one step of each against a step written out by hand.

All networks are matrix factorisations, so that a hand-written step is a few lines of NumPy in float64.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import bpr

from kd_jax import data, registry
from kd_jax.base import PEER, STUDENT, TEACHER
from kd_jax.losses.bd import bd
from kd_jax.losses.ensemble import ensemble
from kd_jax.losses.gated import gated
from kd_jax.losses.kl import kl
from kd_jax.runs import loop
from kd_jax.storage import checkpoint, run_directory
from kd_jax.training import graph, step

U, I, RATE = 6, 9, 0.1  # noqa: E741 (as everywhere)
FULL = kl(temperature=2.0, candidates="full")
WIDTHS = {STUDENT: 3, PEER: 5, TEACHER: 4, "teacher1": 2}
USERS, ITEMS = np.array([0, 2, 2, 4]), np.array([[1, 7], [3, 0], [5, 8], [2, 6]])
KD_USERS, KD_WEIGHT = np.array([0, 2, 4, 0]), np.array([1.0, 2.0, 1.0, 0.0])  # by interactions; the last is padding
BATCH = {"users": USERS, "items": ITEMS, "weight": np.ones(4), "items_weight": np.ones((4, 2)), "kd_users": KD_USERS,
         "kd_users_weight": KD_WEIGHT}


def tables(name):
  rng = np.random.default_rng(list(WIDTHS).index(name))
  return {side: rng.normal(size=(n, WIDTHS[name])) for side, n in (("user", U), ("item", I))}


def make(learners, edges, kds, optimizer=None):
  """(run, given, state) of networks by name."""
  names = dict.fromkeys([*learners, *(name for edge in edges for name in edge)])

  def build(name):
    return registry.build("models", registry.Call("mf", (("dim", WIDTHS[name]),)), num_users=U, num_items=I)

  run = graph.Run(tuple((name, build(name)) for name in names), learners, edges, kds, bpr(),
                  optimizer or optax.sgd(RATE), "sum")

  def to_jax(name):
    return jax.tree.map(jnp.float32, tables(name))

  given = graph.Given({name: to_jax(name) for name in names if name not in learners}, {})
  state = step.init(jax.random.key(0), run, given, jax.tree.map(jnp.asarray, BATCH))
  params = state.params | {"networks": {name: to_jax(name) for name in learners}}
  return run, given, graph.TrainState(jnp.int32(0), params, run.optimizer.init(params))


def take_step(run, given, state, epoch=0):
  compiled = jax.jit(step.train_step, static_argnames="run")
  return compiled(state, given, {}, jax.tree.map(jnp.asarray, BATCH), jax.random.key(0), jnp.int32(epoch), run=run)


# By hand: gradients of the losses at scores, and of scores at tables.


def softmax(x):
  e = np.exp(x - x.max(axis=-1, keepdims=True))
  return e / e.sum(axis=-1, keepdims=True)


def base(t):
  """(loss, gradients) of BPR over the four rows."""
  gradient, loss = {k: np.zeros_like(v) for k, v in t.items()}, 0.0
  for u, (i, j) in zip(USERS, ITEMS, strict=True):
    p, q = t["user"][u], t["item"]
    wrong = 1 / (1 + np.exp(p @ (q[i] - q[j])))
    loss -= np.log(1 - wrong)
    gradient["user"][u] -= wrong * (q[i] - q[j])
    gradient["item"][i] -= wrong * p
    gradient["item"][j] += wrong * p
  return loss, gradient


def taught(t, target, tau=2.0):
  """(loss, gradients) of tau^2 KL(target || softmax(scores / tau)) over all items; target [4, I] is constant."""
  q = softmax(t["user"][KD_USERS] @ t["item"].T / tau)
  loss = tau**2 * (KD_WEIGHT * (target * np.log(target / q)).sum(axis=1)).sum()
  at_scores = tau * KD_WEIGHT[:, None] * (q - target)
  gradient = {"user": np.zeros_like(t["user"]), "item": at_scores.T @ t["user"][KD_USERS]}
  np.add.at(gradient["user"], KD_USERS, at_scores @ t["item"])
  return loss, gradient


def says(t, tau=2.0):
  return softmax(t["user"][KD_USERS] @ t["item"].T / tau)


def assert_step(found, name, *terms):
  """The tables after a step of SGD against `terms`, pairs of (weight, gradients)."""
  before, moved = tables(name), sum(np.abs(w) for w, _ in terms)
  for side in before:
    expected = before[side] - RATE * sum(w * g[side] for w, g in terms)
    np.testing.assert_allclose(found[side], expected, rtol=1e-4, atol=1e-5 * max(moved, 1), err_msg=f"{name} {side}")


def test_mutual_learning_is_one_step_of_each_towards_what_the_other_said():
  """Deep mutual learning (Zhang et al., CVPR 2018): both learn, and nobody learns from how it taught."""
  names = STUDENT, PEER
  run, given, state = make(names, (names, names[::-1]), ((0.7, FULL),))
  after, losses = take_step(run, given, state)
  a, b = tables(names[0]), tables(names[1])
  for name, own, other in ((names[0], a, b), (names[1], b, a)):
    loss, gradient = taught(own, says(other))
    assert_step(after.params["networks"][name], name, (1, base(own)[1]), (0.7, gradient))
    key = f"0:{name}<-{names[1 - names.index(name)]}"
    assert float(losses[key]) == pytest.approx(loss / 4, rel=1e-4)
  assert float(losses["base"]) == pytest.approx((base(a)[0] + base(b)[0]) / 4, rel=1e-4)


def test_a_method_of_one_learner_leaves_the_other_to_its_base_loss():
  names = STUDENT, PEER
  run, given, state = make(names, (names, names[::-1]), ((0.7, dataclasses.replace(FULL, learner=PEER)),))
  assert [e.learner for e in graph.edges(run)] == [PEER]
  networks = take_step(run, given, state)[0].params["networks"]
  a, b = tables(names[0]), tables(names[1])
  assert_step(networks[names[0]], names[0], (1, base(a)[1]))
  assert_step(networks[names[1]], names[1], (1, base(b)[1]), (0.7, taught(b, says(a))[1]))
  both = run._replace(kds=((0.5, bd()), (0.5, bd(learner="peer"))))
  assert [(e.learner, e.teachers) for e in graph.edges(both)] == [(names[0], (names[1],)), (names[1], (names[0],))]


def several(kd, weight=1.0):
  teachers = TEACHER, "teacher1"
  return make((STUDENT,), tuple((STUDENT, t) for t in teachers), ((weight, kd),)), teachers


def test_each_of_several_teachers_adds_its_term():
  (run, given, state), teachers = several(FULL, 0.5)
  after, losses = take_step(run, given, state)
  own = tables(STUDENT)
  terms = {t: taught(own, says(tables(t))) for t in teachers}
  assert_step(after.params["networks"][STUDENT], STUDENT, (1, base(own)[1]),
              *((0.5, gradient) for _, gradient in terms.values()))
  for t, (loss, _) in terms.items():
    assert float(losses[f"0:{STUDENT}<-{t}"]) == pytest.approx(loss / 4, rel=1e-4)


def test_an_ensemble_teaches_the_mean_of_its_probabilities():
  (run, given, state), teachers = several(ensemble(temperature=2.0, candidates="full"), 0.5)
  after, losses = take_step(run, given, state)
  own, mean = tables(STUDENT), sum(says(tables(t)) for t in teachers) / 2
  loss, gradient = taught(own, mean)
  assert float(losses[f"0:{STUDENT}<-{'+'.join(teachers)}"]) == pytest.approx(loss / 4, rel=1e-4)
  assert_step(after.params["networks"][STUDENT], STUDENT, (1, base(own)[1]), (0.5, gradient))


def test_a_gate_weighs_teachers_for_every_sample_and_learns_with_the_student():
  (run, given, state), teachers = several(gated(candidates="full"), 1.0)
  slope, bias = np.array([0.7, -0.4]), np.array([0.2, -0.5])
  (key,) = state.params["adapters"]
  gate = {"slope": jnp.float32(slope).reshape(2, 1, 1), "bias": jnp.float32(bias).reshape(2, 1, 1)}
  state = state._replace(params=state.params | {"adapters": {key: gate}})
  after, losses = take_step(run, given, state)
  own, sigmoid = tables(STUDENT), lambda x: 1 / (1 + np.exp(-x))
  scores = np.stack([tables(t)["user"][KD_USERS] @ tables(t)["item"].T for t in teachers])
  s = own["user"][KD_USERS] @ own["item"].T

  def of(slope, bias):
    weights = softmax(np.moveaxis(slope[:, None, None] * scores + bias[:, None, None], 0, -1))
    target = np.sum(weights * np.moveaxis(sigmoid(scores), 0, -1), axis=-1)
    loss = -target * np.log(sigmoid(s)) - (1 - target) * np.log(1 - sigmoid(s))
    return (KD_WEIGHT * loss.mean(axis=1)).sum(), target

  loss, target = of(slope, bias)
  assert float(losses[key]) == pytest.approx(loss / 4, rel=1e-4)
  at_scores = KD_WEIGHT[:, None] * (sigmoid(s) - target) / I
  gradient = {"user": np.zeros_like(own["user"]), "item": at_scores.T @ own["user"][KD_USERS]}
  np.add.at(gradient["user"], KD_USERS, at_scores @ own["item"])
  assert_step(after.params["networks"][STUDENT], STUDENT, (1, base(own)[1]), (1, gradient))
  for n, e in enumerate(np.eye(2) * 1e-5):
    slopes, biases = ((of(slope + x * e, bias + (1 - x) * e)[0] - of(slope - x * e, bias - (1 - x) * e)[0]) / 2e-5
                      for x in (1, 0))
    found = after.params["adapters"][key]
    assert float(found["slope"][n, 0, 0]) == pytest.approx(slope[n] - RATE * slopes, rel=1e-4)
    assert float(found["bias"][n, 0, 0]) == pytest.approx(bias[n] - RATE * biases, rel=1e-4)


SCHEDULES = [
  ("linear_schedule(init_value=0.0, end_value=2.0, transition_steps=4)", [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]),  # warm-up
  ("exponential_decay(init_value=2.0, transition_steps=1, decay_rate=0.5)", [2.0, 1.0, 0.5, 0.25, 0.125, 0.0625]),
]


@pytest.mark.parametrize(("schedule", "weights"), SCHEDULES)
def test_a_weight_follows_its_schedule_by_epoch(schedule, weights):
  ((weight, _),) = registry.parse_sum("losses", f"{schedule}*kl()", "kd")
  run, given, state = make((STUDENT,), ((STUDENT, TEACHER),),
                           ((registry.build_schedule(weight), FULL),))
  own = tables(STUDENT)
  loss, gradient = taught(own, says(tables(TEACHER)))
  for epoch, expected in enumerate(weights):
    after, losses = take_step(run, given, state, epoch)
    assert_step(after.params["networks"][STUDENT], STUDENT, (1, base(own)[1]), (expected, gradient))
    assert float(losses[f"0:{STUDENT}<-{TEACHER}"]) == pytest.approx(loss / 4, rel=1e-4), "unweighted"


def test_epochs_of_a_schedule_are_counted_in_steps_of_the_run():
  """Two epochs of two steps: the weight changes after the second step, not after each."""
  schedule = optax.piecewise_constant_schedule(3.0, {1: 0.0})  # 3, then 0
  run, given, state = make((STUDENT,), ((STUDENT, TEACHER),), ((schedule, FULL),))
  plain, _, _ = make((STUDENT,), (), ())
  batches = jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * 2), BATCH)
  epoch = jax.jit(step.train_epoch, static_argnames="run")
  first, _ = epoch(state, given, {}, batches, jax.random.key(0), run=run)
  second, _ = epoch(first, given, {}, batches, jax.random.key(0), run=run)
  alone, _ = epoch(first, given, {}, batches, jax.random.key(0), run=plain)
  for a, b in zip(jax.tree.leaves(second.params), jax.tree.leaves(alone.params), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
  apart, _ = epoch(state, given, {}, batches, jax.random.key(0), run=plain)
  assert np.abs(np.asarray(first.params["networks"][STUDENT]["user"]) -
                np.asarray(apart.params["networks"][STUDENT]["user"])).max() > 0.1


CHAINS = {"generations": ("mf(dim=16)", "mf(dim=16)"), "teacher assistant": ("mf(dim=8)", "mf(dim=4)")}


@pytest.mark.parametrize("protocol", CHAINS)
def test_a_run_of_a_chain_learns_from_the_run_before(protocol, teacher, flags, small, tmp_path):
  """Born-again networks (Furlanello et al., ICML 2018), teacher assistants (Mirzadeh et al., AAAI 2020).

  The last run has one batch an epoch and hardly moves: its loss is that of the parameters it saves.
  """
  middle, last = CHAINS[protocol]

  def run(place, of, *own):
    kd = "--kd=kl(temperature=2.0, candidates='full')"
    return loop.train(flags(*small, kd, f"--teacher={of}", f"--workdir={tmp_path / place}", *own))

  run("middle", teacher, f"--model={middle}")
  run("last", tmp_path / "middle", f"--model={last}", "--epochs=1", "--batch_size=4096", "--optimizer=sgd",
      "--learning_rate=1e-9")
  dataset = data.load(small[0].partition("=")[2])
  counts = np.bincount(dataset.train.users, minlength=dataset.num_users)

  def network(place):
    return {k: np.float64(v) for k, v in checkpoint.restore_best(place)[0]["student"].items()}

  own, *before = (network(place) for place in (tmp_path / "last", tmp_path / "middle", teacher))
  q = softmax(own["user"] @ own["item"].T / 2)

  def loss(of):
    p = softmax(of["user"] @ of["item"].T / 2)
    return 4 * (counts * (p * np.log(p / q)).sum(axis=1)).sum() / counts.sum()

  (line,) = run_directory.read_metrics(tmp_path / "last")
  found = line["loss"][f"0:{STUDENT}<-{TEACHER}"]
  assert found == pytest.approx(loss(before[0]), rel=1e-4) and found != pytest.approx(loss(before[1]), rel=1e-2)
  first, *_, end = (x["loss"][f"0:{STUDENT}<-{TEACHER}"] for x in run_directory.read_metrics(tmp_path / "middle"))
  assert end < first
