"""Every method on batches of sequences, and the loss over all items."""

import functools
import importlib

import jax
import jax.numpy as jnp
import methods_contract_test as contract
import numpy as np
import optax
import pytest
from conftest import quickly

from kd_jax.base import STUDENT, TEACHER, InputError, Outputs
from kd_jax.data import index
from kd_jax.objectives import bce, cross_entropy
from kd_jax.teachers import loading
from kd_jax.training import batches, graph, kd_targets, step

MODULE = importlib.import_module("kd_jax.objectives.cross_entropy")  # its function has the same name
LENGTH = 4
MODELS = {False: ("sasrec(dim=8, length=4, blocks=1)", "hstu(dim=12, length=3, blocks=1)"),  # by all_teachers
          True: ("gru4rec(dim=8, length=4)", "hstu(dim=12, length=3, blocks=1)", "mf(dim=10)")}


@functools.partial(quickly, static_argnames="run")
def measure(params, teacher, given, batch, targets, *, run):
  """(losses of each edge, the gradient of each edge's sum to the student and to the teachers)."""
  def totals(params, teacher):
    given_teacher = given._replace(params=teacher)
    found = step.per_example_loss(params, given_teacher, batch, targets, jax.random.key(4), run=run)[1]
    return jnp.stack([(w * x).sum() for x, w in found.values()]), [x for x, _ in found.values()]

  sums, pull, found = jax.vjp(totals, params, teacher, has_aux=True)
  return found, *jax.vmap(pull)(jnp.eye(len(sums)))


def reads_labels(name):
  return contract.default(name).labels


@pytest.mark.slow
@pytest.mark.parametrize("all_teachers", [False, True])
def test_every_method_teaches_on_batches_of_sequences(wide, all_teachers):
  """All of them in one program: one student, the gradient of each method apart."""
  names = [n for n in contract.NAMES if not reads_labels(n) and contract.default(n).all_teachers == all_teachers]
  batch = jax.tree.map(lambda x: x[0], contract.draw(wide, LENGTH))
  run, given, state = contract.build(wide, batch, *map(contract.default, names), models=MODELS[all_teachers])
  kd_targets.check(run, wide)
  targets = contract.sample(wide, run, given, state.params)
  found, to_student, to_teacher = measure(state.params, given.params, given, batch, targets, run=run)
  rows = {side: batch[f"kd_{side}"].shape[0] for side in ("users", "items")}
  rows["entities"] = rows["users"] + batch["items"].size
  for m, (name, losses) in enumerate(zip(names, found, strict=True)):
    kd = contract.default(name)
    expected = wide.num_items if kd.sampled_items else rows[kd.rows]  # what all the others sampled is among the rows
    assert losses.shape == (expected,) and np.isfinite(losses).all(), name
    moved = [np.abs(x[m]) for x in jax.tree.leaves(to_student["networks"])]
    assert all(np.isfinite(x).all() for x in moved) and max(x.max() for x in moved) > 1e-7, name
  assert all(not np.any(x) for x in jax.tree.leaves(to_teacher))


@pytest.mark.parametrize("name", [n for n in contract.NAMES if reads_labels(n)])
def test_methods_that_read_labels_are_refused(wide, name):
  run = graph.Run((), (STUDENT,), ((STUDENT, TEACHER),), ((1.0, contract.default(name)),), bce(),
                  contract.OPTIMIZER, "sum")
  with pytest.raises(InputError, match=r"`kd`: the method reads true labels, and .* is not labelled data"):
    kd_targets.check(run, wide)


def test_devices_of_pmap_have_dropout_masks_of_their_own(wide):
  batch = jax.tree.map(lambda x: x[0], contract.draw(wide, LENGTH))
  twice = jax.tree.map(lambda x: jnp.stack([x, x]), batch)
  for dropout, equal in ((0.0, True), (0.5, False)):
    module = loading.build_model(f"sasrec(dim=8, length=4, blocks=1, dropout={dropout})", wide)
    run = graph.Run(((STUDENT, module),), (STUDENT,), (), (), bce(), contract.OPTIMIZER, "sum")
    given = graph.Given({}, {STUDENT: jax.tree.map(jnp.asarray, loading.constants(module, wide))})
    params = step.init(jax.random.key(0), run, given, batch).params

    def losses(b, p=params, g=given, r=run):
      return step.per_example_loss(
            p, g, b, {}, jax.random.key(1), run=r, axis_name="devices")[0]

    one, other = jax.vmap(losses, axis_name="devices")(twice)
    assert np.array_equal(one, other) == equal


def test_a_loss_of_all_items_is_the_softmax_over_them(make_dataset):
  """A step of SGD of MF, against the gradient by hand."""
  data = make_dataset(num_users=5, num_items=7, train=3, seed=1)
  seen = jax.tree.map(jnp.asarray, index.seen_of(data.train.users, data.train.items, 5, 7))
  plan = batches.plan(0, 1, data.train, 8, "interaction")
  drawn = batches.draw(jax.random.key(0), plan, *batches.to_device(data.train, 5, 7), seen, negatives=0, num_items=7)
  assert drawn["items"].shape == (2, 8, 1)
  run = graph.Run(((STUDENT, loading.build_model("mf(dim=3, init_std=0.8)", data)),), (STUDENT,), (), (),
                  cross_entropy(), optax.sgd(1.0), "sum")
  first = jax.tree.map(lambda x: x[0], drawn)
  state = step.init(jax.random.key(0), run, graph.Given({}, {}), first)
  after, losses = step.train_step(state, graph.Given({}, {}), {}, first, jax.random.key(1), run=run)
  before = {k: np.asarray(v, np.float64) for k, v in state.params["networks"][STUDENT].items()}
  gradient, total = {k: np.zeros_like(v) for k, v in before.items()}, 0.0
  for user, item in zip(first["users"], first["items"][:, 0], strict=True):
    scores = before["item"] @ before["user"][user]
    p = np.exp(scores) / np.exp(scores).sum()
    total -= np.log(p[item])
    wrong = p - np.eye(7)[item]
    gradient["user"][user] += wrong @ before["item"]
    gradient["item"] += np.outer(wrong, before["user"][user])
  np.testing.assert_allclose(losses["base"] * 8, total, rtol=1e-5)
  for name, value in after.params["networks"][STUDENT].items():
    np.testing.assert_allclose(value, before[name] - gradient[name], rtol=1e-4, atol=1e-5)


def test_products_give_the_softmax_over_all_items_in_parts_that_are_never_whole(monkeypatch):
  rng = np.random.default_rng(0)
  query, table, weight = rng.normal(size=(48, 3)), rng.normal(size=(500, 3)), rng.random(48)
  batch = {"items": jnp.asarray(rng.integers(500, size=(48, 1)))}
  monkeypatch.setattr(MODULE, "_SCORES", 9 * 500)  # nine rows: 48 has parts of eight

  def total(query, table):
    losses = cross_entropy().of_products(Outputs(query @ table.T, query, table), batch, jax.random.key(0))
    return losses @ weight, losses

  compiled = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True)).lower(*map(jnp.float32, (query, table))).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 48 * 500 * 4
  gradient, losses = compiled(jnp.float32(query), jnp.float32(table))
  scores, positives = query @ table.T, np.asarray(batch["items"])[:, 0]
  p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
  np.testing.assert_allclose(losses, -np.log(p[np.arange(48), positives]), rtol=1e-5)
  wrong = (p - np.eye(500)[positives]) * weight[:, None]
  np.testing.assert_allclose(gradient[0], wrong @ table, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(gradient[1], wrong.T @ query, rtol=1e-4, atol=1e-5)


def test_a_run_with_the_loss_of_all_items_learns(flags, small, tmp_path, monkeypatch):
  from kd_jax.runs import loop, setup
  from kd_jax.storage import run_directory

  monkeypatch.setattr(MODULE, "_SCORES", 100 * 240)  # parts of batches of 256
  base = setup.objective("cross_entropy", "interactions")
  for model, loss in (("gru4rec(dim=4)", base.of_products), ("neumf(dim=4)", base.loss)):
    ready = setup.prepare(flags(*small, f"--model={model}", "--loss=cross_entropy"))
    assert ready.run.objective.loss is loss and ready.run.objective.all_items
  loop.train(flags(*small, "--model=sasrec(dim=8, length=8, blocks=1)", "--loss=cross_entropy",
                   f"--workdir={tmp_path}/run"))
  lines = [line["loss"]["base"] for line in run_directory.read_metrics(tmp_path / "run")]
  assert 0 < lines[-1] < lines[0] < 1.5 * np.log(240)
