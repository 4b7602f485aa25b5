"""The other sides of the benchmark do the same work: the same losses, ranks and draws from the same numbers.

tests/golden stores what PyTorch returns, so that the first part runs where torch is not installed. The second part runs
where torch or RecBole is: it checks that the stored values are still what torch returns, and what cannot be stored.
"""

import importlib
import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_jax.base import Interactions, Outputs, View
from kd_jax.bench import interleave
from kd_jax.data import index
from kd_jax.evaluation import protocols
from kd_jax.losses.rcekd import rcekd
from kd_jax.losses.rrd import rrd
from kd_jax.models.lightgcn import lightgcn
from kd_jax.models.mf import mf
from kd_jax.objectives.bpr import bpr
from kd_jax.optimizers.adam import adam
from kd_jax.ranking import rank

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "golden"
CASES = list(json.loads((FOLDER / "torch.json").read_text())["cases"])
USERS, ITEMS, DIM = 70, 90, 6


@pytest.fixture(scope="module")
def golden():
  """{"inputs/NAME" or "CASE/NAME": array}, see golden/write_torch.py."""
  with np.load(FOLDER / "torch.npz", allow_pickle=False) as file:
    return dict(file)


@pytest.fixture(scope="module")
def given(golden):
  return {name.removeprefix("inputs/"): value for name, value in golden.items() if name.startswith("inputs/")}


@pytest.fixture(scope="module")
def dataset(make_dataset, given):
  splits = {name: Interactions(given[f"{name}_users"], given[f"{name}_items"]) for name in ("train", "validation")}
  return make_dataset(num_users=USERS, num_items=ITEMS)._replace(**splits)


@pytest.fixture
def params(given):
  return {"user": jnp.asarray(given["user"]), "item": jnp.asarray(given["item"])}


@pytest.fixture
def teacher(given):
  return {"user": jnp.asarray(given["teacher_user"]), "item": jnp.asarray(given["item"])}


def close(own, other):
  np.testing.assert_allclose(np.asarray(own), other, rtol=1e-5, atol=1e-6)


def joined(tables):
  return jnp.concatenate([tables["user"], tables["item"]])


def best(tables, dataset, k, exclude_seen):
  """The k best items of every user."""
  seen = jax.tree.map(jnp.asarray, index.seen_by_users(dataset))
  return rank.network_top_k(mf(USERS, ITEMS, DIM), {"params": tables}, seen, k=k, exclude_seen=exclude_seen)


def sampled(kd, **views):
  """What a method samples for every user; nothing is left to chance."""
  def of_user(view):
    return kd.sample(jax.random.key(0), View(**dict.fromkeys(View._fields) | view))

  return jax.vmap(of_user)(views)


def with_gradient(losses, value):
  return losses(value), jax.grad(lambda x: jnp.sum(losses(x)))(value)


# Against the stored values.


def test_bpr_and_its_gradient(golden, given, params):
  batch = {"users": given["bpr_users"], "items": given["bpr_items"]}
  losses, gradient = with_gradient(
      lambda p: bpr().loss(mf(USERS, ITEMS, DIM).apply({"params": p}, batch), {}, None), params)
  close(losses, golden["bpr/losses"])
  close(joined(gradient), golden["bpr/gradient"])


def test_rrd(golden, given):
  losses, gradient = with_gradient(lambda x: rrd(k=4, depth=10).loss(Outputs(x), None, {}), given["rrd_scores"])
  close(losses, golden["rrd/losses"])
  close(gradient, golden["rrd/gradient"])


def test_rcekd(golden, given):
  kd, fields = rcekd(k=4, sampled=2, depth=6, temperature=2.0), {k: given[f"rcekd_{k}"] for k in ("fresh", "shared")}
  losses, gradient = with_gradient(
      lambda x: kd.loss(Outputs(x), Outputs(given["rcekd_teacher"]), fields), given["rcekd_scores"])
  close(losses, golden["rcekd/losses"])
  close(gradient, golden["rcekd/gradient"])


def test_targets_of_rrd(golden, dataset, teacher):
  listed = best(teacher, dataset, 10, True)
  np.testing.assert_array_equal(listed.items, golden["rrd_targets/lists"])
  columns = np.repeat(np.arange(USERS), 10), np.asarray(listed.items).flatten()
  logs = (np.concatenate([*pair]) for pair in zip(dataset.train[:2], columns, strict=True))
  excluded, n = index.seen_of(*logs, USERS, ITEMS), ITEMS - 9 - 10
  unseen = index.draw_unseen(jax.random.key(0), jax.tree.map(jnp.asarray, excluded), jnp.arange(USERS), n, ITEMS)
  found = sampled(rrd(k=10, uninteresting=n, depth=10), teacher=listed, unseen=unseen)
  np.testing.assert_array_equal(found["items"], golden["rrd_targets/items"])


def test_targets_of_rcekd(golden, dataset, params, teacher):
  expected = {name: golden[f"rcekd_targets/{name}"] for name in ("best", "drawn", "own", "scores", "fresh", "shared")}
  lists = {"student": best(params, dataset, 9, False), "teacher": best(teacher, dataset, 5, False)}
  found = sampled(rcekd(k=5, sampled=9, depth=9), **lists)
  listed, drawn, own = np.split(np.asarray(found["items"]), (5, 14), axis=1)
  for name, items in (("best", listed), ("drawn", np.sort(drawn, axis=1)), ("own", own), ("fresh", found["fresh"])):
    np.testing.assert_array_equal(items, expected[name], err_msg=name)
  close(found["shared"], expected["shared"])
  score = rank.scorer(mf(USERS, ITEMS, DIM), {"params": teacher})
  close(score(jnp.arange(USERS), np.concatenate([listed, own], axis=1)), expected["scores"])


def test_propagation_and_its_gradient(golden, given, dataset, params):
  module = lightgcn(USERS, ITEMS, DIM, layers=2)
  constants = jax.tree.map(jnp.asarray, module.constants(dataset))

  def total(tables):
    nodes = jnp.concatenate(module.apply({"params": tables, "constants": constants}, method="tables"))
    return jnp.sum(nodes * given["scale"]), nodes

  (_, nodes), gradient = jax.value_and_grad(total, has_aux=True)(params)
  close(nodes, golden["lightgcn/nodes"])
  close(joined(gradient), golden["lightgcn/gradient"])


def test_ranks(golden, dataset, params):
  layout = protocols.layout(dataset, "validation")
  lines = rank.network_ranks(mf(USERS, ITEMS, DIM), {"params": params}, layout.layout)
  own = lines[layout.where[:, 0], layout.where[:, 1]]
  order = np.lexsort((dataset.validation.items, dataset.validation.users))
  np.testing.assert_array_equal(own[order], golden["ranks/ranks"])


def test_negatives_are_the_nth_absent(golden, given, dataset):
  users, uniform = given["negatives_users"], given["negatives_uniform"]
  seen = jax.tree.map(jnp.asarray, index.seen_by_users(dataset))
  own = index.nth_absent(seen, users, (uniform * np.asarray(index.num_absent(seen, users, ITEMS))).astype(np.int32))
  np.testing.assert_array_equal(own, golden["negatives/items"])


def test_an_epoch_of_adam(golden, given, dataset, params):
  module, optimizer = lightgcn(USERS, ITEMS, DIM, layers=2), adam(0.005, 0.1, None)
  constants = jax.tree.map(jnp.asarray, module.constants(dataset))

  @jax.jit
  def step(tables, state, batch):
    def losses(p):
      return bpr().loss(module.apply({"params": p, "constants": constants}, batch), batch, None)

    gradient = with_gradient(losses, tables)[1]
    updates, state = optimizer.update(gradient, state, tables)
    return optax.apply_updates(tables, updates), state

  tables, state = params, optimizer.init(params)
  for rows, unseen in zip(given["epoch_order"], given["epoch_negatives"], strict=True):
    users, items = (x[rows] for x in dataset.train[:2])
    tables, state = step(tables, state, {"users": users, "items": np.stack([items, unseen], axis=1)})
  close(joined(tables), golden["epoch/table"])


# With the other sides at work.


@pytest.fixture(scope="module")
def sides():
  """torch, the PyTorch side of the benchmark, and what writes the stored values."""
  torch = pytest.importorskip("torch")
  against, cases = map(importlib.import_module, ("kd_jax.bench.against.torch", "golden.write_torch"))
  return types.SimpleNamespace(torch=torch, against=against, cases=cases)


@pytest.mark.parametrize("case", CASES)
def test_the_stored_values_are_what_torch_returns(case, golden, given, dataset, sides):
  found = {f"{case}/{name}": value for name, value in sides.cases.values(case, given, dataset).items()}
  assert set(found) == {name for name in golden if name.startswith(f"{case}/")}
  for name, value in found.items():
    (close if value.dtype == np.float32 else np.testing.assert_array_equal)(value, golden[name])


def test_every_case_is_stored(golden, sides):
  assert list(sides.cases.CASES) == CASES
  assert {name.partition("/")[0] for name in golden} == {"inputs", *CASES}


def test_draws_of_rrd(sides):
  seen = sides.against.seen_of(np.array([0]), np.array([0]), 5, 30)
  method = sides.against.Rrd(sides.torch.arange(1, 11).expand(5, 10), seen, 4, 8, 10.0)
  (items,) = method.targets(None, None)
  assert items.shape == (5, 12) and (items[:, 1:4] > items[:, :3]).all() and (items[:, 3] <= 10).all()
  assert all(len(set(row.tolist())) == 12 for row in items) and ((items > 10) | (items == 0))[:, 4:].all()


def test_draws_of_rcekd(given, sides):
  user, item = (sides.torch.from_numpy(given[name]) for name in ("user", "item"))
  teacher = user.flip(1), item
  lists = sides.against.top_k(*teacher, 5)
  items, scores, fresh, shared = sides.against.Rcekd(lists, teacher, 9, 4, 1.0, 10.0, 3.0).targets(user, item)
  first, drawn, own = items.split((5, 4, 5), 1)
  assert (first == (user @ item.T).topk(5).indices).all() and (own == lists).all()
  np.testing.assert_allclose(scores, (teacher[0] @ item.T).gather(1, items), rtol=1e-4, atol=1e-5)
  for row in range(USERS):
    listed, a, t = (set(x[row].tolist()) for x in (first, drawn, own))
    assert fresh[row].tolist() == [i not in listed | a for i in own[row].tolist()]
    assert shared[row].item() == pytest.approx(len(a & t) / 5)


@pytest.fixture(scope="module")
def recbole():
  return pytest.importorskip("kd_jax.bench.against.recbole")


def test_recbole_ranks_as_we_do(given, dataset, params, recbole, sides):
  trainer, train, validation = recbole.prepare(dataset, 6, 32, metric_decimal_place=9)
  embeddings = trainer.model.user_embedding, trainer.model.item_embedding
  for field, table, embedding in zip(("user_id", "item_id"), (given["user"], given["item"]), embeddings, strict=True):
    ids = train._dataset.token2id(field, np.arange(len(table)).astype(str))
    assert sorted(ids) == list(range(1, len(table) + 1)) and len(embedding.weight) == len(table) + 1  # 0 is padding
    embedding.weight.data[ids] = sides.torch.from_numpy(table)
  found = trainer.evaluate(validation, load_best_model=False)
  layout = protocols.layout(dataset, "validation")
  users, own = protocols.measure(mf(USERS, ITEMS, DIM), {"params": params}, layout)
  assert len(users) == len(validation.uid_list) and len(found) == 24
  for name, value in found.items():
    assert value == pytest.approx(own[name].mean(), abs=1e-8), name


def test_recbole_trains_on_the_same_interactions(dataset, recbole):
  _, train, _ = recbole.prepare(dataset, 6, 32)

  def to_own(field, ids):
    return train._dataset.id2token(field, ids.numpy()).astype(int)

  batches = [(to_own("user_id", b["user_id"]), *(to_own("item_id", b[k]) for k in ("item_id", "neg_item_id")))
             for b in train]
  assert {len(users) for users, *_ in batches[:-1]} == {32}
  users, items, negatives = map(np.concatenate, zip(*batches, strict=True))
  seen = set(zip(*(x.tolist() for x in dataset.train[:2]), strict=True))
  assert len(users) == len(seen) and set(zip(users.tolist(), items.tolist(), strict=True)) == seen
  assert not seen & set(zip(users.tolist(), negatives.tolist(), strict=True))


def test_recbole_works(dataset, recbole, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  works = recbole.works(dataset, interleave.Settings("mf(dim=6)", "mf()", (), 32, 1))
  assert list(works) == ["evaluation", "epoch plain"]
  assert all(prepare()()["seconds"] > 0 for prepare in works.values())
  assert not list(tmp_path.iterdir())  # where RecBole would write logs and checkpoints
