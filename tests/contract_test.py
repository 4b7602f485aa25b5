"""What every base loss, metric, optimiser, schedule and callback promises; they are found by their folders.

Methods and models have contract tests of their own, in tests/losses and tests/models.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import registry
from kd_jax.base import (
    Callback,
    Dataset,
    Features,
    Interactions,
    LabelMetric,
    Metric,
    Objective,
    Outputs,
    Ranked,
)
from kd_jax.metrics._held_out import lay_out

pytestmark = pytest.mark.short
SETTINGS = dict(learning_rate=0.1, weight_decay=0.0, decayed=None, steps_per_epoch=10, epochs=5)
GIVEN = {package: {name: SETTINGS[name] for name in names} for package, names in registry.GIVEN.items()
         if package != "models"}
B, C, D, ITEMS = 6, 3, 4, 12


def build(package, name, **given):
  return registry.build(package, registry.Call(name), **(GIVEN.get(package, {}) | given))


def names(*packages):
  return [(package, name) for package in packages for name in registry.names(package)]


@pytest.mark.parametrize(("package", "name"), names("objectives", "metrics", "label_metrics", "optimizers", "schedules",
                                                    "callbacks", "compression"))
def test_a_factory_is_documented_and_has_defaults(package, name):
  factory = getattr(__import__(f"kd_jax.{package}", fromlist=[name]), name)
  assert inspect.isfunction(factory) and inspect.getdoc(factory)
  known = registry.GIVEN.get(package, ())
  assert all(p.default is not p.empty for p in inspect.signature(factory).parameters.values() if p.name not in known)


def example(objective, kind, seed=0):
  """(outputs, batch) of a batch of a kind of data."""
  rng = np.random.default_rng(seed)
  query, table = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((B, D), (ITEMS, D)))
  if kind != "interactions":
    columns = 1 if kind == "clicks" else C
    batch = {"users": jnp.arange(B), "labels": jnp.asarray(rng.random((B, columns)) < 0.5, jnp.float32)}
    return Outputs(query @ table[:columns].T, query, table[:columns]), batch | {"weight": jnp.ones(B)}
  batch = {"users": jnp.arange(B), "items": jnp.asarray(rng.integers(ITEMS, size=(B, 1 if objective.all_items else C)))}
  batch["weight"] = jnp.ones(B)
  if objective.all_items:
    return Outputs(query @ table.T, query, table), batch
  items = table[batch["items"]]
  return Outputs(jnp.einsum("bd,bcd->bc", query, items), query, items), batch


KINDS = [(name, kind) for _, name in names("objectives") for kind in build("objectives", name).on]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_a_base_loss_has_a_value_per_example(name, kind):
  objective = build("objectives", name)
  assert isinstance(objective, Objective)
  outputs, batch = example(objective, kind)
  loss = jax.jit(objective.loss)
  found = loss(outputs, batch, jax.random.key(0))
  assert found.shape == (B,) and np.isfinite(found).all()
  gradient = jax.grad(lambda scores: loss(outputs._replace(scores=scores), batch, jax.random.key(0)).sum())(
      outputs.scores)
  assert np.isfinite(gradient).all() and np.any(gradient)
  large = outputs._replace(scores=1e4 * outputs.scores)
  assert np.isfinite(loss(large, batch, jax.random.key(0))).all()
  if objective.of_products is not None:
    np.testing.assert_allclose(objective.of_products(outputs, batch, jax.random.key(0)), found, rtol=1e-6)


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_only_a_base_loss_that_declares_it_compares_examples(name, kind):
  objective = build("objectives", name)
  outputs, batch = example(objective, kind)
  found = objective.loss(outputs, batch, jax.random.key(0))
  other, _ = example(objective, kind, seed=1)

  def first(a, b):
    return jnp.concatenate([a[:1], b[1:]])

  changed = outputs._replace(scores=first(outputs.scores, other.scores), query=first(outputs.query, other.query))
  if outputs.items is not None and outputs.items.ndim == 3:
    changed = changed._replace(items=first(outputs.items, other.items))
  same = np.allclose(objective.loss(changed, batch, jax.random.key(0))[0], found[0], rtol=1e-6)
  assert same or objective.in_batch


def held_out(order=None, ranks=None):
  rng = np.random.default_rng(0)
  users, items = np.repeat([1, 4, 7, 8], [1, 3, 2, 6]), np.arange(12)
  ranks = rng.permutation(40)[:12] if ranks is None else ranks
  order = np.arange(12) if order is None else order
  lists = Ranked(rng.permuted(np.tile(np.arange(60), (4, 1)), axis=1)[:, :20], np.zeros((4, 20)))
  train = Interactions(*(rng.integers(n, size=200).astype(np.int32) for n in (10, 60)))
  features = Features(("kind",), (3,), rng.integers(3, size=(60, 1)).astype(np.int32), {"v": rng.normal(size=(60, 2))})
  ids = np.arange(10).astype(str), np.arange(60).astype(str)
  dataset = Dataset("in_memory()", 10, 60, train, train, train, *ids, {}, {}, item_features=features)
  groups = {"active": users > 4, "popular": items % 2 == 0, "unpopular": items % 2 > 0}
  groups = {name: mask[order] for name, mask in groups.items()}
  return lay_out(users[order], items[order], ranks[order], None, lists, dataset, groups)


@pytest.mark.parametrize(("package", "name"), names("metrics"))
def test_a_metric_does_not_depend_on_the_order_of_rows_and_prefers_better_ranks(package, name):
  metric = build(package, name)
  assert isinstance(metric, Metric)
  ranks = held_out().ranks
  value = metric.value(held_out())
  assert np.shape(value) == ((4,) if metric.per_user else ()) and np.isfinite(value).all()
  shuffled = metric.value(held_out(np.random.default_rng(1).permutation(12)))
  np.testing.assert_array_equal(value, shuffled)
  if metric.per_user and not metric.lists:
    best, worst = (metric.value(held_out(ranks=x)) for x in (np.arange(12) % 3, 1000 + np.arange(12)))
    better = np.less_equal if metric.higher_is_better else np.greater_equal
    assert better(worst, value).all() and better(value, best).all() and np.any(worst != best)
  assert len(ranks) == 12


@pytest.mark.parametrize(("package", "name"), names("label_metrics"))
def test_a_metric_of_labels_does_not_depend_on_the_order_of_contexts(package, name):
  metric, rng = build(package, name), np.random.default_rng(0)
  assert isinstance(metric, LabelMetric) and set(metric.on) <= {"tags", "clicks"}
  for kind in metric.on:
    columns = 1 if kind == "clicks" else C
    labels, scores, groups = rng.random((40, columns)) < 0.4, rng.normal(size=(40, columns)), rng.integers(5, size=40)
    order = rng.permutation(40)
    value = metric.value(labels, scores, groups)
    assert isinstance(value, float) and np.isfinite(value)
    assert metric.value(labels[order], scores[order], groups[order]) == pytest.approx(value, rel=1e-12)
    sure = np.where(labels, 8.0, -8.0)
    wrong = metric.value(labels, -sure, groups)
    right = metric.value(labels, sure, groups)
    assert name == "calibration" or (right > wrong) == metric.higher_is_better


@pytest.mark.parametrize(("package", "name"), names("optimizers"))
def test_an_optimizer_descends_decays_and_takes_a_schedule(package, name):
  def run(steps=1, start=1.0, gradient=lambda x: x, **given):
    optimizer, params = build(package, name, **given), {"a": jnp.full(3, start), "b": jnp.full(2, start)}
    state = optimizer.init(params)
    for _ in range(steps):
      updates, state = optimizer.update(jax.tree.map(gradient, params), state, params)
      params = jax.tree.map(jnp.add, params, updates)
    return params

  assert (np.abs(run(steps=5)["a"]) < 1).all()
  no_gradient = dict(gradient=jnp.zeros_like, weight_decay=0.5)
  assert (run(**no_gradient)["a"] < 1).all() and (run(gradient=jnp.zeros_like)["a"] == 1).all()
  masked = run(**no_gradient, decayed=lambda params: {"a": True, "b": False})
  assert (masked["a"] < 1).all() and (masked["b"] == 1).all()
  still = run(learning_rate=lambda step: 0.0)
  assert (still["a"] == 1).all()


@pytest.mark.parametrize(("package", "name"), names("schedules"))
def test_a_schedule_is_within_the_learning_rate(package, name):
  schedule = build(package, name)
  rates = np.array([schedule(step) for step in range(51)])
  assert np.isfinite(rates).all() and (rates >= 0).all() and rates.max() <= 0.1 * (1 + 1e-6)
  assert len(np.unique(rates)) > 1 and rates.max() >= 0.09


@pytest.mark.parametrize(("package", "name"), names("callbacks"))
def test_a_callback_is_functions(package, name):
  callback = build(package, name)
  assert isinstance(callback, Callback) and any(callback)
  assert all(function is None or callable(function) for function in callback)
