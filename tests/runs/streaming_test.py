"""Interactions that stay on disk give the batches, gradients and metrics of those in memory."""

import functools
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import resume_test

from kd_jax import data
from kd_jax.base import InputError
from kd_jax.data import streams
from kd_jax.devices import parallel
from kd_jax.evaluation import streaming
from kd_jax.training import step, windows

DATA = "synthetic(users=300, items=240, interactions_per_user=16, split_seed=2)"
MEMORY = 256_000 / 1e9  # for 800 of 3,600 training interactions
FLAGS = (f"--data={DATA}", "--model=mf(dim=4)", "--epochs=3", "--batch_size=128", "--learning_rate=0.02")
KD = "--kd=0.1*rrd(k=5, uninteresting=5, depth=30) + 0.01*fitnet()"


@pytest.fixture(scope="module")
def both():
  """The same data in memory and on disk."""
  splits = ("train", "validation", "test")
  return data.load(DATA, splits=splits), data.load(DATA, splits=splits, memory=MEMORY)


@pytest.fixture(scope="module")
def taught(tmp_path_factory, flags):
  """A teacher on this data."""
  from kd_jax.runs import loop

  directory = tmp_path_factory.mktemp("streamed") / "teacher"
  loop.train(flags(*FLAGS, "--model=mf(dim=16)", f"--workdir={directory}"))
  return directory


def test_parts_hold_every_interaction_once_in_the_order_of_the_source(both):
  whole, streamed = both
  stream = streamed.stream
  assert 5 <= stream.parts <= 8 and not len(streamed.train.users)
  for split in ("train", "validation", "test"):
    log = getattr(whole, split)
    order = np.argsort(log.users, kind="stable")
    parts = [getattr(streams.part(streamed, number), split) for number in range(stream.parts)]
    assert split != "train" or max(len(part.users) for part in parts) * streams.BYTES <= MEMORY * 1e9
    users = np.concatenate([part.users + first for part, first in zip(parts, stream.first, strict=True)])
    np.testing.assert_array_equal(users, log.users[order])
    np.testing.assert_array_equal(np.concatenate([part.items for part in parts]), log.items[order])
  np.testing.assert_array_equal(streamed.popularity, np.bincount(whole.train.items, minlength=whole.num_items))
  assert all(part.num_users == stream.users for part in (streams.part(streamed, n) for n in range(stream.parts)))


def test_an_epoch_of_parts_is_that_of_the_whole_with_the_same_batches(both, taught, flags):
  """Batches and targets of a part, moved to the users of the whole, give the same parameters and losses."""
  from kd_jax.runs import epoch, setup

  own = (*FLAGS, KD, f"--teacher={taught}", "--embedding_l2=0.1", "--workdir=x")
  whole, streamed = (setup.prepare(flags(*own, *more)) for more in ((), (f"--data_memory={MEMORY}",)))
  values, draw = streamed.options, epoch.drawer(streamed)
  state = step.init(jax.random.key(0), streamed.run, streamed.given, streamed.example)
  expected, stream, shapes = jax.tree.map(jnp.copy, state), streamed.dataset.stream, set()
  whole_epoch = jax.jit(functools.partial(step.train_epoch, run=whole.run._replace(parts=stream.parts)))
  for place in range(stream.parts):
    arguments = draw(state, 0, place)
    first = stream.first[windows.order(values.seed, 1, streamed.dataset)[place]]
    _, _, targets, batch, rng = jax.tree.map(jnp.copy, arguments)
    state, losses = parallel.compile_epoch(streamed.run, "jit", values.batch_size)(*arguments)
    moved = batch | {name: batch[name] + first for name in ("users", "kd_users")}
    of_all = jax.tree.map(lambda x, first=first: jnp.zeros((300, *x.shape[1:]), x.dtype).at[
        first : first + stream.users].set(x), targets)
    expected, own = whole_epoch(expected, whole.given, of_all, moved, rng)
    shapes.add(batch["weight"].shape)
    assert float(batch["weight"].sum(axis=1).min()) > 0
    for name, loss in own.items():
      assert float(losses[name]) == pytest.approx(float(loss), rel=1e-4), name
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), state.params, expected.params)
  assert len(shapes) == 1


def test_metrics_are_those_of_the_whole(both, taught):
  from kd_jax.evaluation import protocols
  from kd_jax.teachers import loading

  whole, streamed = both
  module, variables = loading.network(taught, whole)
  for options in ({}, {"mask_validation": True}):
    users, values = protocols.measure(module, variables, protocols.layout(whole, "test", **options))
    found_users, found = streaming.measure(*loading.windowed_network(taught, streamed),
                                           streaming.Protocol(streamed, "test", **options))
    np.testing.assert_array_equal(found_users, users)
    assert found.keys() == values.keys()
    for name, value in values.items():
      np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)


def test_groups_of_items_that_a_part_has_not_are_those_of_the_others():
  from kd_jax.base import Interactions
  from kd_jax.evaluation import metric_names, protocols

  def part(user, ranks, cold):
    users, cold = np.full(len(ranks), user), np.array(cold)
    return protocols.Ranks(Interactions(users, np.arange(len(ranks))), np.array(ranks), {"warm": ~cold, "cold": cold},
                           None, 0, None)

  parts = [part(3, [0], [False]), part(7, [9, 0], [True, False])]
  metrics = {"recall@5": metric_names.build("recall@5", "interactions")}
  users, found = protocols.values(protocols.joined(parts), metrics, None)
  assert users.tolist() == [3, 7]
  np.testing.assert_array_equal(found["recall@5"], [1, 0.5])
  np.testing.assert_array_equal(found["recall@5(cold)"], [np.nan, 0])
  np.testing.assert_array_equal(found["recall@5(warm)"], [1, 1])
  assert protocols.values(protocols.joined(parts[:1]), metrics, None)[1].keys() == {"recall@5"}


@pytest.mark.slow
def test_a_streamed_run_is_resumed_evaluated_and_labelled(taught, script, tmp_path):
  arguments = [*FLAGS, KD, f"--teacher={taught}", f"--data_memory={MEMORY}"]
  done = script("train", *arguments, f"--workdir={tmp_path}/run")
  assert done.returncode == 0, done.stderr
  resume_test.finish([*arguments, "--epochs=2", f"--workdir={tmp_path}/again"])
  resume_test.finish([*arguments, f"--workdir={tmp_path}/again"])
  once, twice = ((tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("run", "again"))
  assert [json.loads(x)["validation"] for x in once] == [json.loads(x)["validation"] for x in twice]
  done = script("evaluate", f"--run={tmp_path}/run", f"--teacher={taught}")
  assert done.returncode == 0 and "compression_ratio" in done.stdout, done.stderr
  done = script("soft_labels", f"--teacher={tmp_path}/run", "--top_k=40", f"--out={tmp_path}/labels")
  assert done.returncode == 0, done.stderr
  student = [*FLAGS, "--kd=rrd(k=5, uninteresting=5, depth=30)", f"--teacher={tmp_path}/labels"]
  for memory in (0, MEMORY):
    done = script("train", *student, f"--data_memory={memory}", f"--workdir={tmp_path}/student{memory}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("wrong", "said"), [
    (["--model=lightgcn(dim=4)"], "LightGCN reads all interactions"),
    (["--model=sasrec(dim=4)"], "SASRec reads all interactions"),
    (["--model=pop()"], "computed from all at once"),
    (["--model=mf(dim=4)", "--peer=mf(dim=4)", "--kd=hetcomp()"], "from epoch to epoch"),
    (["--data_memory=1e-7"], "a user has"),
    (["--data_memory=-1"], "must not be negative"),
    (["--data=movielens_tags", "--model=mlp()", "--loss="], "labelled data is not streamed"),
    (["--shard_tables"], "neither `shard_tables`")])
def test_what_needs_all_interactions_is_refused(wrong, said, flags, tmp_path, request):
  from kd_jax.runs import loop

  if "movielens" in wrong[0]:
    wrong = [*wrong, f"--data_dir={request.getfixturevalue('real_data')}"]
  with pytest.raises(InputError, match=said):
    loop.train(flags(*FLAGS, f"--data_memory={MEMORY}", *wrong, f"--workdir={tmp_path}/run"))
  assert not (tmp_path / "run").exists()


def test_runs_at_once_are_refused(flags, tmp_path):
  from kd_jax.runs import loop

  several = [flags(*FLAGS, f"--data_memory={MEMORY}", f"--workdir={tmp_path}/{seed}") for seed in range(2)]
  with pytest.raises(InputError, match="one run at a time"):
    loop.train_many(several)


def test_a_damaged_stream_is_refused(both, tmp_path):
  folder = tmp_path / "train"
  streams.write(folder, lambda: iter([{"users": np.array([1, 0, 1]), "items": np.array([2, 3, 4])}]), 2, "")
  stream = streams.read({"train": folder}, 2.0 * streams.BYTES)
  assert stream.starts["train"].tolist() == [0, 1, 3] and stream.parts == 2
  (folder / "items.int32").write_bytes(b"\0" * 12)
  with pytest.raises(InputError, match=r"items\.int32"):
    streams.read({"train": folder}, 2.0 * streams.BYTES)


def test_devices_share_the_parts(script, tmp_path):
  found = []
  for devices in (1, 4):
    done = script("train", *FLAGS, f"--data_memory={MEMORY}", f"--workdir={tmp_path}/{devices}",
                  env=os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"})
    assert done.returncode == 0, done.stderr
    found.append([json.loads(x) for x in (tmp_path / f"{devices}/metrics.jsonl").read_text().splitlines()])
  for a, b in zip(*found, strict=True):
    assert a["loss"]["base"] == pytest.approx(b["loss"]["base"], rel=1e-5)
    assert a["validation"]["ndcg@10"] == pytest.approx(b["validation"]["ndcg@10"], abs=1e-5)
