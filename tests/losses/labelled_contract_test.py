"""Every distillation method on batches of labelled data, found by file name, and what such batches are."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import methods_contract_test as contract
import numpy as np
import optax
import pytest
from conftest import build_labelled, quickly

from kd_jax import registry
from kd_jax.base import STUDENT, TEACHER, InputError, Outputs
from kd_jax.evaluation import protocols
from kd_jax.objectives import bce, softmax
from kd_jax.teachers import loading
from kd_jax.training import batches, graph, kd_targets, step

LOGISTIC = bce()  # one object, so that equal runs compile once
CONTEXTS, LABELS, BATCH = 40, 950, 16


def make_run(dataset, *kds, learners=(STUDENT,)):
  """MLPs of width 8 and a live teacher; two if the methods hear all at once."""
  widths = dict.fromkeys(learners, 8) | {TEACHER: 12}
  widths |= {"teacher2": 10} if kds and kds[0].all_teachers else {}
  modules = {name: loading.build_model(f"mlp(hidden=({width},))", dataset) for name, width in widths.items()}
  edges = tuple((name, other) for name in learners for other in modules if other not in learners)
  return graph.Run(tuple(modules.items()), learners, edges, tuple((1.0, kd) for kd in kds), LOGISTIC,
                   optax.sgd(0.1), "sum")


def build(dataset, *kds, learners=(STUDENT,)):
  """(run, given, state, batch), the teachers random."""
  run = make_run(dataset, *kds, learners=learners)
  others = tuple(name for name, _ in run.networks if name not in run.learners)
  constants = {name: jax.tree.map(jnp.asarray, m.constants(dataset)) for name, m in run.networks}
  labels = jnp.asarray(protocols.label_matrix(dataset, "train"))
  plan = batches.plan_contexts(0, 1, dataset.contexts["train"], BATCH)
  batch = jax.tree.map(lambda x: jnp.asarray(x[-1]), plan)  # padded
  alone = run._replace(learners=others, kds=(), edges=())
  frozen = contract.init(jax.random.key(1), alone, graph.Given({}, constants), batch).params["networks"]
  given = graph.Given(jax.tree.map(lambda x: 3 * x, frozen), constants, labels=labels)
  return run, given, contract.init(jax.random.key(2), run, given, batch), batch


@pytest.fixture(scope="module")
def data():
  return build_labelled(CONTEXTS, LABELS)


@functools.partial(quickly, static_argnames="run")
def evaluated(params, given, batch, targets, *, run):
  """({edge key: (sum, losses)}, gradients of the sum of all to the students and to the teachers)."""
  def total(params, teacher):
    terms = step.per_example_loss(params, given._replace(params=teacher), batch, targets, jax.random.key(4),
                                   run=run)[1]
    sums = {key: (weight * losses).sum() for key, (losses, weight) in terms.items()}
    return sum(sums.values()), {key: (sums[key], losses) for key, (losses, _) in terms.items()}

  gradients, found = jax.grad(total, argnums=(0, 1), has_aux=True)(params, given.params)
  return found, *gradients


def refused(name, dataset):
  """Whether a method is refused for labelled data, in the words that say why."""
  kd = contract.default(name)
  try:
    kd_targets.check(make_run(dataset, kd), dataset)
  except InputError as error:
    assert (kd.rows == "items" or kd.neighbours) and "contexts and labels" in str(error)
    return True
  return False


class Found(NamedTuple):
  losses: np.ndarray
  value: float  # their weighted sum
  after: float  # and after a step against its gradient
  student: dict  # gradients to its parameters and to those of an adapter
  teacher: dict


def measure(data, names) -> dict[str, Found]:
  """Of methods with their default arguments, a learner for each, named after it: one program trains them apart."""
  kds = (dataclasses.replace(contract.default(name), learner=name) for name in names)
  run, given, state, batch = build(data, *kds, learners=names)
  sources = kd_targets.prepare(run, data, given)
  lists = kd_targets.learner_lists(run, state.params, given, sources, 0, None)
  targets = kd_targets.targets(jax.random.key(1), state.params, given, sources, lists,
                             kd_targets.initial_memory(run, data), jnp.int32(0), run=run)
  found, gradient, teacher = evaluated(state.params, given, batch, targets, run=run)
  edges = {edge.learner: edge.key for edge in graph.edges(run)}
  own = {name: {k: x for k, x in (gradient["networks"] | gradient["adapters"]).items() if k in (name, edges[name])}
         for name in names}
  scale = {k: 0.01 / optax.tree.norm(g) for g in own.values() for k in g}
  moved = {kind: {k: jax.tree.map(lambda x, g, k=k: x - scale[k] * g, tree, gradient[kind][k])
                  for k, tree in trees.items()} for kind, trees in state.params.items()}
  after = evaluated(moved, given, batch, targets, run=run)[0]
  return {n: Found(found[k][1], found[k][0], after[k][0], own[n], teacher) for n, k in edges.items()}


@pytest.fixture(scope="module")
def together(data):
  """{method: Found} of all that are not refused, on 950 labels, which their lists fit."""
  kept = [name for name in contract.NAMES if not refused(name, data)]

  def of(all_teachers):
    return tuple(n for n in kept if contract.default(n).all_teachers == all_teachers)

  return measure(data, of(False)) | measure(data, of(True))


@pytest.fixture(params=contract.NAMES)
def found(request, together):
  if request.param not in together:
    pytest.skip("refused: needs interactions of many users with many items")
  return together[request.param]


def test_one_finite_loss_per_context(found):
  assert found.losses.shape == (BATCH,) and np.isfinite(found.losses).all() and np.ptp(found.losses) > 0


def test_the_student_learns_and_the_teacher_does_not(found):
  assert all(not np.any(x) for x in jax.tree.leaves(found.teacher))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(found.student))
  assert any(np.any(network["embedding"]) for network in found.student.values() if "embedding" in network)


def test_a_step_against_the_gradient_lowers_the_loss(found):
  assert found.after < found.value


def test_masked_soft_labels_by_softmax_and_sigmoid():
  rng = np.random.default_rng(0)
  student, teacher = rng.normal(size=(2, 5, 4)) * 3
  labels = (rng.random((5, 4)) < 0.5).astype(float)
  for activation in ("softmax", "sigmoid"):
    arguments = ("activation", activation), ("temperature", 2.0)
    kd = registry.build("losses", registry.Call("masked_soft_labels", arguments))
    expected = []
    for s, t, y in zip(student, teacher, labels, strict=True):
      p = np.exp(t / 2) / np.exp(t / 2).sum() if activation == "softmax" else 1 / (1 + np.exp(-t / 2))
      q = 1 / (1 + np.exp(-s))
      target = y * p
      expected.append(np.mean(-target * np.log(q) - (1 - target) * np.log(1 - q)))
    found = kd.loss(Outputs(jnp.asarray(student)), Outputs(jnp.asarray(teacher)), {"labels": labels})
    np.testing.assert_allclose(found, expected, rtol=1e-5)
  with pytest.raises(InputError, match="softmax, sigmoid"):
    registry.build("losses", registry.Call("masked_soft_labels", (("activation", "tanh"),)))


@pytest.mark.parametrize("candidates", ["full", "teacher"])
def test_labels_are_those_of_the_candidates(data, candidates):
  seen = {}

  def loss(student, teacher, batch):
    seen.update(batch, scores=teacher.scores)
    return student.scores.sum(axis=1)

  kd = registry.build("losses", registry.Call("masked_soft_labels", (("candidates", candidates),)))
  kd = dataclasses.replace(kd, loss=loss)
  run, given, state, batch = build(data, kd)
  sources = kd_targets.prepare(run, data, given)
  lists = kd_targets.Lists({}, {})
  targets = kd_targets.targets(jax.random.key(1), state.params, given, sources, lists, {}, 0, run=run)
  step.per_example_loss(state.params, given, batch, targets, jax.random.key(4), run=run)
  items = np.asarray(seen.get("items", np.broadcast_to(np.arange(LABELS), (BATCH, LABELS))))
  expected = protocols.label_matrix(data, "train")[np.asarray(batch["users"])[:, None], items]
  assert expected.any() and (np.asarray(seen["labels"]) == expected).all()
  module, own = dict(run.networks)[TEACHER], graph.variables(given, state.params, TEACHER)
  scores = np.asarray(module.apply(own, {"users": batch["users"]}).scores)
  np.testing.assert_allclose(seen["scores"], np.take_along_axis(scores, items, axis=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["kl", "gated"])
def test_what_teachers_say_of_all_labels_is_computed_once(data, name):
  run, given, state, batch = build(data, registry.build("losses", registry.Call(name, (("candidates", "full"),))))
  sources = kd_targets.prepare(run, data, given)
  lists = kd_targets.Lists({}, {})
  targets = kd_targets.targets(jax.random.key(1), state.params, given, sources, lists, {}, 0, run=run)
  ((_, live),) = evaluated(state.params, given, batch, {}, run=run)[0].values()
  broken = given._replace(params=jax.tree.map(lambda x: x * jnp.nan, given.params))
  ((_, stored),) = evaluated(state.params, broken, batch, targets, run=run)[0].values()
  np.testing.assert_allclose(stored, live, rtol=1e-5)


def test_a_network_runs_once_where_base_and_method_have_the_same_rows(data):
  kd = registry.build("losses", registry.Call("kl", (("candidates", "full"),)))

  def multiplications(*kds):
    run, given, state, batch = build(data, *kds)

    def one(state):
      return step.train_step(state, given, {}, batch, jax.random.key(0), run=run)

    return str(jax.make_jaxpr(one)(state)).count("dot_general")

  teacher = 2  # layers, forward
  assert multiplications(kd) == multiplications() + teacher


def test_labels_of_other_splits_are_not_in_training(data):
  labels = protocols.label_matrix(data, "train")
  assert labels[data.contexts["train"]].any() and not labels[data.contexts["validation"]].any()


def test_every_context_of_training_is_in_one_batch():
  plan = batches.plan_contexts(3, 7, np.arange(100, 150), 16)
  assert plan["users"].shape == plan["weight"].shape == (4, 16)
  assert sorted(plan["users"][plan["weight"] > 0].tolist()) == list(range(100, 150))
  assert not np.array_equal(plan["users"], batches.plan_contexts(3, 8, np.arange(100, 150), 16)["users"])


def test_base_losses_of_labels():
  scores, labels = np.array([[2.0, -1.0, 0.5], [0.3, 0.0, -4.0]]), np.array([[1.0, 0, 1], [0, 0, 0]])
  log_p, log_q = -np.log1p(np.exp(-scores)), -np.log1p(np.exp(scores))
  found = bce().loss(Outputs(jnp.asarray(scores)), {"labels": labels}, jax.random.key(0))
  np.testing.assert_allclose(found, -(labels * log_p + (1 - labels) * log_q).mean(axis=1), rtol=1e-6)
  log_softmax = scores[0] - np.log(np.exp(scores[0]).sum())
  found = softmax().loss(Outputs(jnp.asarray(scores)), {"labels": labels}, jax.random.key(0))
  np.testing.assert_allclose(found, [-(log_softmax[0] + log_softmax[2]) / 2, 0], rtol=1e-6)


def test_methods_that_do_not_fit_the_data_are_refused(data, wide):
  for name, dataset, words in (("ir_rrd", data, "contexts and labels"), ("masked_soft_labels", wide, "not labelled")):
    kd = registry.build("losses", registry.Call(name))
    run = make_run(data, kd)
    with pytest.raises(InputError, match=words):
      kd_targets.check(run, dataset)
