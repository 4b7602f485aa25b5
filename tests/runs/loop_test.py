"""Whole runs: from flags to metrics, labels and exports; what is equal bit for bit; what is never read."""

import gzip
import json
import re
import shutil

import jax
import numpy as np
import pytest

from kd_jax import data
from kd_jax.base import InputError
from kd_jax.evaluation import protocols, run_report, sealed_report
from kd_jax.metrics import significance
from kd_jax.runs import loop
from kd_jax.serving import export
from kd_jax.storage import checkpoint, run_directory, sealed
from kd_jax.teachers import loading, make_soft_labels

RRD = "--kd=0.5*rrd(k=5, uninteresting=5, depth=30)"


@pytest.fixture
def train(flags, small, tmp_path):
  """train("name", "--flag", ...): the run directory."""
  def run(name, *own):
    loop.train(flags(*small, f"--workdir={tmp_path / name}", *own))
    return tmp_path / name

  return run


def outcome(directory):
  """Hashes of the best parameters, and the metrics without times."""
  best, _ = checkpoint.restore_best(directory)
  leaves, _ = jax.tree_util.tree_flatten_with_path(best)
  lines = [{k: v for k, v in line.items() if k != "seconds"} for line in run_directory.read_metrics(directory)]
  result = {k: v for k, v in run_directory.read_json(directory / run_directory.RESULT).items() if k != "seconds"}
  return {jax.tree_util.keystr(p): sealed.hash_array(np.asarray(x)) for p, x in leaves}, lines, result


def own_losses(directory):
  return [next(v for k, v in line["loss"].items() if k != "base") for line in run_directory.read_metrics(directory)]


@pytest.mark.short
def test_from_flags_to_test_metrics_and_an_export(train, teacher, tmp_path):
  student = train("student", RRD, f"--teacher={teacher}")
  assert 0 < own_losses(student)[-1] < own_losses(student)[0]
  plain = train("plain")
  found = run_report.evaluate_run(str(student), teacher=str(teacher), student=str(plain))
  assert found["synthetic"] and found["parameters"] * 4 == run_directory.read_info(teacher)["parameters"]
  run_report.evaluate_run(str(plain))
  own, other = (sealed_report.read(run, "test").values["ndcg@20"] for run in (student, plain))
  again = run_report.evaluate_run(str(student), others=[str(plain), str(student)])["differences"]
  assert again[str(plain)]["ndcg@20"] == significance.compare(own, other)
  assert again[str(student)]["ndcg@20"]["difference"] == 0 and again[str(plain)].keys() <= found["metrics"].keys()
  assert found["compression_ratio"] == 4 and 0 <= found["overlap@10"] <= 1
  assert json.loads((student / "test.json").read_text())["metrics"] == found["metrics"]
  assert list(export.export_run(str(student), str(tmp_path / "exported")))


def test_validation_metrics_are_those_of_the_best_epoch(train, small):
  directory = train("run", "--epochs=5")
  lines, result = run_directory.read_metrics(directory), run_directory.read_json(directory / run_directory.RESULT)
  values = [line["validation"]["ndcg@10"] for line in lines]
  assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5]
  assert result["best_epoch"] == 1 + int(np.argmax(values)) and result["validation"]["ndcg@10"] == max(values)
  dataset = data.load(small[0].partition("=")[2])
  module, variables = loading.network(str(directory), dataset)
  _, found = protocols.full_ranking(module, variables, protocols.layout(dataset, "validation"))
  assert protocols.means(found) == result["validation"]


def test_training_stops_when_validation_does_not_improve(train):
  directory = train("run", "--epochs=50", "--patience=2", "--learning_rate=1e-9")
  result = run_directory.read_json(directory / run_directory.RESULT)
  assert result["epochs"] == result["best_epoch"] + 2 < 50


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(train, teacher):
  method = (RRD, f"--teacher={teacher}")
  first = outcome(train("a", *method))
  assert outcome(train("b", *method)) == first
  other = outcome(train("c", *method, "--seed=1"))
  assert not set(other[0].values()) & set(first[0].values())


def test_what_a_run_was_after_some_epochs_is_the_run_that_ended_there(train, teacher):
  teach = f"--teacher={teacher}"
  run, short = train("run", "--epochs=5", "--keep_every=2", RRD, teach), train("short", "--epochs=2", RRD, teach)
  assert sorted(path.name for path in (run / "after").iterdir()) == ["2", "4"]
  kept = run_directory.after(run, 2)
  (saved, about), (expected, wanted) = (checkpoint.restore_best(x) for x in (kept, short))
  assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (saved, expected)), strict=True))
  assert about["position"] | {"seconds": 0} == wanted["position"] | {"seconds": 0}
  assert run_report.evaluate_run(str(kept))["metrics"] == run_report.evaluate_run(str(short))["metrics"]
  assert "--epochs=2\n" in (kept / run_directory.FLAGS).read_text()
  taught = train("taught", f"--teacher={kept}", RRD)
  best = run_directory.read_json(kept / run_directory.RESULT)["best_epoch"]
  assert run_directory.read_info(taught)["teacher"][0]["epoch"] == best


def test_what_is_kept_has_a_best_epoch(train, tmp_path):
  with pytest.raises(InputError, match="`keep_every=2`: must be a multiple of `eval_every=3`"):
    train("run", "--keep_every=2", "--eval_every=3")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["--kd=", "--kd=rcekd(k=5, sampled=5, depth=20)"])
def test_a_run_made_longer_is_the_longer_run(train, teacher, method):
  own = [method, f"--teacher={teacher}"] if method != "--kd=" else []
  train("short", *own, "--epochs=2")
  directory = train("short", *own, "--epochs=4")
  assert outcome(directory) == outcome(train("long", *own, "--epochs=4"))
  with pytest.raises(InputError, match=r"`epochs=3`: the run in .*short has had 4; choose another directory"):
    train("short", *own, "--epochs=3")
  assert "--epochs=4\n" in (directory / run_directory.FLAGS).read_text()


@pytest.mark.parametrize("own", [("--teacher", RRD), ("--init_from",)])
def test_a_finished_run_is_of_what_it_learned_from(train, own, tmp_path):
  source, given = train("source", "--epochs=1"), [f"{own[0]}={tmp_path / 'source'}", *own[1:]]
  run = train("run", *given)
  first = outcome(run)
  assert outcome(train("run", *given)) == first
  train("source", "--epochs=2")
  with pytest.raises(InputError, match=rf"`{own[0][2:]}=.*source`: not what the finished run in .*run learned from"):
    train("run", *given)
  shutil.rmtree(source)
  assert outcome(train("run", *given)) == first  # nothing to compare with


@pytest.mark.parametrize(("method", "exclude_seen"), [(RRD, True), ("--kd=kl(k=20, temperature=2.0)", False)])
def test_stored_labels_teach_as_the_live_teacher_does(train, teacher, tmp_path, method, exclude_seen):
  labels = tmp_path / "labels"
  make_soft_labels.write(str(teacher), str(labels), 40, exclude_seen)
  live, stored = (outcome(train(name, method, f"--teacher={place}"))
                  for name, place in (("live", teacher), ("stored", labels)))
  assert live == stored


@pytest.mark.parametrize("method", [RRD, "--kd=kl(candidates='full')"])
def test_distilling_leaves_the_teachers_run_as_it_was(train, teacher, method):
  def files():
    return {p: p.read_bytes() for p in teacher.rglob("*") if p.is_file() and p.name != ".lock"}

  before = files()
  train("student", method, f"--teacher={teacher}")
  assert files() == before


def test_without_a_validation_split_the_last_epoch_counts(train):
  data = "--data=synthetic(users=100, items=240, interactions_per_user=16, ratios=(0.8, 0.0, 0.2))"
  with pytest.raises(InputError, match=r"`monitor=ndcg@10`: the data has no validation split; `monitor=epoch`"):
    train("refused", data)
  result = run_directory.read_json(train("last", data, "--monitor=epoch") / run_directory.RESULT)
  assert (result["best_epoch"], result["validation"]) == (3, {})


def test_test_split_is_not_read_in_training(train, small, tmp_path):
  whole = outcome(train("whole", f"--cache_dir={tmp_path / 'cache'}"))
  (folder,) = [p for p in (tmp_path / "cache" / "data").iterdir() if p.is_dir()]
  spoilt = [p for p in folder.rglob("*") if p.is_file() and "-test." in p.name]
  assert spoilt
  for path in spoilt:
    path.write_bytes(b"garbage")
  assert outcome(train("spoilt", f"--cache_dir={tmp_path / 'cache'}")) == whole
  with pytest.raises(ValueError, match="test"):
    run_report.evaluate_run(str(tmp_path / "whole"), cache_dir=tmp_path / "cache")


def test_damaged_training_data_is_noticed(train, tmp_path):
  train("whole", f"--cache_dir={tmp_path / 'cache'}")
  (folder,) = [p for p in (tmp_path / "cache" / "data").iterdir() if p.is_dir()]
  (path,) = [p for p in folder.rglob("*") if "-train." in p.name]
  damaged = bytearray(path.read_bytes())
  damaged[len(damaged) // 2] ^= 1
  path.write_bytes(damaged)
  with pytest.raises(ValueError, match="damaged prepared data"):
    train("spoilt", f"--cache_dir={tmp_path / 'cache'}")
  assert not (tmp_path / "spoilt").exists()


@pytest.mark.parametrize("pool", ["all", "warm"])
def test_cold_items_are_pushed_only_where_negatives_are_drawn_from_all(train, pool):
  call = "synthetic(users=100, items=240, interactions_per_user=16, split='cold_items')"
  ends = []
  for epochs in (1, 2):
    directory = train(f"{epochs}", f"--data={call}", f"--negatives_from={pool}", f"--epochs={epochs}",
                      "--monitor=epoch")
    ends.append(np.asarray(checkpoint.restore_best(directory)[0]["student"]["item"]))
  moved = np.any(ends[0] != ends[1], axis=1)
  warm = np.unique(data.load(call).train.items)
  cold = np.setdiff1d(np.arange(len(moved)), warm)
  assert cold.size and moved[warm].all() and moved[cold].all() == (pool == "all") == moved[cold].any()


def test_a_pool_of_negatives_is_refused_where_none_are_drawn(train):
  with pytest.raises(InputError, match="`negatives_from=warm`: none are drawn"):
    train("refused", "--negatives_from=warm", "--loss=cross_entropy")


@pytest.mark.parametrize(("flag", "message"), [
    ("--model=cdae()", "`embedding_l2=0.01`: `model=cdae()` has no table 'item'; mf, lightgcn and neumf have both"),
    ("--model=two_tower()", "`embedding_l2=0.01`: `model=two_tower()` has no table"),
    ("--peer=ease()", "`embedding_l2=0.01`: `peer=ease()` has no table 'user'")])
def test_l2_of_embeddings_is_refused_where_there_are_none(train, flag, message):
  method = ["--kd=kl()"] if flag.startswith("--peer") else []
  with pytest.raises(InputError, match=re.escape(message)):
    train("refused", flag, "--embedding_l2=0.01", *method)


def test_closed_forms_are_runs_too(train):
  for model in ("pop()", "ease(l2=10.0)"):
    directory = train(model.partition("(")[0], f"--model={model}")
    assert run_directory.read_json(directory / run_directory.RESULT)["validation"]["ndcg@10"] > 0
    assert run_report.evaluate_run(str(directory))["metrics"]["recall@50"] > 0


def test_a_loss_that_explodes_ends_the_run_and_keeps_the_last_checkpoint(train, tmp_path):
  with pytest.raises(ValueError, match="not finite"):
    train("run", "--optimizer=sgd", "--learning_rate=1e6")
  assert not (tmp_path / "run" / run_directory.RESULT).exists()


def test_a_profile_shows_an_epoch_and_changes_nothing(train):
  plain, profiled = train("plain"), train("profiled", "--profile")
  [path] = profiled.glob("profile/plugins/profile/*/perfetto_trace.json.gz")
  names = {event["name"] for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"] if "name" in event}
  assert any("train_epoch" in name for name in names)
  assert outcome(plain) == outcome(profiled) and not (plain / "profile").exists()


def test_real_data_trains(train, real_data, tmp_path):
  shutil.rmtree(tmp_path / "run", ignore_errors=True)
  directory = train("run", "--data=movielens", f"--data_dir={real_data}", "--epochs=2", "--model=mf(dim=16)",
                    "--batch_size=2048")
  first, last = run_directory.read_metrics(directory)
  assert last["loss"]["base"] < first["loss"]["base"] < 0.6932
