"""Rows that are compressions of other rows, agreement with a teacher, cost, and seeds of one row alone."""

import json

import numpy as np
import pytest

from kd_jax.base import InputError
from kd_jax.evaluation import cost, run_report, sealed_report
from kd_jax.runs import compress
from kd_jax.storage import run_directory
from kd_jax.tables import make, toml_file

TABLE = """
title = "Compressed rows"
seeds = 2
metrics = ["ndcg@10", "coverage@10"]
student_row = "student"
teacher_row = "teacher"
cost = true
agreement = ["overlap@10", "follows_wrong@10"]
flags = ["--data=synthetic(users=60, items=240, interactions_per_user=16)", "--epochs=2", "--batch_size=256"]
[[row]]
row = "teacher"
flags = ["--model=mf(dim=16)", "--keep_every=1"]
[[row]]
row = "student"
flags = ["--model=mf(dim=2)"]
[[row]]
row = "tuned"
init_from = "pruned"
flags = ["--model=mf(dim=16)", "--keep_zeros"]
[[row]]
row = "int8"
of = "kl"
compress = "int8()"
[[row]]
row = "pruned"
of = "teacher@1"
compress = "prune(share=0.5) + half()"
[[row]]
row = "kl"
teacher = "other"
flags = ["--model=mf(dim=2)", "--kd=kl(k=10)"]
[[row]]
row = "other"
seed_offset = 7
flags = ["--model=mf(dim=16)"]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp("table")
  (folder / "small.toml").write_text(TABLE)
  return folder, make.reproduce(str(folder / "small.toml"), str(folder), None, None, None)


def row(made, name):
  return next(x for x in made[1]["rows"] if x["row"] == name)


def run_of(made, name, seed=0):
  return made[0] / "runs" / f"{name}-seed{seed}"


def test_a_compressed_row_is_the_compression_of_the_other_rows_run(made):
  info = run_directory.read_finished(run_of(made, "pruned", 1)).info
  source = run_of(made, "teacher", 1) / "after" / "1"
  assert info["compression"]["seal"] == run_directory.read_finished(source).seal
  assert info["compression"]["chain"] == "prune(share=0.5) + half()"
  assert row(made, "pruned")["bytes"] < 0.35 * row(made, "teacher")["bytes"]
  for name, x in compress.unpacked(run_of(made, "pruned")).items():
    assert (x == 0).mean() == pytest.approx(0.5, abs=0.001), name
  assert run_directory.read_finished(run_of(made, "tuned")).info["init_from"][0]["checkpoint"] == (
      run_directory.read_finished(run_of(made, "pruned")).pin.sha256)


def test_the_json_says_what_a_row_learns_from(made):
  assert [(x["row"], x["kind"], x["method"], x["teachers"]) for x in made[1]["rows"] if x["row"] in ("kl", "int8")] == [
      ("int8", "compressed", None, []), ("kl", "distilled", "kl(k=10)", ["other"])]


def test_a_row_has_seeds_of_its_own(made):
  flags = [run_directory.read_finished(run_of(made, name, 1)).flags["seed"] for name in ("other", "teacher")]
  assert flags == ["8", "1"]


def test_agreement_is_with_the_own_teacher(made):
  folder, _ = made
  assert row(made, "teacher")["agreement"] == {}
  for name, other in (("kl", "other"), ("student", "teacher"), ("int8", "kl"), ("pruned", "teacher-seed0/after/1")):
    teacher = folder / "runs" / (other if "/" in other else f"{other}-seed0")
    expected = run_report.evaluate(str(run_of(made, name)), teacher=str(teacher)).details["agreement"]
    for key in ("overlap@10", "follows_wrong@10"):
      assert row(made, name)["agreement"][key]["values"][0] == pytest.approx(expected[key]), (name, key)
  assert row(made, "int8")["agreement"]["overlap@10"]["mean"] > 0.9


def test_cost_is_measured_and_training_counts_what_was_learned_from(made):
  reports = {name: sealed_report.read(run_of(made, name), "test").report for name in ("kl", "other", "int8", "teacher")}
  costs = {name: row(made, name)["cost"] for name in reports}
  for name, report in reports.items():
    assert costs[name]["bytes_on_disk"]["values"][0] == report["cost"]["bytes_on_disk"]
    latency = report["cost"]["latency_ms"]
    assert all(0 < x["p50"] <= x["p95"] <= x["p99"] for x in latency.values()) and latency.keys() == {"1", "256"}
    assert costs[name]["latency_256_p95"]["values"][0] == latency["256"]["p95"]
  info = run_directory.read_finished(run_of(made, "int8")).info
  assert costs["int8"]["bytes_on_disk"]["values"][0] == info["compression"]["bytes_on_disk"]
  assert costs["teacher"]["bytes_on_disk"]["mean"] >= costs["teacher"]["bytes_in_memory"]["mean"] > 0
  items = run_directory.read_finished(run_of(made, "teacher")).info["num_items"]
  assert costs["teacher"]["flops"]["mean"] >= 2 * 16 * items > costs["kl"]["flops"]["mean"] / 2  # its inner products
  seconds = {name: reports[name]["training_seconds"] for name in ("kl", "other", "teacher")}
  assert costs["kl"]["training_seconds_with_others"]["values"][0] == pytest.approx(seconds["kl"] + seconds["other"])
  assert costs["int8"]["training_seconds_with_others"]["values"][0] == pytest.approx(seconds["kl"] + seconds["other"])
  assert costs["teacher"]["training_seconds_with_others"]["values"][0] == pytest.approx(seconds["teacher"])


def test_the_page_and_the_json_have_them(made):
  page = (made[0] / "small.md").read_text()
  assert "## Agreement with the teacher" in page and "## Cost" in page and "bytes on disk" in page
  assert json.loads((made[0] / "small.json").read_text()) == json.loads(json.dumps(made[1]))
  assert {x["row"] for x in made[1]["rows"] if "transfer_ratio" in x} == {"kl", "int8", "pruned"}


def test_a_second_call_evaluates_nothing(made, monkeypatch):
  def refuse(*_, **__):
    raise AssertionError("evaluated again")

  monkeypatch.setattr(run_report, "evaluate_run", refuse)
  again = make.reproduce(str(made[0] / "small.toml"), str(made[0]), None, None, None)
  assert again["rows"] == made[1]["rows"]


@pytest.mark.parametrize(("old", "new", "said"), [
    ('of = "kl"', 'of = "nobody"', "row 'int8': is named twice or its teacher or init_from or of is no row"),
    ('compress = "int8()"\n', "", "row 'int8': of names a row, and compress says"),
    ('compress = "int8()"', 'compress = "int9()"', "row 'int8': --compress=int9(): no 'int9'"),
    ('of = "kl"', 'of = "int8"', "in a circle"),
    ('compress = "int8()"', 'compress = "int8()"\nflags = ["--epochs=3"]', "such a row has no flags"),
    ('of = "kl"', 'of = "pruned@1"', "needs a --keep_every of row 'pruned'"),
    ('"overlap@10"', '"overlap@11"', "agreement = .* must be a list of overlap"),
    ("seed_offset = 7", "seed_offset = -1", "seed_offset = -1: must be a whole number"),
    ("cost = true", "cost = 1", "cost = 1: must be true or false")])
def test_mistakes_are_named(old, new, said, tmp_path):
  assert old in TABLE
  (tmp_path / "wrong.toml").write_text(TABLE.replace(old, new))
  with pytest.raises(InputError, match=said.replace("(", r"\(").replace(")", r"\)")):
    toml_file.load(str(tmp_path / "wrong.toml"))


def test_the_rows_of_a_compressed_row_are_chosen_with_it(tmp_path):
  (tmp_path / "small.toml").write_text(TABLE)
  table = toml_file.choose(toml_file.load(str(tmp_path / "small.toml")), ["int8"])
  assert {x["row"] for x in table["row"]} == {"int8", "kl", "other"}


def test_streamed_data_has_no_cost(make_dataset):
  with pytest.raises(InputError, match="`cost`: the data is streamed"):
    cost.measure({}, None, {}, make_dataset()._replace(stream=object()))


def test_a_request_is_the_list_of_the_ranking(make_dataset):
  import jax.numpy as jnp

  from kd_jax import registry
  from kd_jax.data import index
  from kd_jax.ranking import rank

  dataset, rng = make_dataset(num_users=30, num_items=60), np.random.default_rng(0)
  module = registry.build("models", registry.Call("mf", (("dim", 3),)), num_users=30, num_items=60)
  variables = {"params": {"user": jnp.asarray(-rng.integers(1, 9, (30, 3)), jnp.float32),  # all scores are below 0
                          "item": jnp.asarray(rng.integers(1, 4, (60, 3)), jnp.float32)}, "constants": {}}
  request, arguments = cost._request(module, variables, dataset)
  users = jnp.array([4, 0, 29])
  expected = rank.network_top_k(module, variables, index.seen_by_users(dataset), k=10, exclude_seen=True).items
  assert np.array_equal(request(users, *arguments), np.asarray(expected)[np.asarray(users)])
