"""The two-tower model against its definition, in float64, and what it does with what is not there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import registry
from kd_jax.base import Features, InputError
from kd_jax.teachers import loading

USERS = {"users": jnp.arange(12)}


@pytest.fixture(scope="module")
def data(make_dataset):
  """Items 0-4 are cold, item 3 has no text; two vectors and a field of items, a field of users."""
  dataset = make_dataset(num_users=12, num_items=40, train=6, seed=4)
  warm = dataset.train.items >= 5
  train = dataset.train._replace(users=dataset.train.users[warm], items=dataset.train.items[warm])
  rng = np.random.default_rng(0)
  vectors = {"text": rng.normal(size=(40, 7)).astype(np.float32), "image": rng.normal(size=(40, 3)).astype(np.float32)}
  vectors["text"][3] = 0
  item = Features(("genre",), (4,), rng.integers(4, size=(40, 1)).astype(np.int32), vectors)
  user = Features(("age",), (3,), rng.integers(3, size=(12, 1)).astype(np.int32))
  return dataset._replace(train=train, user_features=user, item_features=item)


def make(data, arguments):
  module = loading.build_model(f"two_tower({arguments})", data)
  constants = {"constants": loading.constants(module, data)}
  _, variables = module.apply(constants, USERS, rngs={"params": jax.random.key(1)}, mutable=["params"])
  return module, jax.tree.map(jnp.asarray, constants | variables)


def by_definition(params, constants, fields, names, fusion, hidden):
  """Fused vectors [E, D] of one side, one row at a time."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  rows = []
  for e, trained in enumerate(np.asarray(constants["trained"])):
    parts, there = [], []
    if "ids" in params:
      parts, there = [params["ids"][e]], [bool(trained)]
    for f, name in enumerate(fields):
      parts, there = [*parts, params[f"field_{name}"][constants["categories"][e, f]]], [*there, True]
    for name in names:
      x = np.asarray(constants[name][e], np.float64)
      there.append(x.any())
      for n in range(hidden + 1):
        x = x @ params[f"{name}_kernel{n}"] + params[f"{name}_bias{n}"]
        x = np.maximum(x, 0) if n < hidden else x
      parts.append(x)
    parts = [part * known for part, known in zip(parts, there, strict=True)]
    if len(parts) == 1:
      rows.append(parts[0])
    elif fusion == "gate":
      side_by_side = np.concatenate(parts)
      gates = 1 / (1 + np.exp(-(side_by_side @ params["gate_kernel"] + params["gate_bias"])))
      rows.append(sum(g * part for g, part in zip(gates, parts, strict=True)))
    else:
      weights = np.array([np.exp(a @ part) * known for a, part, known in
                          zip(params["attention"], parts, there, strict=True)])
      rows.append(sum(w * part for w, part in zip(weights / weights.sum(), parts, strict=True)))
  return np.stack(rows)


@pytest.mark.parametrize(("fusion", "ids", "hidden"), [("gate", True, ()), ("gate", False, (5,)),
                                                       ("attention", True, (6, 5)), ("attention", False, ())])
def test_scores_are_those_of_the_definition(data, fusion, ids, hidden):
  module, variables = make(data, f"dim=4, fusion={fusion!r}, ids={ids}, hidden={hidden}, init_std=0.7")
  params, constants = variables["params"], variables["constants"]
  for name in ("text", "image"):
    own = data.item_features.vectors[name]
    expected = own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-30)
    np.testing.assert_allclose(constants["item"][name], expected, atol=1e-6)
  user = by_definition(params["user"], constants["user"], ("age",), (), fusion, 0)
  item = by_definition(params["item"], constants["item"], ("genre",), ("text", "image"), fusion, len(hidden))
  np.testing.assert_allclose(module.apply(variables, USERS).scores, user @ item.T, rtol=1e-4, atol=1e-5)
  assert ("ids" in params["item"]) == ids


def test_the_id_of_a_cold_item_says_nothing_and_learns_nothing(data):
  module, variables = make(data, "dim=4")

  def total(params):
    return jnp.square(module.apply(variables | {"params": params}, USERS).scores).sum()

  gradient = jax.grad(total)(variables["params"])["item"]["ids"]
  assert not gradient[:5].any() and gradient[5:].any(axis=1).all() == np.isin(np.arange(5, 40), data.train.items).all()
  alone = data._replace(item_features=None, user_features=None)
  module, variables = make(alone, "dim=4")
  scores = np.asarray(module.apply(variables, USERS).scores)
  assert not scores[:, :5].any()


def test_ids_are_left_out_in_training_alone_and_only_where_there_is_content(data):
  module, variables = make(data, "dim=4, id_dropout=0.5, fusion='attention'")

  def tables(seed):
    return np.asarray(module.apply(variables, method="tables", rngs={"dropout": jax.random.key(seed)})[1])

  calm = np.asarray(module.apply(variables, method="tables")[1])
  changed = (np.stack([tables(seed) for seed in range(200)]) != calm).any(axis=2)  # [200, I]
  warm = np.isin(np.arange(40), data.train.items)
  assert not changed[:, ~warm].any()
  assert abs(changed[:, warm].mean() - 0.5) < 0.02
  module, variables = make(data._replace(item_features=None), "dim=4, id_dropout=0.5")
  dropped = module.apply(variables, method="tables", rngs={"dropout": jax.random.key(0)})
  assert np.array_equal(dropped[1], module.apply(variables, method="tables")[1])


@pytest.mark.parametrize(("arguments", "message"), [
    ("fusion='sum'", "choose from gate, attention"), ("id_dropout=1.0", r"is not in \[0, 1\)"),
    ("hidden=(0,)", "hidden=")])
def test_wrong_arguments(data, arguments, message):
  with pytest.raises(InputError, match=message):
    loading.build_model(f"two_tower({arguments})", data)
  with pytest.raises(InputError, match="ids=False leaves nothing"):
    call = registry.Call("two_tower", (("ids", False),))
    registry.build("models", call, num_users=3, num_items=4, item_features=None)
