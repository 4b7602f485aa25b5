"""What every model promises, found by file name, and the shipped ones against their definitions."""

import functools
import importlib
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_jax import registry
from kd_jax.base import STUDENT, Features
from kd_jax.data import index
from kd_jax.evaluation import protocols
from kd_jax.models import _inner_product
from kd_jax.ranking import rank
from kd_jax.teachers import loading
from kd_jax.training import graph, step

NAMES = registry.names("models")
BATCH = {"users": jnp.array([3, 0, 7, 3, 11]), "items": jnp.array([[0, 5, 5], [39, 1, 2], [8, 8, 8], [7, 3, 0],
                                                                 [20, 30, 39]])}


@pytest.fixture(scope="module")
def data(make_dataset):
  dataset = make_dataset(num_users=12, num_items=40, train=6, seed=4)
  rng = np.random.default_rng(5)
  vectors = {"size": rng.normal(size=(12, 1)).astype(np.float32), "text": rng.normal(size=(12, 3)).astype(np.float32)}
  categories = np.stack([rng.integers(n, size=12) for n in (3, 4)], axis=1).astype(np.int32)
  return dataset._replace(user_features=Features(("kind", "place"), (3, 4), categories, vectors))


def make(name, dataset, seed=0, **arguments):
  """(module, variables): fitted if it is a closed form, else initialised."""
  module = loading.build_model(str(registry.Call(name, tuple(arguments.items()))), dataset)
  constants = module.constants(dataset) if hasattr(module, "constants") else {}
  if hasattr(module, "fit"):
    params = module.fit(dataset)
  else:
    run = graph.Run(((STUDENT, module),), (STUDENT,), (), (), None, optax.sgd(0.1), "sum")
    given = graph.Given({}, {STUDENT: constants})
    params = step.init(jax.random.key(seed), run, given, BATCH).params["networks"][STUDENT]
  return module, jax.tree.map(jnp.asarray, {"params": params, "constants": constants})


@pytest.fixture(scope="module", params=NAMES)
def model(request, data):
  return make(request.param, data)


def everything(batch):
  return {"users": batch["users"]}


def test_all_names_are_found():
  assert {"mf", "lightgcn", "ease", "pop"} <= set(NAMES)


def test_listed_scores_are_entries_of_all_scores(model, data):
  module, variables = model
  listed, all_items = module.apply(variables, BATCH), module.apply(variables, everything(BATCH))
  assert listed.scores.shape == BATCH["items"].shape
  assert all_items.scores.shape == (5, data.num_items)
  expected = np.take_along_axis(np.asarray(all_items.scores), np.asarray(BATCH["items"]), axis=1)
  np.testing.assert_allclose(listed.scores, expected, rtol=1e-5, atol=1e-7)
  assert np.isfinite(all_items.scores).all() and np.ptp(all_items.scores) > 0


def test_scores_ranks_and_lists_are_lowered_for_accelerators(model, data):
  module, variables = model
  seen, held = jax.tree.map(jnp.asarray, index.seen_by_users(data)), protocols.layout(data, "validation").layout

  def ranks(v, held):
    return rank._ranks(module, v, held.items, held.priority, held.groups, held.counts, held.starts)

  def best(v, seen, select):
    return rank._select(module, v, seen.blocks, seen.priority, select=rank._best(select, 5), exclude_seen=True,
                        rows="users")

  for function, arguments in [
      (lambda v: jax.vjp(lambda v: module.apply(v, BATCH).scores, v)[0], (variables,)), (ranks, (variables, held)),
      (functools.partial(best, select=rank.top_k), (variables, seen)),
      (functools.partial(best, select=rank.top_k_and_tail), (variables, seen))]:
    for platform in ("cuda", "tpu"):
      assert jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


def test_representations_have_the_documented_shapes(model, data):
  module, variables = model
  for batch, shape in ((BATCH, (5, 3)), (everything(BATCH), (data.num_items,))):
    out = module.apply(variables, batch)
    if out.query is not None:
      assert out.query.shape[0] == 5 and out.items.shape[:-1] == shape


def test_tables_given_or_computed_are_the_same(model):
  module, variables = model
  tables = module.apply(variables, method="tables")
  for batch in (BATCH, everything(BATCH)):
    np.testing.assert_allclose(module.apply(variables, batch, tables).scores, module.apply(variables, batch).scores,
                               rtol=1e-6)


def test_scores_follow_their_candidates(model):
  module, variables = model
  order = jnp.array([2, 0, 1])
  scores = module.apply(variables, BATCH).scores
  permuted = module.apply(variables, BATCH | {"items": BATCH["items"][:, order]}).scores
  np.testing.assert_allclose(permuted, scores[:, order], rtol=1e-6)


def test_same_with_and_without_jit(model):
  module, variables = model
  compiled = jax.jit(module.apply)(variables, BATCH).scores
  np.testing.assert_allclose(compiled, module.apply(variables, BATCH).scores, rtol=1e-5, atol=1e-7)


def test_traces_for_any_number_of_users(model):
  module, variables = model
  fixed = jax.tree.map(np.asarray, (variables, module.apply(variables, method="tables")))  # as an export holds them

  @jax.jit
  def score(users):
    own, tables = jax.tree.map(jnp.asarray, fixed)
    return module.apply(own, {"users": users}, tables).scores

  (b,) = jax.export.symbolic_shape("b")
  program = jax.export.export(score)(jax.ShapeDtypeStruct((b,), jnp.int32))
  expected = module.apply(variables, {"users": jnp.arange(5)}).scores
  np.testing.assert_allclose(program.call(jnp.arange(5)), expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_finite_and_reach_every_table(model):
  module, variables = model
  if hasattr(module, "fit"):
    pytest.skip("closed form")

  def total(params):
    return jnp.square(module.apply(variables | {"params": params}, BATCH).scores).sum()

  for gradient in jax.tree.leaves(jax.grad(total)(variables["params"])):
    assert np.isfinite(gradient).all() and np.any(gradient)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_a_function_of_the_seed(name, data):
  module, first = make(name, data)
  second = make(name, data)[1]
  if hasattr(module, "privacy"):  # noise that can be drawn again can be subtracted
    assert not any(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True))
    return
  assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))
  if not hasattr(module, "fit"):
    other = make(name, data, seed=1)[1]["params"]
    assert not any(np.array_equal(a, b) for a, b in
                   zip(jax.tree.leaves(first["params"]), jax.tree.leaves(other), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_help_says_what_it_is(name):
  factory = getattr(importlib.import_module(f"kd_jax.models.{name}"), name)
  text = inspect.getdoc(factory)
  parameters = inspect.signature(factory).parameters
  assert list(parameters)[:2] == ["num_users", "num_items"]
  assert all(p.default is not p.empty for p in list(parameters.values())[2:])
  assert len(parameters) == 2 or re.search(r"\b(19|20)\d\d\b", text), "no year of a paper"


def seen_matrix(data):
  seen = np.zeros((data.num_users, data.num_items))
  seen[data.train.users, data.train.items] = 1
  return seen


def test_mf_is_an_inner_product(data):
  module, variables = make("mf", data, dim=5, init_std=1.0)
  user, item = (np.asarray(variables["params"][k], np.float64) for k in ("user", "item"))
  assert user.shape == (12, 5) and item.shape == (40, 5)
  np.testing.assert_allclose(module.apply(variables, everything(BATCH)).scores, user[BATCH["users"]] @ item.T,
                             rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 3])
def test_lightgcn_averages_powers_of_the_normalised_adjacency(data, layers):
  module, variables = make("lightgcn", data, dim=5, layers=layers, init_std=1.0)
  seen = seen_matrix(data)
  adjacency = np.block([[np.zeros((12, 12)), seen], [seen.T, np.zeros((40, 40))]])
  degree = np.maximum(adjacency.sum(axis=1), 1)
  normalised = adjacency / np.sqrt(degree[:, None] * degree[None])
  start = np.concatenate([variables["params"]["user"], variables["params"]["item"]]).astype(np.float64)
  mean = sum(np.linalg.matrix_power(normalised, n) @ start for n in range(layers + 1)) / (layers + 1)
  found = module.apply(variables, {"users": jnp.arange(12)}).scores
  np.testing.assert_allclose(found, mean[:12] @ mean[12:].T, rtol=1e-4, atol=1e-5)


def test_ease_is_a_ridge_regression_of_each_item_on_the_others(data):
  module, variables = make("ease", data, l2=3.0)
  seen = seen_matrix(data)
  expected = np.zeros((40, 40))
  for j in range(40):
    others = np.delete(np.arange(40), j)
    x = seen[:, others]
    expected[others, j] = np.linalg.solve(x.T @ x + 3.0 * np.eye(39), x.T @ seen[:, j])
  np.testing.assert_allclose(variables["params"]["weights"], expected, atol=1e-5)
  found = module.apply(variables, {"users": jnp.arange(12)}).scores
  np.testing.assert_allclose(found, seen @ expected, atol=1e-5)


def test_pop_counts(data):
  module, variables = make("pop", data)
  found = module.apply(variables, everything(BATCH)).scores
  assert np.array_equal(found, np.tile(seen_matrix(data).sum(axis=0), (5, 1)))


SHAPES = [(7, 3, 5), (13, 9, 4), (1, 40, 3), (16, 8, 4), (6, 300, 2)]


@pytest.mark.parametrize(("batch", "candidates", "dim"), SHAPES)
@pytest.mark.parametrize("numbers", [None, 1, 300])
def test_gathered_product_is_einsum_in_value_and_gradients(batch, candidates, dim, numbers, monkeypatch):
  if numbers:
    monkeypatch.setattr(_inner_product, "_NUMBERS", numbers)
  rng = np.random.default_rng(batch)
  query, table, cotangent = (jnp.asarray(rng.normal(size=s), jnp.float32)
                             for s in ((batch, dim), (20, dim), (batch, candidates)))
  items = jnp.asarray(rng.integers(20, size=(batch, candidates)))  # with repetitions
  expected, pull = jax.vjp(lambda q, t: jnp.einsum("bd,bcd->bc", q, t[items]), query, table)
  found, own_pull = jax.vjp(lambda q, t: jax.jit(functools.partial(_inner_product.gathered_product))(q, t, items),
                            query, table)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  for own, other in zip(own_pull(cotangent), pull(cotangent), strict=True):
    np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-4)
