"""What every distillation method promises, found by file name: none is listed here."""

import ast
import functools
import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kd_jax.losses
from kd_jax import batches, lookup, ranking, resample, tasks, train
from kd_jax.base import KD, Outputs

NAMES = lookup.names("losses")
KEY = f"0:{train.STUDENT}<-{train.TEACHER}"
BATCH, NEGATIVES = 32, 2


def build(dataset, kd, weight=1.0, scale=0.5, optimizer=None):
  """(run, given, params, seen): a student of width 8 and a live teacher of width 12, both random."""
  modules = {name: lookup.build("models", lookup.Call("mf", (("dim", dim), ("init_std", scale))),
                                num_users=dataset.num_users, num_items=dataset.num_items)
             for name, dim in ((train.STUDENT, 8), (train.TEACHER, 12))}
  run = train.Run(tuple(modules.items()), (train.STUDENT,), ((train.STUDENT, train.TEACHER),), ((weight, kd),),
                  tasks.bpr, optimizer or optax.adam(0.05), "sum")
  shapes = {"users": jnp.zeros(BATCH, jnp.int32), "items": jnp.zeros((BATCH, 1 + NEGATIVES), jnp.int32)}
  alone = run._replace(learners=(train.TEACHER,), kds=(), edges=())
  teacher = train.init(jax.random.key(1), alone, train.Given({}, {}), shapes).params["networks"]
  given = train.Given(teacher, {})
  seen = jax.tree.map(jnp.asarray, ranking.seen_of(
      dataset.train.users, dataset.train.items, dataset.num_users, dataset.num_items))
  return run, given, train.init(jax.random.key(2), run, given, shapes), seen


def an_epoch(dataset, run, given, state, seen, epoch=1):
  """(batches [S, ...], targets) as a run makes them."""
  resample.check(run, dataset)
  plan = batches.plan(0, epoch, dataset.train.users, BATCH, "interaction")
  users, items = batches.to_device(dataset.train, dataset.num_users, dataset.num_items)
  drawn = batches.draw(jax.random.key(3), plan, users, items, seen, negatives=NEGATIVES,
                       num_items=dataset.num_items)
  sources = resample.prepare(run, dataset, seen, given, None)
  return drawn, resample.targets(jax.random.key(epoch), state.params, given, sources, run=run,
                                 num_items=dataset.num_items)


@functools.cache
def default(name):
  return lookup.build("losses", lookup.Call(name))


@pytest.fixture(scope="module", params=NAMES)
def method(request):
  return default(request.param)


@pytest.fixture(scope="module")
def ready(wide, method):
  """(run, given, state, first batch, targets) of the method with its default arguments."""
  run, given, state, seen = build(wide, method)
  drawn, targets = an_epoch(wide, run, given, state, seen)
  return run, given, state, jax.tree.map(lambda x: jnp.asarray(x[0]), drawn), targets


def terms(run, given, params, batch, targets):
  return train.per_example_loss(params, given, batch, targets, jax.random.key(4), run=run)[1][KEY]


def rows_of(method, batch):
  return batch["kd_users" if method.rows == "users" else "users"].shape[0]


def test_every_file_is_found_and_is_a_method():
  folder = pathlib.Path(kd_jax.losses.__file__).parent
  with_factory = [path.stem for path in folder.glob("*.py") for node in ast.parse(path.read_text()).body
                  if isinstance(node, ast.FunctionDef) and node.name == path.stem]
  assert sorted(with_factory) == NAMES and len(NAMES) >= 4
  for name in NAMES:
    kd = default(name)
    assert isinstance(kd, KD) and kd.rows in ("users", "interactions")
    hash(kd)


def test_one_finite_loss_per_row(method, ready):
  run, given, state, batch, targets = ready
  found = terms(run, given, state.params, batch, targets)
  assert found.shape == (rows_of(method, batch),)
  assert np.isfinite(found).all() and np.ptp(found) > 0


def test_same_with_and_without_jit(ready):
  run, given, state, batch, targets = ready
  eager = terms(run, given, state.params, batch, targets)
  compiled = jax.jit(functools.partial(terms, run))(given, state.params, batch, targets)
  np.testing.assert_allclose(eager, compiled, rtol=2e-5, atol=1e-6)


def test_finite_for_scores_up_to_ten_thousand(wide, method, ready):
  run, given, state, batch, _ = ready
  seen = build(wide, method)[3]

  def stretch(network):  # scores, the products of both tables, reach 1e4
    largest = jnp.abs(network["user"] @ network["item"].T).max()
    return network | {"user": network["user"] * (1e4 / largest)}

  params = state.params | {"networks": jax.tree.map(lambda x: x, {
      k: stretch(v) for k, v in state.params["networks"].items()})}
  given = given._replace(params={k: stretch(v) for k, v in given.params.items()})
  targets = an_epoch(wide, run, given, state._replace(params=params), seen)[1]
  value, gradient = jax.value_and_grad(lambda p: terms(run, given, p, batch, targets).sum())(params)
  assert np.isfinite(value)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_the_student_learns_and_the_teacher_does_not(ready):
  run, given, state, batch, targets = ready
  floats = {k: {f: v for f, v in fields.items() if v.dtype == jnp.float32} for k, fields in targets.items()}

  def total(params, teacher, floats):
    both = {k: fields | floats[k] for k, fields in targets.items()}
    return terms(run, given._replace(params=teacher), params, batch, both).sum()

  student, teacher, _ = jax.grad(total, argnums=(0, 1, 2))(state.params, given.params, floats)
  assert all(not np.any(x) for x in jax.tree.leaves(teacher))
  assert max(np.abs(x).max() for x in jax.tree.leaves(student["networks"])) > 1e-6
  assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(student["adapters"]))


def test_padding_changes_nothing(ready):
  run, given, state, batch, targets = ready
  pad = lambda x: jnp.concatenate([x, jnp.zeros((5, *x.shape[1:]), x.dtype)])
  step = lambda batch: train.train_step(state, given, targets, batch, jax.random.key(5), run=run)
  plain, padded = step(batch), step(jax.tree.map(pad, batch))
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(padded), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_training_lowers_the_methods_own_loss(wide, method):
  run, given, state, seen = build(wide, method, weight=100.0)
  drawn, targets = an_epoch(wide, run, given, state, seen)
  step = jax.jit(functools.partial(train.train_epoch, run=run))
  trained, losses = step(state, given, targets, drawn, jax.random.key(6))
  assert np.isfinite(list(losses.values())).all()
  batch = jax.tree.map(lambda x: jnp.asarray(x[0]), drawn)
  weight = batch["kd_weight" if method.rows == "users" else "weight"]
  before, after = ((weight * terms(run, given, s.params, batch, targets)).sum() for s in (state, trained))
  assert after < before


def test_loss_is_minimal_in_no_direction_of_noise_but_reads_its_scores(method, ready):
  """The sign: a step against the gradient lowers the loss, a step along it raises it."""
  run, given, state, batch, targets = ready
  total = lambda params: terms(run, given, params, batch, targets).sum()
  value, gradient = jax.value_and_grad(total)(state.params)
  norm = optax.global_norm(gradient)
  move = lambda by: jax.tree.map(lambda x, g: x + by * g / norm, state.params, gradient)
  assert total(move(-0.02)) < value < total(move(0.02))


def test_rows_are_independent(method, ready):
  """A row's loss depends on that row alone, or permuted rows would mix users."""
  run, given, state, batch, targets = ready
  if method.rows != "users":
    pytest.skip("rows are interactions")
  found = terms(run, given, state.params, batch, targets)
  order = np.random.default_rng(0).permutation(len(batch["kd_users"]))
  shuffled = batch | {k: batch[k][order] for k in ("kd_users", "kd_weight")}
  np.testing.assert_allclose(terms(run, given, state.params, shuffled, targets), found[order], rtol=1e-5, atol=1e-6)


def test_teacher_scores_are_read_only_where_declared(method, ready):
  """`teacher_scores=False` promises that they may be absent."""
  run, given, state, batch, targets = ready
  if method.teacher_scores or method.adapter is not None or method.sample is None:
    pytest.skip("the loss reads the teacher")
  target = {k: v[batch["kd_users"]] for k, v in targets[KEY].items()}
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
    assert re.search(rf"^\s+{parameter.name}: \w", described, re.M), f"{parameter.name} is not described"
    assert parameter.default is not parameter.empty, f"{parameter.name} has no default"
