"""Items of equal score: one order in ranks, lists, soft labels and exports, which depends on ids alone."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd_jax
from kd_jax import data, serving
from kd_jax.base import Interactions
from kd_jax.data import index, order
from kd_jax.evaluation import metric_names, protocols
from kd_jax.losses.hetcomp import _by_teacher
from kd_jax.models.mf import mf
from kd_jax.ranking import rank
from kd_jax.serving import export
from kd_jax.serving.requests import Request
from kd_jax.teachers import imported, loading, soft_labels
from kd_jax.training import graph, kd_targets

ALL = ("train", "validation", "test")


def write(path, lines, header="user,item,part"):
  path.write_text("\n".join([header, *lines]) + "\n")
  return path


# The leak: indices by first appearance, and what is popular in test appears first.

USERS, ITEMS, SEEN, HELD = 200, 400, 8, 5


def leaking():
  """(training and validation rows, test rows): 19 of 20 test rows are on 20 items."""
  rng, before, test = np.random.default_rng(0), [], []
  for user in range(USERS):
    own = rng.permutation(np.arange(20, ITEMS))
    hot = rng.permutation(20)[:HELD].tolist()
    held = [hot[n] if rng.random() < 0.95 else own[-n - 1] for n in range(HELD)]
    before += [f"u{user},i{item},train" for item in own[:SEEN]] + [f"u{user},i{own[SEEN]},validation"]
    test += [f"u{user},i{item},test" for item in held]
  return before, test


def constant(num_users, num_items):
  """(module, variables) of a model whose scores are all 0."""
  params = {"user": jnp.zeros((num_users, 1)), "item": jnp.zeros((num_items, 1))}
  return mf(num_users, num_items, 1), {"params": params}


def recall(dataset):
  metrics = metric_names.usual("interactions", (10,))
  network = constant(dataset.num_users, dataset.num_items)
  return protocols.means(protocols.full_ranking(*network, protocols.layout(dataset, "test"), metrics)[1])["recall@10"]


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
  """The example with its test rows first, last, and anywhere."""
  folder, (before, test) = tmp_path_factory.mktemp("leak"), leaking()
  several = {"first": test + before, "last": before + test,
             "shuffled": np.random.default_rng(1).permutation(test + before).tolist()}
  call = "interactions(path={!r}, split='given', split_column='part')"
  paths = {name: str(write(folder / f"{name}.csv", lines)) for name, lines in several.items()}
  return {name: data.load(call.format(path), cache_dir=folder / "cache", splits=ALL) for name, path in paths.items()}


def test_a_constant_model_gains_nothing_from_where_test_rows_stand(orders):
  found = {name: recall(dataset) for name, dataset in orders.items()}
  assert found["first"] == found["last"] == found["shuffled"] < 0.2, found


def test_a_constant_model_has_the_recall_of_chance(orders):
  """Over 40 namings of the items."""
  dataset = orders["first"]
  found = [recall(dataset._replace(item_ids=np.array([f"{seed} {n}" for n in range(dataset.num_items)])))
           for seed in range(40)]
  chance = 10 / (dataset.num_items - SEEN)
  assert np.std(found) > 0.01 and np.mean(found) == pytest.approx(chance, abs=0.015)


# One order everywhere, against sorts of NumPy with two keys.

NAMES = np.array([f"name {n}" for n in range(130)])
PEOPLE = np.array([f"person {n}" for n in range(70)])


def tied(seed=0):
  """(data, module, variables, scores [U, I]): scores are small integers."""
  from conftest import build_dataset

  dataset = build_dataset(num_users=70, num_items=130, train=9, validation=2, test=4, seed=seed)
  dataset, rng = dataset._replace(item_ids=NAMES, user_ids=PEOPLE), np.random.default_rng(seed)
  params = {side: rng.integers(-1, 2, size=(n, 2)).astype(np.float32) for side, n in (("user", 70), ("item", 130))}
  return dataset, mf(70, 130, 2), {"params": jax.tree.map(jnp.asarray, params)}, params["user"] @ params["item"].T


def best(scores, ids):
  """Candidates of every row by (score descending, priority ascending)."""
  return np.lexsort((np.broadcast_to(order.priority(ids), scores.shape), -scores), axis=1)


def check_lists_and_ranks():
  """Of lists of items and of users, soft labels, ranks, and ranks among sampled items."""
  dataset, module, variables, scores = tied()
  hidden = scores.copy()
  hidden[dataset.train.users, dataset.train.items] = -np.inf
  in_order = best(hidden, NAMES)
  seen = jax.tree.map(jnp.asarray, index.seen_by_users(dataset))
  for k in (7, 60):
    listed = rank.network_top_k(module, variables, seen, k=k, exclude_seen=True)
    labels, _ = rank.network_soft_labels(module, variables, seen, k=k, exclude_seen=True)
    for found in (listed, labels):
      np.testing.assert_array_equal(found.items, in_order[:, :k])
      np.testing.assert_array_equal(found.scores, np.take_along_axis(hidden, in_order[:, :k], axis=1))
  fans = index.seen_of(*index.side(dataset, "items"), index.priority_of(dataset, "items"))
  fans = jax.tree.map(jnp.asarray, fans)
  for_items = rank.network_top_k(module, variables, fans, k=11, exclude_seen=True, rows="items")
  np.testing.assert_array_equal(for_items.items, best(hidden.T, PEOPLE)[:, :11])
  place = np.argsort(in_order, axis=1)
  layout = protocols.layout(dataset, "test", sampled=20)
  found = protocols.ranked(module, variables, layout, lists=5)
  np.testing.assert_array_equal(found.ranks, place[dataset.test.users, dataset.test.items])
  np.testing.assert_array_equal(found.lists.items, in_order[:, :5])
  rows, users = np.arange(len(found.held.users))[:, None], found.held.users[:, None]
  rivals = np.sort(place[users, np.concatenate([found.held.items[:, None], layout.sampled], axis=1)], axis=1)
  own = place[users[:, 0], found.held.items]
  np.testing.assert_array_equal(found.sampled, (rivals[rows[:, 0]] < own[:, None]).sum(axis=1))


def on_devices(devices):
  """The finished process of the check on so many virtual devices."""
  flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "PYTHONPATH": os.pathsep.join(sys.path)}
  return subprocess.run([sys.executable, __file__], env=os.environ | flags, capture_output=True, text=True, timeout=300)


BESIDE = {4: functools.partial(on_devices, 4)}


def test_lists_and_ranks_are_those_of_a_sort_with_two_keys():
  check_lists_and_ranks()


def test_lists_and_ranks_are_the_same_on_four_devices(beside):
  done = beside(4)
  assert done.returncode == 0, done.stderr[-3000:]
  assert json.loads(done.stdout.splitlines()[-1]) == 4


def test_targets_of_methods_have_the_order_of_users_too():
  """Lists of frozen and of trained networks, for users and for items; a view has the same order."""
  dataset, _, variables, _ = tied()
  module, variables = constant(70, 130)
  lists = kd_jax.Lists(teacher=6, student=5)

  def echo(rows):
    return kd_jax.KD(lambda student, teacher, batch: student.scores[:, 0], lists, lambda rng, view: {
      "items": jnp.concatenate([view.teacher.items, view.student.items]), "priority": view.priority}, rows=rows)

  run = graph.Run((("student", module), ("teacher", module)), ("student",), (("student", "teacher"),),
                  ((1.0, echo("users")), (1.0, echo("items"))), kd_jax.objectives.bpr(), None, "sum")
  given, params = graph.Given({"teacher": variables["params"]}, {}), {"networks": {"student": variables["params"]}}
  sources = kd_targets.prepare(run, dataset, given)
  learned = kd_targets.learner_lists(run, params, given, sources, 0, None)
  made = kd_targets.targets(jax.random.key(0), params, given, sources, learned, {}, jnp.int32(0), run=run)
  seen = np.zeros((70, 130), bool)
  seen[dataset.train.users, dataset.train.items] = True
  for fields, own, ids in zip(made.values(), (seen, seen.T), (NAMES, PEOPLE), strict=True):
    expected = best(np.where(own, -np.inf, 0.0), ids)
    assert np.array_equal(fields["items"], np.concatenate([expected[:, :6], expected[:, :5]], axis=1))
    assert np.array_equal(fields["priority"], np.broadcast_to(order.priority(ids), own.shape))


def test_what_a_user_has_seen_is_in_one_order_for_hetcomp():
  teacher = jnp.array([[[1.0, 2.0, 1.0, 2.0, 5.0]]])
  found, there = _by_teacher(teacher, jnp.array([0]), jnp.array([[4, 3, 2, 1, 0]]), jnp.arange(5.0)[None] * 10,
                             jnp.array([[True, True, True, True, False]]))
  assert found.tolist() == [[30, 10, 20, 0, 40]] and there.tolist() == [[True] * 4 + [False]]


def test_a_file_with_equal_scores_is_read_in_the_same_order_whatever_its_rows(tmp_path):
  dataset, *_ = tied()
  lines = [f"{user},{item},{(n + m) % 2}" for n, user in enumerate(PEOPLE[:5]) for m, item in enumerate(NAMES[:20])]
  made = []
  for name, rows in (("a", lines), ("b", lines[::-1])):
    path = write(tmp_path / f"{name}.csv", rows, "user,item,score")
    made.append(imported.read(str(path), dataset).lists)
  for user in range(5):
    scores = np.where(np.arange(130) < 20, (user + np.arange(130)) % 2, -1.0)[None]
    assert [found.items[user].tolist() for found in made] == [best(scores, NAMES)[0, :20].tolist()] * 2


def test_the_mean_over_priorities_is_the_expectation_over_ties():
  """NDCG@5 of one test item: its place is uniform among the items of its score."""
  dataset, module, variables, scores = tied()
  first = np.unique(dataset.test.users, return_index=True)[1]
  held = Interactions(*(x[first] for x in dataset.test[:2]))
  layout, where = rank.held_out(held, [dataset.train], order.priority(NAMES))
  layout, rng, draws = jax.tree.map(jnp.asarray, layout), np.random.default_rng(0), 200
  gain = np.where(np.arange(130) < 5, 1 / np.log2(np.arange(130) + 2), 0)
  found = np.zeros(len(held.users))
  for _ in range(draws):
    drawn = layout._replace(priority=jnp.asarray(rng.permutation(130), jnp.int32))
    lines = rank.network_ranks(module, variables, drawn)
    found += gain[lines[where[:, 0], where[:, 1]]] / draws
  hidden = scores.copy()
  hidden[dataset.train.users, dataset.train.items] = -np.inf
  own = scores[held.users, held.items][:, None]
  above, equal = (hidden > own).sum(axis=1), (hidden == own).sum(axis=1)
  expected = [gain[a : a + n].mean() for a, n in zip(above, equal, strict=True)]
  assert np.ptp(expected) > 0.1
  np.testing.assert_allclose(found, expected, atol=0.09)
  assert found.mean() == pytest.approx(np.mean(expected), abs=0.01)


# All the way: a file and the same rows in another order.


def lines():
  """60 users; a split by time leaves the last ones without training interactions."""
  rng = np.random.default_rng(2)
  return [f"u{user},i{item},{user + rng.integers(25)}" for user in range(60)
          for item in rng.permutation(40)[: rng.integers(4, 9)]]


def run(folder, name, rows, model):
  """(what `fit` returns; metrics of all users, and best lists)."""
  path = write(folder / f"{name}.csv", rows, "user,item,time")
  call = f"interactions(path={str(path)!r}, timestamp='time', split='temporal')"
  fitted = kd_jax.fit(call, model=model, epochs=1, batch_size=64, learning_rate=0.1, seed=1, workdir=str(folder / name))
  report = kd_jax.evaluate(fitted)
  return fitted, {"metrics": report.metrics, "users": report.users.tolist(), "values": report.values,
                  "lists": fitted.top_k(12)}


def files(fitted):
  """What the soft labels and the export of a run hold."""
  dataset = fitted.dataset
  kd_jax.soft_labels(fitted, f"{fitted.workdir} labels", top_k=12)
  list(export.export_run(fitted.workdir, f"{fitted.workdir} export", history="train"))
  labels = soft_labels.read(f"{fitted.workdir} labels", dataset)
  recommender = serving.load(f"{fitted.workdir} export", trial=False)
  answers = recommender.recommend_many([Request(user, k=12) for user in dataset.user_ids])
  names = [answer.items for answer in answers]
  known = [n for n, answer in enumerate(answers) if answer.source != "popularity"]  # others have no history to score
  listed = [[dataset.item_ids[i] for i in row if i >= 0] for row in labels.items.tolist()]
  assert len(known) > 10 and [listed[n] for n in known] == [names[n] for n in known]
  assert np.array_equal(labels.items, fitted.top_k(12).items)
  return {"labels": labels[:3], "names": [name for row in names for name in row],
          "scores": [score for answer in answers for score in answer.scores]}


@pytest.mark.parametrize("model", ["pop()", "ease(l2=2.0)"])
def test_shuffled_rows_change_no_metric_list_label_or_export(model, tmp_path):
  """Users without training interactions have equal scores by EASE."""
  shuffled = np.random.default_rng(3).permutation(lines()).tolist()
  (one, found), (other, again) = (run(tmp_path, name, rows, model) for name, rows in (
    ("as it is", lines()), ("shuffled", shuffled)))
  jax.tree.map(np.testing.assert_array_equal, found, again)
  assert (np.diff(found["lists"].scores, axis=1) == 0).mean() > 0.05, "there are ties"
  if model == "ease(l2=2.0)":
    jax.tree.map(np.testing.assert_array_equal, files(one), files(other))


def test_an_empty_history_gives_the_order_of_priorities(tmp_path):
  path = write(tmp_path / "log.csv", lines(), "user,item,time")
  dataset = data.load(f"interactions(path={str(path)!r}, timestamp='time', split='temporal')")
  module = loading.build_model("gru4rec(dim=2, length=2)", dataset)
  constants = {"constants": jax.tree.map(jnp.asarray, loading.constants(module, dataset))}
  example, rng = {"users": jnp.zeros(1, jnp.int32)}, jax.random.key(0)
  params = module.apply(constants, example, rngs={"params": rng}, mutable=["params"])[1]["params"]
  seen = jax.tree.map(jnp.asarray, index.seen_by_users(dataset))
  found = rank.network_top_k(module, {"params": params, **constants}, seen, k=40, exclude_seen=True)
  empty = np.bincount(dataset.train.users, minlength=dataset.num_users) == 0
  in_order = order.inverse(order.priority(dataset.item_ids))
  assert empty.sum() > 2 and (np.asarray(found.items)[empty] == in_order[:40]).all()
  assert not (np.asarray(found.items)[~empty] == in_order[:40]).all(axis=1).any()


if __name__ == "__main__":
  check_lists_and_ranks()
  print(json.dumps(jax.local_device_count()))
