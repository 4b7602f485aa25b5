"""Labelled data from a file to a table: the same loop, files and commands as for interactions."""

import json
import pathlib

import numpy as np
import pytest

from kd_jax import data
from kd_jax.base import InputError
from kd_jax.evaluation import model_selection, protocols, run_report
from kd_jax.registry import Call
from kd_jax.runs import loop, setup
from kd_jax.storage import run_directory
from kd_jax.tables import make, toml_file
from kd_jax.teachers import loading, make_soft_labels

FIELDS = "fields=('user', 'colour'), numeric=('price',)"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  """400 contexts whose labels follow from a field and a number."""
  rng = np.random.default_rng(0)
  colour, price = rng.integers(4, size=400), rng.normal(size=400)
  rows = ["user,colour,price,click,a,b,c"]
  for c, p, noise in zip(colour, price, rng.logistic(size=(400, 4)), strict=True):
    true = np.array([p, c - 1.5, 1.5 - c, p + c - 1.5]) * 2 + noise > 0
    rows.append(f"u{rng.integers(20)},c{c},{p:.4f},{','.join(str(int(x)) for x in true)}")
  path = tmp_path_factory.mktemp("own") / "t.csv"
  path.write_text("\n".join(rows) + "\n")
  return path


@pytest.fixture(scope="module")
def own(path):
  """Flags of the data: of one label, or of three."""
  def call(labels):
    return f"--data=labelled(path={str(path)!r}, labels={labels}, {FIELDS})"

  return {"clicks": call("('click',)"), "tags": call("('a', 'b', 'c')")}


@pytest.fixture(scope="module")
def run(tmp_path_factory, flags, own):
  folder = tmp_path_factory.mktemp("runs")

  def train(name, kind, *more):
    directory = folder / name
    result = loop.train(flags(own[kind], "--batch_size=64", "--learning_rate=0.02", "--epochs=4", *more,
                              f"--workdir={directory}"))
    return directory, result

  return train


@pytest.fixture(scope="module")
def tagger(run):
  return run("teacher", "tags", "--model=mlp(hidden=(16,))")


def test_a_teacher_learns_and_is_evaluated_as_validation_says(tagger):
  directory, result = tagger
  assert result["monitor"] == "map" and result["validation"]["map"] > 0.7
  found = run_report.evaluate_run(str(directory), split="validation")
  assert found["metrics"] == pytest.approx(result["validation"], rel=1e-6)
  assert found["users"] == 40 and found["evaluated"] == "contexts" and found["candidates"] == "3 labels"
  losses = [line["loss"]["base"] for line in run_directory.read_metrics(directory)]
  assert losses[-1] < losses[0]


def test_a_student_is_distilled_by_every_kind_of_target(run, tagger):
  teacher = f"--teacher={tagger[0]}"
  for name, kd in (("full", "bce(candidates='full') + fitnet()"),
                   ("listed", "masked_soft_labels(candidates='teacher', k=2)")):
    directory, result = run(name, "tags", "--model=mlp(hidden=(4,), dim=2)", teacher, f"--kd={kd}")
    assert np.isfinite(list(result["validation"].values())).all()
  found = run_report.evaluate_run(str(directory), teacher=str(tagger[0]))
  assert found["compression_ratio"] > 1 and not any(name.startswith("overlap") for name in found)
  with pytest.raises(InputError, match="`compare`: no metric of this data is a mean over users"):
    run_report.evaluate_run(str(directory), others=[str(tagger[0])])


def test_soft_labels_of_every_label_are_a_teacher(run, tagger, tmp_path):
  make_soft_labels.write(str(tagger[0]), str(tmp_path / "labels"), top_k=3, exclude_seen=True)
  _, result = run("stored", "tags", "--model=mlp(hidden=(4,))", f"--teacher={tmp_path / 'labels'}",
                  "--kd=kl(k=3, exclude_seen=True)")
  assert np.isfinite(list(result["validation"].values())).all()


def test_one_label_is_clicks_and_the_lowest_log_loss_is_best(run):
  directory, result = run("clicks", "clicks", "--model=fm()", "--monitor=log_loss", "--learning_rate=0.3")
  values = [line["validation"]["log_loss"] for line in run_directory.read_metrics(directory)]
  assert result["validation"]["log_loss"] == min(values) and result["best_epoch"] == 1 + int(np.argmin(values))
  assert {"auc", "group_auc", "calibration"} < set(result["validation"])


def test_the_own_epoch_of_a_metric_that_falls_is_its_lowest(run):
  own = ["--monitor=auc, log_loss", "--learning_rate=0.3", "--log_test"]
  directory, _ = run("falling", "clicks", "--model=fm()", *own)
  lines = run_directory.read_metrics(directory)
  auc, log_loss = ([line["validation"][name] for line in lines] for name in ("auc", "log_loss"))
  own = {k: v for k, v in run_report.evaluate_run(str(directory))["metrics"].items() if k.endswith("(own epoch)")}
  assert min(log_loss) < max(log_loss)
  assert own == {"auc(own epoch)": lines[int(np.argmax(auc))]["test"]["auc"],
                 "log_loss(own epoch)": lines[int(np.argmin(log_loss))]["test"]["log_loss"]}


@pytest.mark.parametrize(("flag", "words"), [
    ("--loss=bpr", "choose from bce, softmax"), ("--monitor=auc", "`monitor`: 'auc' is not a metric like .*map"),
    ("--monitor=ndcg@10", "`monitor`: 'ndcg@10' is not a metric like .*map"), ("--monitor=ndcg", "`monitor`"),
    ("--negatives_from=warm", "none are drawn"), ("--embedding_l2=0.1", "labelled data has no user, item")])
def test_what_does_not_fit_the_data_is_refused(run, flag, words):
  with pytest.raises(InputError, match=words):
    run("refused", "tags", "--model=lr()", flag)


def test_no_data_of_interactions_has_metrics_of_labels(make_dataset):
  dataset = make_dataset(num_users=4, num_items=9, train=2)
  assert setup.objective("", dataset.kind) is setup._build("objectives", Call("bpr"))
  assert str(model_selection.monitor("", dataset.kind)) == "ndcg@10"
  with pytest.raises(InputError, match=r"'auc' is not a metric like .*recall@10"):
    model_selection.monitor("auc", dataset.kind)


def test_scores_do_not_depend_on_the_other_contexts(tagger, own):
  dataset = data.load(own["tags"].removeprefix("--data="))
  module, variables = loading.network(str(tagger[0]), dataset)
  layout = protocols.layout(dataset, "validation")
  one = [protocols.measure(module, variables, layout._replace(contexts=layout.contexts[[n]], labels=layout.labels[[n]],
                                                             groups=None))[1]["accuracy"] for n in range(40)]
  assert np.mean(one) == pytest.approx(protocols.measure(module, variables, layout)[1]["accuracy"])


def test_a_table_is_cross_validated(own, tmp_path, run):
  table = tmp_path / "small.toml"
  table.write_text(f"""
title = "Small"
flags = [{json.dumps(own["clicks"])}, "--batch_size=64", "--epochs=1"]
metrics = ["auc", "log_loss"]
[[row]]
row = "a"
flags = ["--model=mlp(hidden=(4,))"]
[[row]]
row = "b"
flags = ["--model=lr()"]
[[row]]
row = "both"
teacher = ["a", "b"]
init_from = "a"
flags = ["--model=mlp(hidden=(4,))", "--kd=gated(candidates='full')", "--freeze=embedding"]
""")
  result = make.reproduce(str(table), str(tmp_path / "out"), None, None, None, folds=2)
  assert [len(row["metrics"]["auc"]["values"]) for row in result["rows"]] == [2, 2, 2]
  contexts = []
  for seed in range(2):
    info = run_directory.read_info(toml_file.run_dir(tmp_path / "out" / "runs", "both", seed))
    assert f"fold={seed}, folds=2" in info["data"] and len(info["teacher"]) == 2
    contexts.append(data.load(info["data"], splits=("test",)).contexts["test"])
  assert sorted(np.concatenate(contexts).tolist()) == list(range(400))
  assert "2 folds" in (tmp_path / "out" / "small.md").read_text()
  table.write_text(table.read_text().replace('init_from = "a"', 'init_from = "c"'))
  with pytest.raises(InputError, match="is no row"):
    toml_file.load(str(table))
  assert pathlib.Path(tmp_path / "out" / "small.json").exists()
