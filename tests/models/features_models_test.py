"""Models over features of the context, against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import build_labelled

from kd_jax.base import InputError
from kd_jax.teachers import loading

CONTEXTS = 12


@pytest.fixture(scope="module", params=[1, 3])
def data(request):
  return build_labelled(CONTEXTS, request.param, seed=3)


def make(data, model):
  """(parameters ~ N(0, 1) in float64, scores of all contexts)."""
  module = loading.build_model(model, data)
  constants = jax.tree.map(jnp.asarray, module.constants(data))
  batch = {"users": jnp.arange(CONTEXTS)}

  def init():
    return module.apply({"constants": constants}, batch, rngs={"params": jax.random.key(0)}, mutable=["params"])

  rng = np.random.default_rng(7)
  params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), jax.eval_shape(init)[1]["params"])
  out = module.apply({"params": params, "constants": constants}, batch)
  return jax.tree.map(lambda x: np.asarray(x, np.float64), params), np.asarray(out.scores, np.float64), out


def inputs(data):
  """(lines of the table of kind and user, numbers: size with training's mean 0 and variance 1, then text)."""
  features = data.user_features
  size = features.vectors["size"][:, 0].astype(np.float64)
  known = size[data.contexts["train"]]
  numbers = np.concatenate([((size - known.mean()) / known.std())[:, None], features.vectors["text"]], axis=1)
  return features.categories + np.array([0, 5]), numbers


def dense(p, x):
  for n in range(len(p)):
    x = np.maximum(x @ p[f"Dense_{n}"]["kernel"] + p[f"Dense_{n}"]["bias"], 0)
  return x


def one_hot(data):
  """[n, 12 + 4]: every input of a linear model."""
  rows, numbers = inputs(data)
  return np.concatenate([np.eye(12)[rows].sum(axis=1), numbers], axis=1)


def pairs(v, x):
  """sum over i < j of v_i x_i * v_j x_j, [n, D]."""
  return np.array([sum(v[i] * row[i] * v[j] * row[j] for i in range(len(v)) for j in range(i)) for row in x])


def test_lr_is_linear(data):
  p, scores, _ = make(data, "lr()")
  np.testing.assert_allclose(scores, one_hot(data) @ p["linear"] + p["bias"], rtol=1e-4, atol=1e-4)


def test_fm_is_equation_1(data):
  p, scores, out = make(data, "fm(dim=3)")
  x = one_hot(data)
  products = pairs(p["embedding"], x)
  expected = p["bias"] + x @ p["linear"] + (products @ p["head"] if data.num_items > 1 else products.sum(1)[:, None])
  np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(out.query, products, rtol=1e-3, atol=1e-3)


def test_mlp_is_dense_layers_over_embeddings_and_numbers(data):
  p, scores, out = make(data, "mlp(hidden=(6, 4), dim=3)")
  rows, numbers = inputs(data)
  hidden = dense(p["tower"], np.concatenate([p["embedding"][rows].reshape(CONTEXTS, -1), numbers], axis=1))
  np.testing.assert_allclose(scores, hidden @ p["head"] + p["bias"], rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(out.query, hidden, rtol=1e-3, atol=1e-3)
  assert out.items.shape == (data.num_items, 4)


def test_deepfm_is_the_sum_of_both(data):
  p, scores, _ = make(data, "deepfm(dim=3, hidden=(5,))")
  rows, numbers = inputs(data)
  x = one_hot(data)
  deep = dense(p["tower"], np.concatenate([p["embedding"][rows].reshape(CONTEXTS, -1), numbers], axis=1))
  products = pairs(p["embedding"], x)
  both = np.concatenate([deep, products], axis=1) @ p["head"] if data.num_items > 1 else (
      deep @ p["head"] + products.sum(1)[:, None])
  np.testing.assert_allclose(scores, p["bias"] + x @ p["linear"] + both, rtol=1e-3, atol=1e-3)


def test_dcn_is_equation_1(data):
  p, scores, _ = make(data, "dcn(dim=2, layers=2, hidden=(5,))")
  rows, numbers = inputs(data)
  first = crossed = np.concatenate([p["embedding"][rows].reshape(CONTEXTS, -1), numbers], axis=1)
  for n in range(2):
    crossed = first * (crossed @ p[f"cross{n}"] + p[f"cross_bias{n}"]) + crossed
  both = np.concatenate([crossed, dense(p["tower"], first)], axis=1)
  np.testing.assert_allclose(scores, both @ p["head"] + p["bias"], rtol=1e-3, atol=1e-3)


def test_fields_restrict_what_a_model_sees(data):
  p, scores, _ = make(data, "lr(fields=('size', 'user'))")
  rows, numbers = inputs(data)
  x = np.concatenate([np.eye(7)[rows[:, 1] - 5], numbers[:, :1]], axis=1)
  np.testing.assert_allclose(scores, x @ p["linear"] + p["bias"], rtol=1e-4, atol=1e-4)
  p, scores, _ = make(data, "mlp(hidden=(), fields=('text',))")
  np.testing.assert_allclose(scores, data.user_features.vectors["text"] @ p["head"] + p["bias"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("model", "words"), [
    ("fm(fields=('prize',))", "no 'prize' among kind, user, size, text"),
    ("mlp(hidden=(8, 0))", r"hidden=\(8, 0\) is not in \[1, "), ("deepfm(hidden=())", "1 or more widths")])
def test_wrong_arguments_are_refused(data, model, words):
  with pytest.raises(InputError, match=words):
    loading.build_model(model, data)


def test_data_without_features_is_refused(make_dataset):
  with pytest.raises(InputError, match="the data has none"):
    loading.build_model("lr()", make_dataset(num_users=4, num_items=9, train=2))


def test_dropout_is_on_in_training_only(data):
  module = loading.build_model("mlp(hidden=(64,), dropout=0.5)", data)
  constants = jax.tree.map(jnp.asarray, module.constants(data))
  batch = {"users": jnp.arange(CONTEXTS)}
  params = module.apply({"constants": constants}, batch, rngs={"params": jax.random.key(0)}, mutable=["params"])[1]

  def query(**rngs):
    return module.apply(params | {"constants": constants}, batch, rngs=rngs).query

  assert np.array_equal(query(), query())
  assert not np.array_equal(query(dropout=jax.random.key(1)), query(dropout=jax.random.key(2)))
