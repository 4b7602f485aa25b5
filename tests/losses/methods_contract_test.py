"""What every distillation method promises, found by file name: none is listed here."""

import ast
import functools
import inspect
import pathlib
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import bpr, quickly

import kd_jax.losses
from kd_jax import registry
from kd_jax.base import KD, STUDENT, TEACHER, Outputs
from kd_jax.data import index, neighbours
from kd_jax.teachers import loading
from kd_jax.training import batches, graph, kd_targets, sequence_batches, step

NAMES = registry.names("losses")
BATCH, NEGATIVES = 256, 2
MODELS = tuple(f"mf(dim={dim}, init_std=0.5)" for dim in (8, 12, 10))  # of students, of teachers

OPTIMIZER = optax.adam(0.05)
WEIGHT = 100.0  # of the method, beside the base loss

init = quickly(step.init, static_argnums=1)


def build(dataset, batch, *kds, learners=(STUDENT,), models=MODELS):
  """(run, given, state): students of the first model and a random live teacher; two if the methods hear all at once."""
  calls = dict.fromkeys(learners, models[0]) | {TEACHER: models[1]}
  calls |= {"teacher2": models[2]} if kds and kds[0].all_teachers else {}
  modules = {name: loading.build_model(call, dataset) for name, call in calls.items()}
  others = tuple(name for name in modules if name not in learners)
  run = graph.Run(tuple(modules.items()), learners, tuple((name, t) for name in learners for t in others),
                  tuple((WEIGHT, kd) for kd in kds), bpr(), OPTIMIZER, "sum")
  constants = {name: jax.tree.map(jnp.asarray, loading.constants(m, dataset)) for name, m in modules.items()}
  alone = run._replace(learners=others, kds=(), edges=())
  alike = {name: batch[name] for name in ("users", "items")}  # teachers may read histories of another length
  frozen = init(jax.random.key(1), alone, graph.Given({}, constants), alike).params["networks"]
  given = graph.Given(frozen, constants, jax.tree.map(jnp.asarray, neighbours.tables(run.kds, dataset)))
  return run, given, init(jax.random.key(2), run, given, batch)


def draw(dataset, length=None, kd_per="interaction"):
  """The batches [S, ...] of an epoch: of single interactions, or of sequences of `length`."""
  if length:
    plan = sequence_batches.plan(0, 1, dataset.train, sequence_batches.pack(dataset.train, length), BATCH, kd_per)
  else:
    plan = batches.plan(0, 1, dataset.train, BATCH, kd_per)
  users, items = batches.to_device(dataset.train, dataset.num_users, dataset.num_items)
  seen = jax.tree.map(jnp.asarray, index.seen_by_users(dataset))
  made = batches.draw(jax.random.key(3), plan, users, items, seen, negatives=NEGATIVES, num_items=dataset.num_items,
                      kd_per=kd_per)
  return jax.tree.map(jnp.asarray, made)


@pytest.fixture(scope="module")
def drawn(wide):
  return draw(wide)


def sample(dataset, run, given, params):
  sources = kd_targets.prepare(run, dataset, given)
  lists = kd_targets.learner_lists(run, params, given, sources, 0, None)
  memory = kd_targets.initial_memory(run, dataset)
  return kd_targets.targets(jax.random.key(1), params, given, sources, lists, memory, jnp.int32(0), run=run)


def terms(run, given, params, batch, targets):
  """(losses, weights) of the rows of the method."""
  (found,) = step.per_example_loss(params, given, batch, targets, jax.random.key(4), run=run)[1].values()
  return found


@functools.partial(quickly, static_argnames="run")
def evaluate(params, given, batch, targets, *, run):
  """(losses, gradient to the student, to the teacher, to fields, the weighted sum over rows)."""
  floats = {k: {f: v for f, v in fields.items() if v.dtype == jnp.float32} for k, fields in targets.items()}

  def total(params, teacher, floats):
    both = {k: fields | floats[k] for k, fields in targets.items()}
    found, weight = terms(run, given._replace(params=teacher), params, batch, both)
    return (weight * found).sum(), (found, weight)

  gradients, (found, weight) = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(params, given.params, floats)
  return found, *gradients, (weight * found).sum()


epoch = quickly(step.train_epoch, static_argnames="run")


@functools.cache
def default(name):
  return registry.build("losses", registry.Call(name))


@pytest.fixture(scope="module", params=NAMES)
def method(request):
  return default(request.param)


class Ready(NamedTuple):
  run: graph.Run
  given: graph.Given
  state: graph.TrainState
  batches: dict
  batch: dict  # the first
  targets: dict
  found: tuple  # `evaluate` of it


@pytest.fixture(scope="module")
def ready(wide, method, drawn):
  """The method with its default arguments, on data that its lists fit."""
  if method.labels:
    pytest.skip("reads true labels: see labelled_contract_test")
  batch = jax.tree.map(lambda x: x[0], drawn)
  run, given, state = build(wide, batch, method)
  kd_targets.check(run, wide)
  targets = sample(wide, run, given, state.params)
  found = evaluate(state.params, given, batch, targets, run=run)
  return Ready(run, given, state, drawn, batch, targets, found)


def test_every_file_is_found_and_is_a_method():
  folder = pathlib.Path(kd_jax.losses.__file__).parent
  with_factory = [path.stem for path in folder.glob("*.py") for node in ast.parse(path.read_text()).body
                  if isinstance(node, ast.FunctionDef) and node.name == path.stem]
  assert sorted(with_factory) == NAMES and {"kl", "bce", "rrd", "rcekd"} <= set(NAMES)
  for name in NAMES:
    kd = default(name)
    assert isinstance(kd, KD) and kd.rows in ("users", "items", "entities")
    hash(kd)


def test_one_finite_loss_per_row(method, ready):
  found = ready.found[0]
  rows = {side: ready.batch[f"kd_{side}"].shape[0] for side in ("users", "items")}
  rows["entities"] = rows["users"] + ready.batch["items"].size
  assert found.shape == (rows[method.rows],)
  assert np.isfinite(found).all() and np.ptp(found) > 0


def test_an_epoch_is_lowered_for_accelerators(ready):
  """No device is needed to see that all its operations exist there."""
  traced = jax.jit(step.train_epoch, static_argnames="run").trace(
      ready.state, ready.given, ready.targets, ready.batches, jax.random.key(3), run=ready.run)
  for platform in ("cuda", "tpu"):
    assert "func.func public @main" in traced.lower(lowering_platforms=(platform,)).as_text()


def test_same_with_and_without_jit(ready):
  eager = terms(ready.run, ready.given, ready.state.params, ready.batch, ready.targets)
  np.testing.assert_allclose(eager[0], ready.found[0], rtol=2e-5, atol=1e-6)


def stretched(network):
  """Tables whose products, the scores, reach 1e4."""
  largest = jnp.abs(network["user"] @ network["item"].T).max()
  return network | {"user": network["user"] * (1e4 / largest)}


def test_finite_for_scores_up_to_ten_thousand(wide, ready):
  networks = {k: stretched(v) for k, v in ready.state.params["networks"].items()}
  params = ready.state.params | {"networks": networks}
  given = ready.given._replace(params={k: stretched(v) for k, v in ready.given.params.items()})
  targets = sample(wide, ready.run, given, params)
  found, gradient, _, _, _ = evaluate(params, given, ready.batch, targets, run=ready.run)
  assert np.isfinite(found).all()
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_the_student_learns_and_the_teacher_does_not(ready):
  _, student, teacher, scores, _ = ready.found
  assert all(not np.any(x) for x in jax.tree.leaves(teacher))
  assert max(np.abs(x).max() for x in jax.tree.leaves(student["networks"])) > 1e-6
  assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(student["adapters"]))
  assert all(not np.any(fields["teacher"]) for fields in scores.values() if "teacher" in fields)


@pytest.fixture(scope="module")
def trained(ready):
  """(state, losses) after an epoch."""
  return epoch(ready.state, ready.given, ready.targets, ready.batches, jax.random.key(6), run=ready.run)


def test_an_epoch_lowers_the_methods_own_loss(ready, trained):
  assert np.isfinite(list(trained[1].values())).all()
  after = evaluate(trained[0].params, ready.given, ready.batch, ready.targets, run=ready.run)[-1]
  assert after < ready.found[-1]


def test_rows_of_weight_zero_change_nothing(wide, ready, trained):
  """Whatever stands where the last batch is padded, and where users and items of a batch are fewer."""
  rng, other = np.random.default_rng(0), dict(ready.batches)
  for name, weight, size in (("users", "weight", wide.num_users), ("items", "items_weight", wide.num_items),
                             ("kd_users", "kd_users_weight", wide.num_users),
                             ("kd_items", "kd_items_weight", wide.num_items)):
    padding = np.asarray(other[weight]) == 0
    assert padding.any()
    other[name] = jnp.where(padding, rng.integers(size, size=padding.shape), other[name])
  padded = epoch(ready.state, ready.given, ready.targets, other, jax.random.key(6), run=ready.run)
  for name, value in trained[1].items():
    np.testing.assert_allclose(padded[1][name], value, rtol=1e-4)
  moved = jax.tree.map(lambda a, b: jnp.linalg.norm(a - b), trained[0].params, ready.state.params)
  apart = jax.tree.map(lambda a, b: jnp.linalg.norm(a - b), trained[0].params, padded[0].params)
  assert all(a <= 1e-3 * m for a, m in zip(jax.tree.leaves(apart), jax.tree.leaves(moved), strict=True))


def test_a_step_against_the_gradient_lowers_the_loss_and_along_it_raises_it(ready):
  _, gradient, _, _, value = ready.found
  norm = optax.tree.norm(gradient)

  def total(by):
    moved = jax.tree.map(lambda x, g: x + by * g / norm, ready.state.params, gradient)
    return evaluate(moved, ready.given, ready.batch, ready.targets, run=ready.run)[-1]

  assert total(-0.02) < value < total(0.02)


def test_teacher_scores_are_read_only_where_declared(method, ready):
  """`teacher_scores=False` promises that they may be absent."""
  if method.teacher_scores or method.adapter is not None or method.sample is None:
    pytest.skip("the loss reads the teacher")
  (fields,) = ready.targets.values()
  target = {k: v[ready.batch[f"kd_{method.rows}"]] for k, v in fields.items()} | {"epoch": 0}
  scores = jnp.zeros(target["items"].shape)
  assert np.isfinite(method.loss(Outputs(scores), Outputs(None), target)).all()


@pytest.mark.parametrize("name", NAMES)
def test_help_names_paper_year_and_every_argument(name):
  factory = getattr(__import__(f"kd_jax.losses.{name}", fromlist=[name]), name)
  text = inspect.getdoc(factory)
  venue = r"\b([A-Z]\w*[A-Z]\w*|Workshop|Journal|Sciences|Transactions|Proceedings)[^.]{0,24}\b(19|20)\d\d\b"
  assert re.search(venue, text), "no venue and year"
  described = text.partition("Args:")[2]
  for parameter in inspect.signature(factory).parameters.values():
    assert re.search(rf"^\s+{parameter.name}: \S", described, re.M), f"{parameter.name} is not described"
    assert parameter.default is not parameter.empty, f"{parameter.name} has no default"
