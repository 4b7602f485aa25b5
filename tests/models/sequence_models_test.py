"""Sequence models against float64 transcriptions of their papers; what each may see, and what it may not."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import registry
from kd_jax.base import Dataset, FeatureSpec, InputError, Interactions
from kd_jax.evaluation import protocols, run_report
from kd_jax.evaluation.options import EvaluationOptions
from kd_jax.models.gru4rec import gru4rec
from kd_jax.models.hstu import hstu
from kd_jax.models.sasrec import sasrec
from kd_jax.storage import run_directory
from kd_jax.training import sequence_batches

USERS, ITEMS, LENGTH = 12, 40, 5


@pytest.fixture(scope="module")
def data():
  """Histories of 2 to 13 items, at random times and in random order."""
  rng = np.random.default_rng(4)
  users = rng.permutation(np.repeat(np.arange(USERS), np.arange(2, 2 + USERS))).astype(np.int32)
  items = rng.integers(ITEMS, size=len(users)).astype(np.int32)
  train = Interactions(users, items, None, rng.permutation(len(users)))
  ids = np.arange(USERS).astype(str), np.arange(ITEMS).astype(str)
  return Dataset("in_memory()", USERS, ITEMS, train, train, None, *ids, {}, {})


def history(data, user):
  own = data.train.users == user
  return data.train.items[own][np.argsort(data.train.timestamps[own])]


def make(module, data, scale=0.5):
  """Variables with parameters ~ N(0, scale), the same everywhere for one shape."""
  constants = jax.tree.map(jnp.asarray, module.constants(data))

  def made():
    return module.apply({"constants": constants}, {"users": jnp.zeros(1, jnp.int32)},
                                rngs={"params": jax.random.key(0)}, mutable=["params"])

  rng = np.random.default_rng(7)
  params = jax.tree.map(lambda x: jnp.asarray(scale * rng.normal(size=x.shape), jnp.float32),
                        jax.eval_shape(made)[1]["params"])
  return {"params": params, "constants": constants}


@functools.partial(jax.jit, static_argnums=0)
def apply(module, variables, batch, rngs=None):
  return module.apply(variables, batch, rngs=rngs)


def whole(module, variables):
  return np.asarray(apply(module, variables, {"users": jnp.arange(USERS)}).scores)


def packed(data):
  """An epoch in one batch of sequences, with the mask of its real examples."""
  packing = sequence_batches.pack(data.train, LENGTH)
  plan = sequence_batches.plan(0, 1, data.train, packing, LENGTH * packing.num_rows, "interaction")
  batch = {"users": data.train.users[plan["rows"][0]], "position": plan["position"][0], "place": plan["place"][0]}
  return jax.tree.map(jnp.asarray, batch), plan["weight"][0] > 0


def normalise(x):
  centred = x - x.mean()
  return centred / np.sqrt((centred**2).mean() + 1e-8)


def sasrec_state(p, items, module):
  """The last state of one history [n], n <= length, without padding."""
  n, dim = len(items), module.dim
  x = p["item"][items] * np.sqrt(dim) + p["place"][module.length - n :]
  width = dim // module.heads
  for b in range(module.blocks):
    normal = np.array([normalise(row) for row in x])
    query, key, value = (normal @ p[f"{k}{b}"] for k in ("query", "key", "value"))
    mixed = np.zeros_like(x)
    for t in range(n):
      for h in range(module.heads):
        part = slice(h * width, (h + 1) * width)
        logits = np.array([query[t, part] @ key[s, part] for s in range(t + 1)]) / np.sqrt(width)
        attention = np.exp(logits - logits.max())
        mixed[t, part] = attention / attention.sum() @ value[: t + 1, part]
    x = x + mixed
    inner = np.maximum(np.array([normalise(row) for row in x]) @ p[f"inner{b}"] + p[f"inner_bias{b}"], 0)
    x = x + inner @ p[f"outer{b}"] + p[f"outer_bias{b}"]
  return normalise(x[-1])


def hstu_state(p, items, module):
  """The last state of one history [n], n <= length, without padding."""
  n, dim = len(items), module.dim
  x = p["item"][items] * np.sqrt(dim) + p["place"][module.length - n :]
  width = dim // module.heads

  def silu(v):
    return v / (1 + np.exp(-v))

  for b in range(module.blocks):
    gate, value, query, key = np.split(np.array([silu(normalise(row) @ p[f"inner{b}"]) for row in x]), 4, axis=1)
    mixed = np.zeros_like(x)
    for t in range(n):
      for h in range(module.heads):
        part = slice(h * width, (h + 1) * width)
        for s in range(t + 1):
          mixed[t, part] += silu(query[t, part] @ key[s, part] + p[f"distance{b}"][t - s]) / LENGTH * value[s, part]
    gated = np.array([normalise(m) * g for m, g in zip(mixed, gate, strict=True)])
    x = x + gated @ p[f"outer{b}"] + p[f"outer_bias{b}"]
  return normalise(x[-1]) if module.score == "inner_product" else x[-1]


def gru4rec_state(p, items, module):
  """The mapped last state of one history."""
  d, sigmoid = module.dim, lambda v: 1 / (1 + np.exp(-v))
  inputs = p["item"][items] * np.sqrt(d)
  for b in range(module.layers):
    state, states = np.zeros(d), []
    for x in inputs:
      from_input, from_state = x @ p[f"input{b}"] + p[f"bias{b}"], state @ p[f"gates{b}"]
      update, reset = (sigmoid(from_input[k * d : (k + 1) * d] + from_state[k * d : (k + 1) * d]) for k in (0, 1))
      new = np.tanh(from_input[2 * d :] + (reset * state) @ p[f"state{b}"])
      state = (1 - update) * state + update * new
      states.append(state)
    inputs = np.array(states)
  return state @ p["outer"] + p["outer_bias"]


MODELS = {"sasrec": (sasrec(USERS, ITEMS, dim=6, length=LENGTH, blocks=2, heads=2), sasrec_state),
          "hstu": (hstu(USERS, ITEMS, dim=6, length=LENGTH, blocks=2, heads=2), hstu_state),
          "hstu of inner products": (hstu(USERS, ITEMS, dim=6, length=LENGTH, blocks=2, heads=2, score="inner_product"),
                                     hstu_state),
          "gru4rec": (gru4rec(USERS, ITEMS, dim=6, length=LENGTH, layers=2), gru4rec_state)}


def scores(p, state, module):
  """The scores of all items by a state: inner products, or for HSTU cosines over .05."""
  if getattr(module, "score", "inner_product") == "inner_product":
    return p["item"] @ state
  return [item @ state / np.sqrt((item @ item) * (state @ state)) / 0.05 for item in p["item"]]


@pytest.fixture(scope="module", params=MODELS)
def model(request, data):
  module, state = MODELS[request.param]
  return module, make(module, data), state


def test_all_models_that_read_sequences_are_tested():
  given = {"num_users": 2, "num_items": 2, "user_features": FeatureSpec(("kind",), (2,), ())}
  built = {n: registry.build("models", registry.Call(n), **given) for n in registry.names("models")}
  tested = {name.split()[0] for name in MODELS}
  assert {n for n, module in built.items() if getattr(module, "reads_sequences", False)} == tested


def test_the_last_items_are_read_as_the_paper_says(model, data):
  module, variables, state = model
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
  found = whole(module, variables)
  for u in range(USERS):
    expected = scores(p, state(p, history(data, u)[-LENGTH:], module), module)
    np.testing.assert_allclose(found[u], expected, rtol=2e-3, atol=2e-4)


def test_in_a_batch_of_sequences_each_example_is_predicted_from_what_came_before(model, data):
  module, variables, state = model
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
  batch, real = packed(data)
  found = np.asarray(apply(module, variables, batch).scores)
  places = set()
  for i in np.flatnonzero(real):
    user, position, place = (int(batch[k][i]) for k in ("users", "position", "place"))
    items, end = history(data, user), len(history(data, user)) - 1
    begin = max(0, end - LENGTH * ((end - position) // LENGTH + 1))  # of the stretch
    read = items[begin:position]
    # What is not yet read of the stretch stands to the right.
    at = {k: v[: place + 1] if k == "place" else v for k, v in p.items()}
    expected = scores(p, state(at, read, module.clone(length=place + 1)), module)
    np.testing.assert_allclose(found[i], expected, rtol=2e-3, atol=2e-4)
    places.add(place)
  assert len(places) == LENGTH


def test_no_state_knows_later_items_or_other_users(model, data):
  module, variables, _ = model
  batch, real = packed(data)
  before = np.asarray(apply(module, variables, batch).query)
  starts, items = (np.asarray(variables["constants"][k]) for k in ("starts", "items"))
  for changed in range(0, len(items), 5):
    other = items.copy()
    other[changed] = (other[changed] + 1) % ITEMS
    constants = {"starts": jnp.asarray(starts), "items": jnp.asarray(other)}
    after = np.asarray(apply(module, variables | {"constants": constants}, batch).query)
    user = np.searchsorted(starts, changed, side="right") - 1
    same_user = np.asarray(batch["users"]) == user
    later = same_user & (np.asarray(batch["position"]) > changed - starts[user])
    assert np.array_equal(before[real & ~later], after[real & ~later])
    moved = np.any(before != after, axis=1)
    nearest = later & (np.asarray(batch["position"]) == changed - starts[user] + 1)
    assert moved[real & nearest].all(), "the item just before is read"


def test_a_history_with_validation_ends_with_it(data):
  held = Interactions(np.arange(USERS, dtype=np.int32), np.arange(USERS, dtype=np.int32), None, np.full(USERS, 10**6))
  with_validation = data._replace(validation=held)
  module, state = MODELS["sasrec"]
  variables = make(module, data)
  joined = protocols.with_history(with_validation, "train+validation")
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
  found = whole(module, variables | {"constants": jax.tree.map(jnp.asarray, module.constants(joined))})
  for u in range(USERS):
    expected = p["item"] @ state(p, np.append(history(data, u), u)[-LENGTH:], module)
    np.testing.assert_allclose(found[u], expected, rtol=2e-3, atol=2e-4)
  assert protocols.with_history(with_validation, "train") is with_validation


def test_padding_does_not_matter(model, data):
  module, _, _ = model
  long = module.clone(length=11)
  wide = make(long, data)

  def part(k):
    return slice(-LENGTH, None) if k == "place" else slice(LENGTH if k.startswith("distance") else None)

  cut = {k: v[part(k)] for k, v in wide["params"].items()}
  short = [u for u in range(USERS) if len(history(data, u)) <= LENGTH]
  found = whole(module, wide | {"params": cut})[short]
  np.testing.assert_allclose(found, whole(long, wide)[short], rtol=1e-3, atol=1e-3)
  assert len(short) == 4


def test_gradients_of_a_batch_are_finite_and_reach_every_table(model, data):
  module, variables, _ = model
  batch, real = packed(data)

  def total(p):
    return (real[:, None] * jnp.sin(module.apply(variables | {"params": p}, batch).scores)).sum()

  gradients = jax.tree.leaves(jax.jit(jax.grad(total))(variables["params"]))
  assert all(np.isfinite(g).all() and np.any(g) for g in gradients)


def test_dropout_happens_with_a_key_only(model, data):
  module, variables, _ = model
  module = module.clone(dropout=0.5)
  users = {"users": jnp.arange(USERS)}
  dropped = [apply(module, variables, users, {"dropout": jax.random.key(n)}).scores for n in range(2)]
  assert np.isfinite(dropped[0]).all() and np.any(dropped[0] != dropped[1])
  assert np.array_equal(whole(module, variables), whole(module, variables))


def test_ties_are_read_in_the_order_of_the_source(data):
  tied = data._replace(train=data.train._replace(timestamps=data.train.timestamps // 20))
  found = sasrec(USERS, ITEMS).constants(tied)
  for u in range(USERS):
    own = tied.train.users == u
    expected = tied.train.items[own][np.argsort(tied.train.timestamps[own], kind="stable")]
    assert np.array_equal(found["items"][found["starts"][u] : found["starts"][u + 1]], expected)


def test_hstus_outputs_are_the_vectors_of_its_scores(data):
  """Scores are inner products of the outputs, as fast paths assume: of vectors of one length, of any temperature."""
  for temperature in (0.05, 0.5):
    module = MODELS["hstu"][0].clone(temperature=temperature)
    out = apply(module, make(module, data), {"users": jnp.arange(USERS)})
    np.testing.assert_allclose(out.query @ out.items.T, out.scores, rtol=1e-5, atol=1e-5)
    lengths = np.linalg.norm(np.concatenate([out.query, out.items]), axis=1)
    np.testing.assert_allclose(lengths, temperature**-0.5, rtol=1e-5)


@pytest.mark.parametrize("call", ["sasrec(dim=10, heads=3)", "hstu(dim=5, heads=2)", "hstu(score='sum')"])
def test_wrong_arguments_are_one_line(call):
  with pytest.raises(InputError, match=rf"`model={call.partition('(')[0]}`: "):
    registry.build("models", registry.parse("models", call, "model"), num_users=2, num_items=2)


@pytest.mark.slow
def test_movielens_is_learnt_and_evaluated_with_validation_as_history(flags, real_data, tmp_path):
  from kd_jax.runs import loop

  run = str(tmp_path / "run")
  loop.train(flags("--data=movielens(split='loo_last')", f"--data_dir={real_data}",
                   "--model=sasrec(dim=16, length=10, blocks=1)", "--loss=bce", "--epochs=3", "--eval_every=3",
                   "--learning_rate=0.005", f"--workdir={run}"))
  lines = [line["loss"]["base"] for line in run_directory.read_metrics(run)]
  assert len(lines) == 3 and lines[2] < lines[0]
  with pytest.raises(InputError, match="only on the test split"):
    run_report.evaluate_run(run, split="validation", data_dir=real_data,
                            options=EvaluationOptions(history="train+validation"))

  def options(history):
    return EvaluationOptions(mask_validation=True, history=history, sampled=100)

  alone, joined = (run_report.evaluate_run(run, data_dir=real_data, options=options(h))
                   for h in ("train", "train+validation"))
  assert [found["options"]["history"] for found in (alone, joined)] == ["train", "train+validation"]
  assert alone["metrics"]["hit@10"] != joined["metrics"]["hit@10"]
  assert joined["metrics"]["hit@10(sampled 100)"] > joined["metrics"]["hit@10"] > 0
