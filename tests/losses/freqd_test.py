"""FreqD through the frame: the graph and the filter against dense matrices in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import bpr, quickly

from kd_jax import registry
from kd_jax.base import STUDENT, TEACHER, Outputs
from kd_jax.data import neighbours, order
from kd_jax.losses.freqd import freqd
from kd_jax.optimizers.sgd import sgd
from kd_jax.training import graph, step

USERS, ITEMS, DS, DT, K = 30, 25, 3, 5, 2


@pytest.fixture(scope="module")
def data(make_dataset):
  return make_dataset(num_users=USERS, num_items=ITEMS, train=4, seed=3)


def incidence(data):
  matrix = np.zeros((USERS, ITEMS))
  matrix[data.train.users, data.train.items] = 1
  return matrix


def adjacency(matrix, k):
  """Normalised, dense, from the definition: everyone chooses k others."""
  n, frequency = len(matrix), matrix.sum(axis=1)
  priority = order.priority(np.arange(n).astype(str))
  together, chosen = matrix @ matrix.T, np.zeros((n, n))
  for i in range(n):
    others = [j for j in range(n) if j != i and together[i, j] > 0]
    for j in sorted(others, key=lambda j: (-together[i, j], frequency[j], priority[j]))[:k]:
      chosen[i, j] = 1
  chosen = (chosen + chosen.T) / 2
  degree = chosen.sum(axis=1)
  normal = np.array([[chosen[i, j] / np.sqrt(degree[i] * degree[j]) if chosen[i, j] else 0 for j in range(n)]
                     for i in range(n)])
  np.testing.assert_allclose(normal, normal.T)
  for i in range(n):
    normal[i, sorted(range(n), key=lambda j: (-normal[i, j], priority[j]))[4 * k:]] = 0
  return normal


def dense(table, n):
  found = np.zeros((n, n))
  for i in range(n):
    for j, weight in zip(table.indices[i], table.weights[i], strict=True):
      found[i, j] += weight
  return found


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_graph_is_the_dense_one(data, k):
  (tables,) = neighbours.tables([(1.0, freqd(neighbours=k))], data).values()
  for side, matrix in (("users", incidence(data)), ("items", incidence(data).T)):
    np.testing.assert_allclose(dense(tables[side], len(matrix)), adjacency(matrix, k), rtol=1e-6)


def test_whom_everyone_chooses_keeps_the_heaviest_edges():
  """User 0 meets each of 40 others in an item of their own; 1 and 2 meet it in two."""
  users, items = np.repeat([np.zeros(40, int), np.arange(1, 41)], 1, axis=0), np.arange(40)
  users, items = users.reshape(-1), np.tile(items, 2)
  users, items = np.append(users, [0, 1, 2]), np.append(items, [40, 40, 40])
  table = neighbours.co_occurrence(users, items, 41, 41, 2, np.arange(41))
  assert table.indices.shape == (41, 8) and (table.weights[0] > 0).all()
  assert set(table.indices[0][:2]) == {1, 2}, "chosen in return: twice the weight"
  assert (np.diff(table.weights[0]) <= 0).all()
  assert table.indices[3][0] == 0 and not table.weights[3][1:].any()


def test_who_meets_nobody_has_no_neighbours():
  table = neighbours.co_occurrence(np.array([0, 1, 1, 3]), np.array([0, 1, 1, 0]), 4, 2, 3, np.arange(4))
  assert table.weights[1:3].sum() == 0 and table.weights[0].tolist()[:2] == [1, 0] and table.indices[3][0] == 0


def setup(data, **options):
  """(run, given, params, batch)."""
  def build(dim):
    return registry.build("models", registry.Call("mf", (("dim", dim), ("init_std", 1.0))),
                                     num_users=USERS, num_items=ITEMS)

  kd = freqd(neighbours=K, hidden=1.4, **options)
  run = graph.Run(((STUDENT, build(DS)), (TEACHER, build(DT))), (STUDENT,),
                  ((STUDENT, TEACHER),), ((1.0, kd),), bpr(), sgd(1.0, 0.0, None),
                  "sum")
  rng = np.random.default_rng(1)
  users, items = rng.permutation(USERS)[:6], rng.permutation(ITEMS)[:8].reshape(4, 2)
  batch = {"users": users[:4], "items": items, "weight": np.ones(4), "items_weight": np.ones((4, 2)),
           "kd_users": users, "kd_users_weight": np.ones(6)}
  batch = jax.tree.map(jnp.asarray, batch)
  teacher = {"user": rng.normal(size=(USERS, DT)), "item": rng.normal(size=(ITEMS, DT))}
  given = graph.Given({TEACHER: jax.tree.map(jnp.float32, teacher)}, {}, neighbours.tables(run.kds, data))
  given = jax.tree.map(jnp.asarray, given)
  init = quickly(step.init, static_argnums=1)
  return run, given, init(jax.random.key(0), run, given, batch).params, batch


def total(run, given, params, batch, rng):
  ((loss, weight),) = step.per_example_loss(params, given, batch, {}, rng, run=run)[1].values()
  assert loss.shape == (6 + 8,)
  return jnp.sum(weight * loss)


def reference(graphs, given, networks, adapter, batch, options):
  """H P(S) and H T of everybody, then the rows of the batch."""
  value = 0.0
  for side, rows in (("user", batch["kd_users"]), ("item", batch["items"])):
    s, t = networks[side], np.float64(given.params[TEACHER][side])
    p = {k.removeprefix(f"{side}s_"): np.float64(v) for k, v in adapter.items() if k.startswith(f"{side}s_")}
    projected = np.maximum(s @ p["hidden"] + p["hidden_bias"], 0) @ p["out"] + p["out_bias"]
    low = options["alpha"] * graphs[side] + (1 - options["alpha"]) * np.eye(len(s))
    for i in np.asarray(rows).reshape(-1):
      a, b = (low @ projected)[i], (low @ t)[i]
      apart = 1 - a @ b / np.sqrt((a @ a) * (b @ b)) if options["normalise"] else ((a - b) ** 2).sum()
      value += apart * (1 if side == "user" else 0.5)
  return value


@pytest.mark.parametrize("normalise", [True, False])
def test_value_and_gradient_are_the_formula(data, normalise):
  options = {"alpha": 0.3, "normalise": normalise}
  graphs = {"user": adjacency(incidence(data), K), "item": adjacency(incidence(data).T, K)}
  run, given, params, batch = setup(data, keep=1.0, **options)
  (adapter,) = params["adapters"].values()
  assert adapter["users_hidden"].shape == (DS, 7) and adapter["items_out"].shape == (7, DT)
  value, gradient = quickly(jax.value_and_grad(lambda p: total(run, given, p, batch, jax.random.key(3))))(params)
  student = {k: np.float64(v) for k, v in params["networks"][STUDENT].items()}
  np.testing.assert_allclose(value, reference(graphs, given, student, adapter, batch, options), rtol=1e-5)
  for side in student:
    expected, step = np.zeros_like(student[side]), 1e-6
    for place in np.ndindex(expected.shape):
      moved = []
      for sign in (1, -1):
        other = student[side].copy()
        other[place] += sign * step
        moved.append(reference(graphs, given, student | {side: other}, adapter, batch, options))
      expected[place] = (moved[0] - moved[1]) / (2 * step)
    np.testing.assert_allclose(gradient["networks"][STUDENT][side], expected, rtol=2e-3, atol=1e-4)
    assert (np.abs(expected).max(axis=1) > 1e-3).sum() > 8, "neighbours outside of the batch learn too"


def test_edges_are_dropped_afresh_and_kept_ones_make_up_for_it(data):
  run, given, params, batch = setup(data, keep=0.5, alpha=0.5)
  (edge,), (adapter,) = graph.edges(run), params["adapters"].values()

  def filtered(key):
    student, teacher, target = step.edge_outputs(run, given, params, edge, batch)
    return edge.kd.adapter.apply({"params": adapter}, student, teacher, target, rngs={"noise": key}), target

  many = quickly(jax.vmap(lambda key: filtered(key)[0]))(jax.random.split(jax.random.key(1), 1000))
  target = step._target(run, edge, given, batch, {}, jnp.int32(0))
  own = jnp.concatenate([given.params[TEACHER]["user"][batch["kd_users"]],
                         given.params[TEACHER]["item"][batch["items"].reshape(-1)]])
  assert np.std(many.teacher, axis=0)[np.asarray(target["neighbour_weights"]).any(axis=1)].min() > 0
  undropped = run._replace(kds=((1.0, freqd(neighbours=K, hidden=1.4, keep=1.0)),))
  (whole,) = graph.edges(undropped)
  heard = step.edge_outputs(undropped, given, params, whole, batch)
  expected = quickly(whole.kd.adapter.apply)({"params": adapter}, *heard, rngs={"noise": jax.random.key(1)})
  for found, mean in zip(many, expected, strict=True):
    error = np.std(found, axis=0) / np.sqrt(1000)
    assert (np.abs(np.mean(found, axis=0) - mean) <= 5 * error + 1e-5).all()
  assert not np.allclose(expected.teacher, own, atol=1e-2)


def test_a_loss_of_large_vectors_is_finite_and_of_equal_ones_zero():
  batch = {"is_user": jnp.array([True, False])}
  x = 1e4 * jnp.array([[1.0, 2.0], [3.0, 4.0]])
  assert np.isfinite(freqd(normalise=False).loss((x, -x), Outputs(None), batch)).all()
  np.testing.assert_allclose(freqd().loss((x, 2 * x), Outputs(None), batch), 0, atol=1e-6)
  np.testing.assert_allclose(freqd().loss((x, -x), Outputs(None), batch), [2, 1], rtol=1e-6)
