"""The other sides of the benchmark do the same work: the same losses, ranks and draws from the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.base import Outputs
from kd_jax.bench import interleave
from kd_jax.data import index
from kd_jax.evaluation import protocols
from kd_jax.losses.rcekd import rcekd
from kd_jax.losses.rrd import rrd
from kd_jax.models.lightgcn import lightgcn
from kd_jax.models.mf import mf
from kd_jax.objectives import tasks
from kd_jax.ranking import rank

torch = pytest.importorskip("torch")
against = pytest.importorskip("kd_jax.bench.against.torch")
RNG = np.random.default_rng(0)


def normal(*shape):
  return RNG.normal(size=shape).astype(np.float32)


def close(own, other):
  np.testing.assert_allclose(np.asarray(own), other.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def dataset(make_dataset):
  return make_dataset(num_users=70, num_items=90, validation=3)


@pytest.fixture
def tables(dataset):
  return normal(dataset.num_users, 6), normal(dataset.num_items, 6)


def test_bpr_and_its_gradient(dataset, tables):
  users, items = RNG.integers(70, size=32), RNG.integers(90, size=(32, 2))

  def loss(params):
    return jnp.sum(tasks.bpr(mf(70, 90, 6).apply({"params": params}, {"users": users, "items": items}), {}))

  own, gradient = jax.value_and_grad(loss)({"user": tables[0], "item": tables[1]})
  nodes = torch.from_numpy(np.concatenate(tables)).requires_grad_()
  other = against.bpr(nodes, *map(torch.from_numpy, (users, items[:, 0] + 70, items[:, 1] + 70))).sum()
  other.backward()
  close(own, other)
  close(jnp.concatenate([gradient["user"], gradient["item"]]), nodes.grad)


def test_rrd():
  scores, kd = normal(5, 12), rrd(k=4, depth=10)
  seen = against.seen_of(np.array([0]), np.array([0]), 5, 30)
  other = against.Rrd(torch.arange(1, 11).expand(5, 10), seen, 4, 8, 10.0)
  close(kd.loss(Outputs(jnp.asarray(scores)), None, {}), other.loss(torch.from_numpy(scores)))
  (items,) = other.targets(None, None)
  assert items.shape == (5, 12) and (items[:, 1:4] > items[:, :3]).all() and (items[:, 3] <= 10).all()
  assert all(len(set(row.tolist())) == 12 for row in items) and ((items > 10) | (items == 0))[:, 4:].all()


def test_rcekd():
  scores, teacher, fresh, shared = normal(5, 10), normal(5, 10), RNG.random((5, 4)) < 0.5, RNG.random(5).astype("f")
  kd = rcekd(k=4, sampled=2, depth=6, temperature=2.0)
  own = kd.loss(Outputs(jnp.asarray(scores)), Outputs(jnp.asarray(teacher)), {"fresh": fresh, "shared": shared})
  other = against.Rcekd(torch.zeros(5, 4), None, 6, 2, 2.0, 10.0, 3.0)
  close(own, other.loss(*map(torch.from_numpy, (scores, teacher, fresh, shared))))


def test_targets_of_rcekd(tables):
  user, item = map(torch.from_numpy, tables)
  teacher = user.flip(1), item
  lists = against.top_k(*teacher, 5)
  items, scores, fresh, shared = against.Rcekd(lists, teacher, 9, 4, 1.0, 10.0, 3.0).targets(user, item)
  best, drawn, own = items.split((5, 4, 5), 1)
  assert (best == (user @ item.T).topk(5).indices).all() and (own == lists).all()
  np.testing.assert_allclose(scores, (teacher[0] @ item.T).gather(1, items), rtol=1e-4, atol=1e-5)
  for row in range(70):
    listed, a, t = (set(x[row].tolist()) for x in (best, drawn, own))
    assert fresh[row].tolist() == [i not in listed | a for i in own[row].tolist()]
    assert shared[row].item() == pytest.approx(len(a & t) / 5)


def test_propagation_and_its_gradient(dataset, tables):
  module, scale = lightgcn(70, 90, 6, layers=2), normal(160, 6)
  constants = jax.tree.map(jnp.asarray, module.constants(dataset))

  def total(params):
    nodes = jnp.concatenate(module.apply({"params": params, "constants": constants}, method="tables"))
    return jnp.sum(nodes * scale), nodes

  (_, own), gradient = jax.value_and_grad(total, has_aux=True)({"user": tables[0], "item": tables[1]})
  table = torch.from_numpy(np.concatenate(tables)).requires_grad_()
  nodes = against.lightgcn(table, against.adjacency(dataset), 2)
  (nodes * torch.from_numpy(scale)).sum().backward()
  close(own, nodes)
  close(jnp.concatenate([gradient["user"], gradient["item"]]), table.grad)


def test_ranks(dataset, tables):
  variables = {"params": {"user": tables[0], "item": tables[1]}}
  layout = protocols.layout(dataset, "validation")
  lines = rank.network_ranks(mf(70, 90, 6), variables, layout.layout)
  own = lines[layout.where[:, 0], layout.where[:, 1]]
  seen, held = (against.seen_of(*log[:2], 70, 90) for log in (dataset.train, dataset.validation))
  other = against.ranks(*map(torch.from_numpy, tables), held, seen)
  order = np.lexsort((dataset.validation.items, dataset.validation.users))
  np.testing.assert_array_equal(own[order], other.numpy())


def test_negatives_are_the_nth_absent(dataset):
  users = RNG.integers(70, size=500)
  seen = jax.tree.map(jnp.asarray, index.seen_by_users(dataset))
  uniform = RNG.random(500)
  own = index.nth_absent(seen, users, (uniform * np.asarray(index.num_absent(seen, users, 90))).astype(np.int32))
  other = against.draw_unseen(against.seen_of(*dataset.train[:2], 70, 90), *map(torch.from_numpy, (users, uniform)))
  np.testing.assert_array_equal(own, other.numpy())


@pytest.fixture(scope="module")
def recbole():
  return pytest.importorskip("kd_jax.bench.against.recbole")


def test_recbole_ranks_as_we_do(dataset, tables, recbole):
  trainer, train, validation = recbole.prepare(dataset, 6, 32, metric_decimal_place=9)
  embeddings = trainer.model.user_embedding, trainer.model.item_embedding
  for field, table, embedding in zip(("user_id", "item_id"), tables, embeddings, strict=True):
    ids = train._dataset.token2id(field, np.arange(len(table)).astype(str))
    assert sorted(ids) == list(range(1, len(table) + 1)) and len(embedding.weight) == len(table) + 1  # 0 is padding
    embedding.weight.data[ids] = torch.from_numpy(table)
  found = trainer.evaluate(validation, load_best_model=False)
  variables = {"params": {"user": tables[0], "item": tables[1]}}
  users, own = protocols.measure(mf(70, 90, 6), variables, protocols.layout(dataset, "validation"), (5, 10, 20, 50))
  assert len(users) == len(validation.uid_list) and len(found) == 24
  for name, value in found.items():
    assert value == pytest.approx(own[name].mean(), abs=1e-8), name


def test_recbole_trains_on_the_same_interactions(dataset, recbole):
  _, train, _ = recbole.prepare(dataset, 6, 32)
  to_own = lambda field, ids: train._dataset.id2token(field, ids.numpy()).astype(int)
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
