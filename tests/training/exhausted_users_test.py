"""A user who has every item in training, or all but one: weight 0 where nothing can be drawn, and a count.

What the other users give does not change, which is checked against NumPy, or against the same data without such users.
"""

import csv
import inspect
import math
import re

import jax
import jax.numpy as jnp
import methods_contract_test as contract
import numpy as np
import pytest
from conftest import build_dataset

import kd_jax
from kd_jax import serving
from kd_jax.base import STUDENT, Dataset, InputError, Interactions, Ranked, View
from kd_jax.data import index
from kd_jax.evaluation import metric_names, protocols
from kd_jax.losses.hetcomp import hetcomp
from kd_jax.losses.ir_rrd import ir_rrd
from kd_jax.losses.kl import kl
from kd_jax.losses.rrd import rrd
from kd_jax.runs import epoch, setup
from kd_jax.serving import export
from kd_jax.teachers import loading, make_soft_labels, soft_labels
from kd_jax.training import batches, graph, kd_targets, left_out, windows

USERS, ITEMS = 40, 30
FULL, NEARLY = 0, 1  # the users who have all items, and all but LAST, in training
LAST = ITEMS - 1
QUICK = dict(model="mf(dim=4)", batch_size=64, epochs=2, learning_rate=0.05)


def make_rows():
  """{split: [(user, item)]}: eight training items and one of each other split, except for the first two users."""
  rng = np.random.default_rng(0)
  rows = {"train": [(FULL, i) for i in range(ITEMS)] + [(NEARLY, i) for i in range(LAST)],
          "validation": [(NEARLY, LAST)], "test": []}
  for user in range(2, USERS):
    drawn = rng.permutation(ITEMS)
    rows["train"] += [(user, i) for i in drawn[:8]]
    rows["validation"].append((user, drawn[8]))
    rows["test"].append((user, drawn[9]))
  return rows


def without_full(rows):
  return rows | {"train": [(user, i) for user, i in rows["train"] if user != FULL]}


def in_memory(rows, num_users=USERS, num_items=ITEMS) -> Dataset:
  logs = {split: Interactions(*np.array(pairs, np.int32).reshape(-1, 2).T) for split, pairs in rows.items()}
  ids = np.arange(num_users).astype(str), np.arange(num_items).astype(str)
  return Dataset("in_memory()", num_users, num_items, logs["train"], logs["validation"], logs["test"], *ids, hashes={},
                 report={}, synthetic=True)


@pytest.fixture(scope="module")
def dataset():
  return in_memory(make_rows())


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
  """The call of the same data as a file."""
  path = tmp_path_factory.mktemp("log") / "log.csv"
  with open(path, "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["user", "item", "part"])
    writer.writerows((f"u{user}", f"i{item}", part) for part, rows in make_rows().items() for user, item in rows)
  return f"interactions(path='{path}', split='given', split_column='part')"


@pytest.fixture(scope="module")
def teacher(on_disk, tmp_path_factory):
  """The directory of a run on it."""
  return kd_jax.fit(on_disk, workdir=tmp_path_factory.mktemp("exhausted") / "teacher", **QUICK).workdir


def said(capsys, words):
  """The lines that were printed and contain `words`."""
  return [line for line in capsys.readouterr().out.splitlines() if words in line]


# The base loss


def draw(dataset, pool=None, negatives=3, kd_per="interaction", seed=0):
  plan = batches.plan(0, 1, dataset.train, 64, kd_per)
  seen = jax.tree.map(jnp.asarray, index.seen_by_users(dataset))
  users, items = batches.to_device(dataset.train, dataset.num_users, dataset.num_items)
  return plan, jax.tree.map(np.asarray, batches.draw(
      jax.random.key(seed), plan, users, items, seen, pool, negatives=negatives, num_items=dataset.num_items,
      kd_per=kd_per))


@pytest.mark.parametrize("kd_per", ["interaction", "user"])
def test_interactions_of_a_user_with_every_item_have_no_negatives(dataset, kd_per):
  plan, batch = draw(dataset, kd_per=kd_per)
  _, expected = draw(in_memory(without_full(make_rows())), kd_per=kd_per)
  real, full, nearly = plan["weight"] > 0, batch["users"] == FULL, batch["users"] == NEARLY
  assert (full & real).sum() == ITEMS and (nearly & real).sum() == LAST
  assert batch["items"].min() >= 0 and batch["items"].max() < ITEMS
  assert np.array_equal(batch["weight"], real & ~full) and np.array_equal(batch["real"], real)
  assert (batch["items"][nearly][:, 1:] == LAST).all()
  assert not batch["items_weight"][full][:, 1:].any()
  if kd_per == "interaction":
    assert np.array_equal(batch["items_weight"][..., 0], real)
    assert np.array_equal(batch["items_weight"][..., 1], real & ~full)
  else:  # every item counts once: that of the first place with a weight
    for items, weight, kept in zip(batch["items"], batch["items_weight"], real & ~full, strict=True):
      counts = np.bincount(items.ravel(), weights=weight.ravel(), minlength=ITEMS)
      assert counts.max() == 1 and counts[items[kept].ravel()].all()
  assert expected["weight"].all() or (expected["weight"] == (expected["real"] > 0)).all(), "nobody else loses weight"


def test_negatives_do_not_depend_on_whether_another_user_has_every_item(dataset):
  """Of the same plan, only the row of this user changes."""
  plan, batch = draw(dataset)
  users, items = batches.to_device(dataset.train, USERS, ITEMS)
  fewer = Interactions(dataset.train.users[1:], dataset.train.items[1:])  # the user lacks its first item
  seen = jax.tree.map(jnp.asarray, index.seen_of(*fewer[:2], USERS, ITEMS))
  other = batches.draw(jax.random.key(0), plan, users, items, seen, negatives=3, num_items=ITEMS)
  rest = batch["users"] != FULL
  assert np.array_equal(batch["items"][rest], np.asarray(other["items"])[rest])
  assert np.asarray(other["weight"])[~rest].sum() == ITEMS


def test_a_pool_without_unseen_items_is_exhausted_too():
  """Nobody has the last four items in training; two users have all others."""
  rows = make_rows()
  rows["train"] = [(user, item) for user, item in rows["train"] if item < ITEMS - 4]
  _, batch = draw(in_memory(rows), jnp.arange(ITEMS - 4))
  assert np.array_equal(np.unique(batch["users"][(batch["weight"] == 0) & (batch["real"] > 0)]), [FULL, NEARLY])
  assert batch["items"].min() >= 0 and batch["items"].max() < ITEMS - 4
  _, batch = draw(in_memory(rows))
  assert np.array_equal(batch["weight"], batch["real"])


def crowded(full=True):
  """Five users of nine items who have all but one, so that the negative is known; with `full`, another who has all."""
  rows = {"train": [(5, i) for i in range(9)] * full, "validation": [(0, 0)], "test": []}
  rows["train"] += [(user, i) for user in range(5) for i in range(9) if i != user]
  return in_memory(rows, 6, 9)


def bpr_by_hand(positive, negative):
  return math.log1p(math.exp(negative - positive))


def bce_by_hand(positive, negative):
  return math.log1p(math.exp(-positive)) + math.log1p(math.exp(negative))


LOSSES = {"bpr": bpr_by_hand, "bce": bce_by_hand, "softmax": bpr_by_hand}  # of one negative, softmax is bpr


@pytest.mark.parametrize(("loss", "reduction"), [("bpr", "sum"), ("bce", "mean"), ("softmax", "sum")])
def test_a_step_is_that_without_the_user_who_has_every_item(loss, reduction, capsys):
  """One batch, one step of SGD; the reported loss is the mean over all interactions, of which nine count as 0."""
  options = dict(model="mf(dim=3, init_std=0.7)", loss=loss, batch_size=64, epochs=1, optimizer="sgd",
                 learning_rate=0.1, monitor="epoch", reduction=reduction)
  before = kd_jax.fit(crowded(), **options | {"learning_rate": 1e-12})
  start = {k: np.float64(v) for k, v in before.params.items()}
  scores = start["user"] @ start["item"].T
  expected = sum(LOSSES[loss](scores[user, i], scores[user, user]) for user in range(5) for i in range(9) if i != user)
  assert before.history[0]["loss"]["base"] == pytest.approx(expected / 49, rel=1e-5)
  assert said(capsys, "loss: ") == ["loss: 5 of 6 users have unseen items; the others have no negatives, and weight 0 "
                                    "in the base loss"]
  assert before.info["left_out"] == ["loss: 5 of 6 users have unseen items; the others have no negatives, and weight "
                                     "0 in the base loss"]
  found, other = (kd_jax.fit(crowded(full), **options) for full in (True, False))
  assert said(capsys, "loss: ")[1:] == [] and other.info["left_out"] == []
  np.testing.assert_array_equal(found.params["user"][5], before.params["user"][5].astype(np.float32))
  scale = 1 if reduction == "sum" else 40 / 49  # a mean over the interactions of the batch
  for side in ("user", "item"):
    moved, alone = (np.float64(x.params[side]) - start[side] for x in (found, other))
    assert np.abs(alone).max() > 1e-2
    np.testing.assert_allclose(moved, scale * alone, atol=1e-6)


def test_cross_entropy_needs_no_negatives(capsys):
  fitted = kd_jax.fit(crowded(), model="mf(dim=3)", loss="cross_entropy", epochs=1, batch_size=64, monitor="epoch",
                      learning_rate=1e-12, optimizer="sgd")
  scores = np.float64(fitted.params["user"]) @ np.float64(fitted.params["item"]).T
  log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
  train = crowded().train
  assert fitted.history[0]["loss"]["base"] == pytest.approx(-log_p[train.users, train.items].mean(), rel=1e-5)
  assert said(capsys, "loss: ") == [] and fitted.info["left_out"] == []


def test_data_in_which_every_user_has_every_item_is_refused():
  rows = {"train": [(user, i) for user in range(3) for i in range(4)], "validation": [], "test": []}
  with pytest.raises(InputError, match="`data`: every user has every item"):
    kd_jax.fit(in_memory(rows, 3, 4), model="mf(dim=3)", epochs=1, batch_size=16, monitor="epoch")


def test_repeated_interactions_count_once():
  """Three users have two of four items each; one has its items twice."""
  rows = {"train": [(0, 0), (0, 1), (0, 0), (0, 1), (1, 2), (1, 3), (2, 0), (2, 3)], "validation": [], "test": []}
  repeated = in_memory(rows, 3, 4)
  assert left_out.by_base_loss(repeated, None) is None
  edge = graph.Edge("", 1.0, kl(candidates="teacher", k=2, exclude_seen=True), STUDENT, ("teacher",))
  assert left_out.by_method(edge, repeated) is None
  rows["train"] += [(1, 0), (1, 1)]
  assert left_out.by_base_loss(in_memory(rows, 3, 4), None).startswith("loss: 2 of 3 users")
  assert left_out.by_method(edge, in_memory(rows, 3, 4)).startswith("kd: 2 of 3 users have the 2 unseen items")


def test_a_batch_of_such_interactions_only_changes_nothing(dataset):
  """Batches of one interaction."""
  fitted = kd_jax.fit(crowded(), model="mf(dim=3)", epochs=1, batch_size=1, monitor="epoch", reduction="mean")
  assert all(np.isfinite(x).all() for x in fitted.params.values()) and np.isfinite(fitted.history[0]["loss"]["base"])


@pytest.mark.parametrize("model", ["sasrec(dim=4, length=5)", "gru4rec(dim=4, length=5)"])
def test_sequences_of_such_a_user_have_weight_zero(dataset, model):
  ready = setup.prepare(kd_jax.FitOptions(data=dataset, model=model, epochs=1, batch_size=20))
  drawn = jax.tree.map(np.asarray, epoch.drawer(ready)(epoch.initial_state(ready), 0, 0).batches)
  full = drawn["users"] == FULL
  assert (drawn["real"][full] > 0).sum() == ITEMS - 1 and not drawn["weight"][full].any()
  assert np.array_equal(drawn["weight"][~full], drawn["real"][~full])
  assert drawn["items"].min() >= 0 and drawn["items"].max() < ITEMS


# Methods, all that the registry knows


FEW = {"k": 3, "depth": 12, "unseen": 3, "uninteresting": 3, "dynamic_samples": 3, "sampled": 3, "observed": 2,
       "pairs": 4, "groups": 2, "experts": 2, "anchors": 3, "neighbours": 2, "temperature": 1.0}
MANY = dict(num_users=60, num_items=50)


def few(name):
  """The method with short lists; arguments of other names keep their defaults, which the data may be too small for."""
  factory = getattr(__import__(f"kd_jax.losses.{name}", fromlist=[name]), name)
  return factory(**{argument: FEW[argument] for argument in inspect.signature(factory).parameters if argument in FEW})


@pytest.fixture(scope="module")
def exhausted():
  """Random data in which user 0 has every item, user 1 all but one, and all users have item 0."""
  plain = build_dataset(**MANY, train=5)
  kept = plain.train.users > 1
  train = [np.stack([plain.train.users[kept], plain.train.items[kept]])]
  train += [np.stack([np.full(n, user), np.arange(n)]) for user, n in ((0, 50), (1, 49))]
  train += [np.stack([np.arange(2, 60), np.zeros(58, int)])]
  pairs = np.unique(np.concatenate(train, axis=1), axis=1).astype(np.int32)
  return plain._replace(train=Interactions(*pairs))


@pytest.fixture(scope="module")
def drawn(exhausted):
  """A batch with interactions of both users and of others."""
  _, batch = draw(exhausted, negatives=contract.NEGATIVES)
  whole, = (n for n, users in enumerate(batch["users"][:1]) if {0, 1} < set(users.tolist()))
  return jax.tree.map(lambda x: jnp.asarray(x[whole]), batch)


def short_rows(kd, dataset, teachers):
  """Mask of the rows whose unseen candidates are fewer than the lists and draws of a method need."""
  sides = (dataset.train.users, dataset.num_users, dataset.num_items)
  sides = sides if kd.rows == "users" else (dataset.train.items, dataset.num_items, dataset.num_users)
  left = sides[2] - np.bincount(sides[0], minlength=sides[1])
  ranked = max(kd.lists.teacher, kd.lists.student) if kd.lists.exclude_seen else 0
  listed = kd.lists.teacher * (teachers if kd.all_teachers else 1)
  return left < max(ranked, listed + kd.lists.unseen if kd.lists.unseen else 0)


@pytest.mark.parametrize("name", contract.NAMES)
def test_a_method_gives_rows_that_it_cannot_fill_weight_zero(name, exhausted, drawn):
  kd = few(name)
  if kd.labels:
    pytest.skip("reads true labels, of data without training interactions")
  run, given, state = contract.build(exhausted, drawn, kd)
  lines = kd_targets.check(run, exhausted)
  targets = contract.sample(exhausted, run, given, state.params)
  found, gradient, *_ = contract.evaluate(state.params, given, drawn, targets, run=run)
  assert np.isfinite(found).all() and all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
  if kd.rows == "entities":
    assert not lines and not targets
    return
  short = short_rows(kd, exhausted, 2 if kd.all_teachers else 1)
  count = re.findall(r"kd: ([\d,]+) of ([\d,]+) ", "".join(lines))
  assert [tuple(int(x.replace(",", "")) for x in pair) for pair in count] == (
      [(len(short) - short.sum(), len(short))] if short.any() else [])
  assert short.any() == (kd.lists.exclude_seen and kd.sample is not None), "the data has such rows for every method"
  candidates = exhausted.num_items if kd.rows == "users" else exhausted.num_users
  for fields in targets.values():
    assert "items" not in fields or (fields["items"].min() >= 0 and fields["items"].max() < candidates)
    if short.any():
      assert np.array_equal(np.asarray(fields["weight"]) == 0, short)
  _, weight = contract.terms(run, given, state.params, drawn, targets)
  rows = np.asarray(drawn[f"kd_{kd.rows}"])
  there = np.asarray(drawn[f"kd_{kd.rows}_weight"]) > 0
  if not kd.sampled_items:
    assert np.array_equal(np.asarray(weight) > 0, there & ~short[rows])
    assert (short[rows] & there).any() == short.any(), "the batch has such rows"


def test_rows_of_weight_zero_say_nothing_of_the_others(exhausted, drawn):
  """The targets of the other users, and gradients, are those of data in which the two users have few items."""
  kd = few("rrd")
  light = exhausted.train.items[exhausted.train.users > 1], exhausted.train.users[exhausted.train.users > 1]
  light = exhausted._replace(train=Interactions(light[1], light[0]))
  made = []
  for dataset in (exhausted, light):
    run, given, state = contract.build(dataset, drawn, kd)
    made.append((contract.sample(dataset, run, given, state.params), run, given, state))
  (heavy, run, given, state), (other_targets, *_) = made
  (key, fields), = heavy.items()
  assert "weight" not in other_targets[key]
  np.testing.assert_array_equal(fields["items"][2:], other_targets[key]["items"][2:])
  gradient = contract.evaluate(state.params, given, drawn, heavy, run=run)[1]["networks"][STUDENT]
  without = drawn | {"kd_users_weight": jnp.where(drawn["kd_users"] < 2, 0, drawn["kd_users_weight"])}
  other = contract.evaluate(state.params, given, without, other_targets, run=run)[1]["networks"][STUDENT]
  assert not np.any(gradient["user"][:2]) and np.any(gradient["user"][2:])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), gradient, other)


def test_items_that_stand_in_for_lists_are_no_sampled_items_of_ir_rrd(exhausted, drawn):
  """A batch of user 0 only: its placeholders 0, 1, ... were not sampled for it."""
  run, given, state = contract.build(exhausted, drawn, rrd(k=3, uninteresting=3, depth=20))
  both = run._replace(kds=(*run.kds, (1.0, ir_rrd(k=3, uninteresting=3, depth=20))))
  batch = drawn | {"kd_users_weight": jnp.where(drawn["kd_users"] == 0, 1.0, 0.0),
                   "kd_items_weight": jnp.zeros_like(drawn["kd_items_weight"])}
  targets = contract.sample(exhausted, both, given, state.params)
  found = contract.step.per_example_loss(state.params, given, batch, targets, jax.random.key(4), run=both)[1]
  assert {key[0]: float(weight.sum()) for key, (_, weight) in found.items()} == {"0": 0.0, "1": 0.0}
  of_one = batch | {"kd_users_weight": jnp.where(drawn["kd_users"] == drawn["kd_users"][2], 1.0, 0.0)}
  found = contract.step.per_example_loss(state.params, given, of_one, targets, jax.random.key(4), run=both)[1]
  sampled = np.asarray(next(iter(targets.values()))["items"])[int(drawn["kd_users"][2])]
  weights = {key[0]: float(weight.sum()) for key, (_, weight) in found.items()}
  assert weights == {"0": 1.0, "1": float(len(set(sampled.tolist())))}


def test_rows_of_weight_zero_do_not_count_in_the_mean_stage_of_hetcomp():
  """Two users are at the last of three stages; a third, of weight 0, is at the first for ever."""
  kd = hetcomp(k=4, unseen=2, observed=1, period=1, first=True, together=True)
  items = np.argsort(np.random.default_rng(0).random((3, 3, 9)), axis=2)[:, :, :4]
  lists = Ranked(jnp.asarray(items), jnp.zeros((3, 3, 4)))
  ordered = []
  for weight in ([1.0, 1.0, 0.0], [1.0, 1.0, 1.0]):
    view = View(jnp.arange(3), lists, Ranked(lists.items[:, 0], lists.scores[:, 0]), jnp.zeros((3, 2), jnp.int32),
                jnp.int32(7), {"stage": jnp.array([2, 2, 0]), "distance": jnp.zeros(3)}, jnp.ones(9, jnp.int32),
                jnp.zeros((3, 1), jnp.int32), None, jnp.array(weight), jnp.arange(9))
    axes = View(0, 0, 0, 0, None, 0, None, 0, None, 0)
    found = jax.vmap(kd.sample, in_axes=(0, axes), axis_name="rows")(jax.random.split(jax.random.key(0), 3), view)
    ordered.append(np.asarray(found["ordered"]).tolist())
  assert ordered == [[True] * 3, [False] * 3]


@pytest.mark.parametrize("kd", ["0.1*rrd(k=3, uninteresting=3, depth=10)", "0.1*kl(k=12, exclude_seen=True)",
                                "0.1*cd(sampled=3, depth=12, guide='student')",
                                "0.1*ir_rrd(k=3, uninteresting=3, depth=24)"])
def test_a_run_counts_whom_its_methods_leave_out(kd, dataset, capsys):
  plain = kd_jax.fit(dataset, **QUICK)
  capsys.readouterr()
  fitted = kd_jax.fit(dataset, kd=kd, teacher=plain, **QUICK)
  assert all(np.isfinite(list(line["loss"].values())).all() for line in fitted.history)
  of = ("items", ITEMS) if "ir_rrd" in kd else ("users", USERS)
  left = (dataset.num_users - np.bincount(dataset.train.items, minlength=ITEMS) if "ir_rrd" in kd else
          ITEMS - np.bincount(dataset.train.users, minlength=USERS))
  line, = said(capsys, "are not distilled")
  need = int(re.search(r"the (\d+) unseen", line)[1])
  assert line.startswith(f"kd: {(left >= need).sum()} of {of[1]} {of[0]} have") and (left < need).any()
  assert line in fitted.info["left_out"]


def test_peers_leave_out_the_same_users(dataset):
  fitted = kd_jax.fit(dataset, peer="mf(dim=6)", **QUICK, kd=(
      "0.5*bd(sampled=3, depth=9) + 0.5*bd(learner='peer', sampled=3, depth=9)"))
  assert all(np.isfinite(list(line["loss"].values())).all() for line in fitted.history)
  assert sum("38 of 40 users" in line for line in fitted.info["left_out"]) == 2


# Soft labels


def test_soft_labels_of_a_user_without_unseen_items_are_empty(on_disk, teacher, tmp_path, capsys):
  report = make_soft_labels.write(teacher, tmp_path / "labels", top_k=10)
  data = kd_jax.load_data(on_disk)
  labels = soft_labels.read(tmp_path / "labels", data)
  full, nearly = (int(np.flatnonzero(data.user_ids == f"u{user}")[0]) for user in (FULL, NEARLY))
  assert report["short_rows"] == 2
  assert (labels.items[full] == -1).all() and labels.tail_mass[full] == 0
  assert data.item_ids[labels.items[nearly, 0]] == f"i{LAST}" and (labels.items[nearly, 1:] == -1).all()
  assert labels.tail_mass[nearly] == pytest.approx(0, abs=1e-6)
  _, variables = loading.network(teacher, data)
  params = {k: np.float64(v) for k, v in variables["params"].items()}
  scores = params["user"] @ params["item"].T
  scores[data.train.users, data.train.items] = -np.inf
  for user in set(range(USERS)) - {full, nearly}:
    order = np.argsort(-scores[user])
    assert np.array_equal(labels.items[user], order[:10])
    p = np.exp(scores[user] - scores[user].max())
    assert labels.tail_mass[user] == pytest.approx(p[order[10:]].sum() / p.sum(), abs=1e-5)
  kept = make_soft_labels.write(teacher, tmp_path / "with", top_k=10, exclude_seen=False)
  assert kept["short_rows"] == 0
  capsys.readouterr()
  student = kd_jax.fit(on_disk, kd="rrd(k=3, uninteresting=3, depth=9)", teacher=tmp_path / "labels", **QUICK)
  lines = said(capsys, "38 of 40 users")
  assert len(lines) == 2 and lines == [line for line in student.info["left_out"] if "38 of 40" in line]
  assert all(np.isfinite(list(line["loss"].values())).all() for line in student.history)


def test_a_teacher_that_scores_minus_infinity_has_no_soft_labels(on_disk, teacher, tmp_path, monkeypatch):
  network = loading.network

  def broken(*arguments):
    module, variables = network(*arguments)
    return module, variables | {"params": {k: v.at[5].set(-jnp.inf) if k == "user" else jnp.abs(v)
                                           for k, v in variables["params"].items()}}

  monkeypatch.setattr(make_soft_labels.loading, "network", broken)
  with pytest.raises(InputError, match="not finite"):
    make_soft_labels.write(teacher, tmp_path / "labels", top_k=10)
  assert not (tmp_path / "labels").exists()


# Evaluation and export


def test_the_one_unknown_item_of_a_user_is_ranked_first(dataset):
  module = loading.build_model("mf(dim=4)", dataset)
  rng = np.random.default_rng(0)
  params = {k: jnp.asarray(rng.normal(size=(n, 4)), jnp.float32) for k, n in (("user", USERS), ("item", ITEMS))}
  users, values = protocols.full_ranking(module, {"params": params, "constants": {}},
                                         protocols.layout(dataset, "validation"))
  assert users[0] == NEARLY and values["ndcg@10"][0] == 1 and FULL not in users


METRICS = {name: metric_names.build(name, "interactions") for name in ("hit@3", "mrr@5")}


def test_a_user_with_too_few_unknown_items_has_no_value_among_sampled_ones(dataset):
  """Of 30 items, users know 10, except for two; 20 can be sampled for the others."""
  module = loading.build_model("mf(dim=4)", dataset)
  rng = np.random.default_rng(0)
  params = {k: jnp.asarray(rng.normal(size=(n, 4)), jnp.float32) for k, n in (("user", USERS), ("item", ITEMS))}
  variables = {"params": params, "constants": {}}
  layout = protocols.layout(dataset, "validation", sampled=20, only_sampled=True)
  assert np.array_equal((layout.sampled < 0).any(axis=1), dataset.validation.users == NEARLY)
  users, values = protocols.full_ranking(module, variables, layout, METRICS)
  scores = np.asarray(params["user"] @ params["item"].T)
  known = np.zeros(scores.shape, bool)
  for log in (dataset.train, dataset.validation, dataset.test):
    known[log.users, log.items] = True
  assert np.array_equal(users, np.unique(dataset.validation.users))
  for user, item in zip(dataset.validation.users, dataset.validation.items, strict=True):
    hit, mrr = (values[f"{name}(sampled 20)"][np.searchsorted(users, user)] for name in METRICS)
    above = np.count_nonzero(scores[user][~known[user]] > scores[user, item])  # all unknown items are candidates
    if user == NEARLY:
      assert np.isnan(hit) and np.isnan(mrr)
    else:
      assert hit == (above < 3) and mrr == pytest.approx(1 / (above + 1) if above < 5 else 0)
  line = protocols.short_of_unknown(dataset, "validation", 20)
  assert line.startswith("sampled: 38 of 39 users with validation items have 20")
  assert protocols.short_of_unknown(dataset, "test", 20) is None
  with pytest.raises(InputError, match="`sampled=21`: no user"):
    protocols.short_of_unknown(dataset, "test", 21)


def test_a_run_that_samples_candidates_counts_who_has_no_value(dataset, capsys):
  fitted = kd_jax.fit(dataset, monitor="hit@3(sampled 15)", **QUICK)
  line, = said(capsys, "sampled: ")
  assert line in fitted.info["left_out"] and "38 of 39 users" in line
  assert 0 <= fitted.result["validation"]["hit@3(sampled 15)"] <= 1
  with pytest.raises(InputError, match="`sampled=25`"):
    kd_jax.fit(dataset, monitor="hit@3(sampled 25)", **QUICK)


def test_an_evaluation_counts_who_has_no_value(teacher):
  report = kd_jax.evaluate(teacher, split="validation", sampled=15)
  assert report.details["left_out"].startswith("sampled: 38 of 39 users with validation items have 15 items")
  assert np.isfinite(report.values["hit@10(sampled 15)"]).sum() == 38 and 0 <= report["hit@10(sampled 15)"] <= 1
  assert kd_jax.evaluate(teacher, split="test", sampled=15).details["left_out"] is None
  with pytest.raises(InputError, match="`sampled=25`"):
    kd_jax.evaluate(teacher, split="validation", sampled=25)


def test_an_export_recommends_nothing_to_a_user_with_every_item(teacher, tmp_path):
  list(export.export_run(teacher, str(tmp_path / "export"), history="train"))
  recommender = serving.load(tmp_path / "export", trial=False)
  full, nearly, other = (recommender.recommend(f"u{user}", k=5) for user in (FULL, NEARLY, 7))
  assert full.items == full.scores == [] and nearly.items == [f"i{LAST}"] and len(other.items) == 5
  assert np.isfinite(other.scores).all()


def test_a_fitted_model_lists_what_is_left(dataset):
  fitted = kd_jax.fit(dataset, **QUICK)
  listed = fitted.top_k(3, [FULL, NEARLY, 7])
  assert listed.items[0].tolist() == [-1, -1, -1] and listed.items[1].tolist() == [LAST, -1, -1]
  assert (listed.items[2] >= 0).all()


# Streams


def test_a_stream_leaves_out_the_same_users_in_every_epoch(on_disk, teacher, tmp_path, capsys):
  labels = tmp_path / "labels"
  make_soft_labels.write(teacher, labels, top_k=12)
  memory = 100 * 320 / 1e9
  options = dict(QUICK, kd="0.1*rrd(k=3, uninteresting=3, depth=9)", teacher=labels)
  whole = kd_jax.fit(on_disk, **options)
  counted = said(capsys, " of 40 users")
  ready = setup.prepare(kd_jax.FitOptions(data=on_disk, data_memory=memory, **options))
  assert said(capsys, " of 40 users") == counted == whole.info["left_out"] and len(counted) == 3
  stream = ready.dataset.stream
  assert stream.parts > 2
  full = {int(np.flatnonzero(ready.dataset.user_ids == f"u{user}")[0]) for user in (FULL, NEARLY)}
  draw = epoch.drawer(ready)
  state = epoch.initial_state(ready)
  for number in range(2):
    without, met = set(), 0
    for place in range(stream.parts):
      made = draw(state, number, place)
      part = int(windows.order(0, number + 1, ready.dataset)[place])
      fields, = made.targets.values()
      own = np.arange(stream.bounds[part], stream.bounds[part + 1])
      weight = np.asarray(fields["weight"]) if "weight" in fields else np.ones(stream.users)
      without |= set(own[weight[own - stream.first[part]] == 0].tolist())
      batch = jax.tree.map(np.asarray, made.batches)
      assert batch["items"].min() >= 0 and batch["items"].max() < ITEMS
      met += int(((batch["weight"] == 0) & (batch["real"] > 0)).sum())
    assert without == full and met == ITEMS
  streamed = kd_jax.fit(on_disk, data_memory=memory, workdir=tmp_path / "run", **options)
  assert streamed.info["left_out"] == counted
  assert all(np.isfinite(list(line["loss"].values())).all() for line in streamed.history)
  report = make_soft_labels.write(tmp_path / "run", tmp_path / "again", top_k=10)
  assert report["short_rows"] == 2
  assert protocols.short_of_unknown(ready.dataset, "validation", 15) is not None
