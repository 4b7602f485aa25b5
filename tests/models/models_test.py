"""The trained models against float64 transcriptions of their papers, and as teachers and learners by script."""

import importlib

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.base import InputError
from kd_jax.models.cdae import cdae
from kd_jax.models.lightgcn import lightgcn
from kd_jax.models.neumf import neumf
from kd_jax.storage import run_directory

USERS, ITEMS = 12, 40


@pytest.fixture(scope="module")
def data(make_dataset):
  return make_dataset(num_users=USERS, num_items=ITEMS, train=6, seed=4)


def make(module, data, scale=1.0):
  """Variables with parameters ~ N(0, scale), the same everywhere for one shape."""
  constants = jax.tree.map(jnp.asarray, module.constants(data)) if hasattr(module, "constants") else {}
  batch = {"users": jnp.zeros(1, jnp.int32)}

  def apply():
    return module.apply({"constants": constants}, batch, rngs={"params": jax.random.key(0)}, mutable=["params"])

  shapes = jax.eval_shape(apply)[1]["params"]
  rng = np.random.default_rng(7)
  params = jax.tree.map(lambda x: jnp.asarray(scale * rng.normal(size=x.shape), jnp.float32), shapes)
  return {"params": params, "constants": constants}


def module_of(name):
  """The file of a model; `kd_jax.models.NAME` is its factory."""
  return importlib.import_module(f"kd_jax.models.{name}")


def in_float64(variables):
  return {k: np.asarray(v, np.float64) for k, v in variables["params"].items()}


def all_scores(module, variables):
  return module.apply(variables, {"users": jnp.arange(USERS)}).scores


@pytest.mark.parametrize("layers", [1, 3])
def test_neumf_is_equation_12(data, layers):
  module = neumf(USERS, ITEMS, dim=3, layers=layers)
  variables = make(module, data, scale=0.7)
  p = in_float64(variables)
  expected = np.zeros((USERS, ITEMS))
  for u in range(USERS):
    for i in range(ITEMS):
      gmf = p["user"][u, :3] * p["item"][i, :3]
      mlp = np.concatenate([p["user"][u, 3:], p["item"][i, 3:]])
      assert len(mlp) == 3 * 2**layers
      for n in range(layers):
        mlp = np.maximum(p[f"kernel{n}"].T @ mlp + p[f"bias{n}"], 0)
      assert len(mlp) == 3
      expected[u, i] = p["head"][:, 0] @ np.concatenate([gmf, mlp])
  np.testing.assert_allclose(all_scores(module, variables), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("numbers", [1, 10**9])
def test_neumf_in_blocks_is_the_same_in_value_and_gradient(data, monkeypatch, numbers):
  module = neumf(USERS, ITEMS, dim=3)
  variables = make(module, data, scale=0.5)
  batch = {"users": jnp.array([0, 3, 3, 11, 7]), "items": jnp.array([[0, 5, 5], [39, 1, 2], [8, 8, 8], [7, 3, 0],
                                                                   [20, 30, 39]])}

  def everything(p):
    return module.apply({"params": p}, {"users": batch["users"]}).scores

  def every(p):
    return jnp.take_along_axis(everything(p), batch["items"], axis=1)

  expected, pull = jax.vjp(every, variables["params"])
  monkeypatch.setattr(module_of("neumf"), "_BLOCK", numbers)
  found, own_pull = jax.vjp(lambda p: module.apply({"params": p}, batch).scores, variables["params"])
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  cotangent = jnp.cos(jnp.arange(15.0)).reshape(5, 3)
  for own, other in zip(jax.tree.leaves(own_pull(cotangent)), jax.tree.leaves(pull(cotangent)), strict=True):
    np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-5)


def test_cdae_decodes_what_it_encodes(data):
  module = cdae(USERS, ITEMS, dim=5)
  variables = make(module, data)
  p = in_float64(variables)
  expected = np.zeros((USERS, ITEMS))
  for u in range(USERS):
    inputs = sum(p["encoder"][j] for j in data.train.items[data.train.users == u])
    hidden = 1 / (1 + np.exp(-(inputs + p["user"][u] + p["hidden_bias"])))
    for i in range(ITEMS):
      expected[u, i] = p["decoder"][i] @ hidden + p["item_bias"][i, 0]
  np.testing.assert_allclose(all_scores(module, variables), expected, rtol=1e-4, atol=1e-5)


def test_cdae_corrupts_with_a_key_and_keeps_the_mean(data):
  module = cdae(USERS, ITEMS, dim=5, corruption=0.5)
  variables = make(module, data, scale=1e-3)  # a sigmoid that is nearly linear

  def corrupted(n):
    return module.apply(variables, method="tables", rngs={"dropout": jax.random.key(n)})[0]

  clean = module.apply(variables, method="tables")[0]
  assert np.any(corrupted(0) != clean) and np.any(corrupted(0) != corrupted(1))
  mean = jax.vmap(corrupted)(jnp.arange(4000)).mean(axis=0)
  assert np.abs(mean - clean).max() < 0.1 * np.abs(clean[:, :-1] - 0.5).max()
  plain = cdae(USERS, ITEMS, dim=5, corruption=0.0)
  assert np.array_equal(plain.apply(variables, method="tables", rngs={"dropout": jax.random.key(0)})[0], clean)


@pytest.mark.parametrize("terms", [16, 2, 3])
def test_lightgcn_propagates_as_the_dense_matrix_does(data, monkeypatch, terms):
  monkeypatch.setattr(module_of("lightgcn"), "_TERMS", terms)  # 2: sums of sums of sums
  module = lightgcn(USERS, ITEMS, dim=5, layers=2)
  variables = make(module, data)
  dense = np.zeros((USERS, ITEMS))
  dense[data.train.users, data.train.items] = 1
  degrees = [np.maximum(dense.sum(axis=a, keepdims=True), 1) for a in (1, 0)]
  dense /= np.sqrt(degrees[0] * degrees[1])
  adjacency = np.block([[np.zeros((USERS, USERS)), dense], [dense.T, np.zeros((ITEMS, ITEMS))]])
  start = np.concatenate([variables["params"][k] for k in ("user", "item")]).astype(np.float64)
  mean = sum(np.linalg.matrix_power(adjacency, n) for n in range(3)) / 3
  found, pull = jax.vjp(lambda p: jnp.concatenate(module.apply(variables | {"params": p}, method="tables")),
                        variables["params"])
  np.testing.assert_allclose(found, mean @ start, atol=1e-5)
  cotangent = np.random.default_rng(1).normal(size=found.shape)
  gradient = pull(jnp.asarray(cotangent, jnp.float32))[0]
  np.testing.assert_allclose(np.concatenate([gradient["user"], gradient["item"]]), mean.T @ cotangent, atol=1e-5)


@pytest.mark.parametrize(("factory", "arguments"), [(neumf, {"layers": 0}), (cdae, {"corruption": 1.0})])
def test_wrong_arguments_are_one_line(factory, arguments):
  with pytest.raises(InputError, match="`model="):
    factory(USERS, ITEMS, **arguments)


TRAINED = {"neumf": "neumf(dim=8)", "cdae": "cdae(dim=16)", "lightgcn": "lightgcn(dim=16, layers=2)"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, script, real_data):
  """trained("neumf"): the directory of a run of three epochs on MovieLens, made once."""
  folder, done = tmp_path_factory.mktemp("models"), {}

  def run(name, model, *flags):
    if name not in done:
      finished = script("train", "--data=movielens", f"--data_dir={real_data}", f"--model={model}", "--epochs=3",
                        "--eval_every=3", "--learning_rate=0.005", *flags, f"--workdir={folder / name}")
      assert finished.returncode == 0, finished.stderr
      done[name] = folder / name
    return done[name]

  return run


def losses(directory):
  return [line["loss"] for line in run_directory.read_metrics(directory)]


@pytest.mark.parametrize("name", TRAINED)
def test_three_epochs_of_movielens_lower_the_loss(trained, name):
  lines = losses(trained(name, TRAINED[name]))
  assert len(lines) == 3 and lines[2]["base"] < lines[0]["base"]


@pytest.mark.parametrize("kd", ["kl()", "rrd()"])
@pytest.mark.parametrize("name", ["lightgcn", "neumf"])
def test_mf_learns_from_it_by_script(trained, name, kd):
  teacher = trained(name, TRAINED[name])
  lines = losses(trained(f"{name}_{kd[:-2]}", "mf(dim=8)", f"--kd={kd}", f"--teacher={teacher}"))
  distilled = [next(v for k, v in line.items() if k != "base") for line in lines]
  assert len(lines) == 3 and distilled[2] < distilled[0]
