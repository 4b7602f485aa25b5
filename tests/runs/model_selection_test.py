"""What chooses the best epoch and when training stops; test curves, and cut-offs that have epochs of their own."""

import json

import numpy as np
import pytest

from kd_jax.base import InputError
from kd_jax.evaluation import metric_names, model_selection, run_report
from kd_jax.evaluation.options import EvaluationOptions
from kd_jax.runs import loop
from kd_jax.storage import run_directory

MONITOR = "hit@5(sampled 20), hit@10(sampled 20)"


def test_the_first_metric_chooses_and_any_keeps_training_alive():
  rng = np.random.default_rng(0)
  values = rng.random((40, 3)).round(1)  # with ties, which are no improvement
  position, monitor = model_selection.Position(), model_selection.Monitor(("a@1", "b@1", "c@1"), "interactions", {
      name: metric_names.build("ndcg@1", "interactions") for name in ("a@1", "b@1", "c@1")}, 0, False)
  for epoch, row in enumerate(values, 1):
    position, improved = model_selection.compare(monitor, position._replace(epoch=epoch),
                                                 dict(zip(monitor.names, row.tolist(), strict=True)))
    before = values[: epoch - 1]
    risen = [not len(before) or row[m] > before[:, m].max() for m in range(3)]
    assert improved == risen[0] and position.best_epoch == 1 + int(np.argmax(values[:epoch, 0]))
    assert (position.stale == 0) == any(risen)
  assert position.best["b@1"] == values[position.best_epoch - 1, 1]
  last = max(e for e in range(40) if e == 0 or (values[e] > values[:e].max(axis=0)).any())
  assert position.stale == 39 - last > 0


@pytest.mark.parametrize(("monitor", "said"), [
    ("auc@10", "auc@10"), ("epoch, ndcg@10", "epoch"), ("hit@5(sampled 9), hit@5(sampled 8)", "one number"),
    ("ndcg@10,", "''")])
def test_what_cannot_be_monitored_is_refused(monitor, said):
  with pytest.raises(InputError, match=f"`monitor.*{said}"):
    model_selection.monitor(monitor, "interactions")


def test_cutoffs_and_sampled_items_are_read_from_the_names():
  def needs(text):
    found = model_selection.monitor(text, "interactions")
    cutoffs = {name: {int(other.partition("@")[2]) for other in found.metrics if other.startswith(f"{name}@")}
               for name in metric_names.NAMES}
    assert len({frozenset(of_name) for of_name in cutoffs.values()}) == 1  # every metric has them all
    return tuple(sorted(cutoffs["ndcg"])), found.sampled, found.only_sampled

  assert needs("ndcg@7") == ((5, 7, 10, 20, 50), 0, False)
  assert needs(MONITOR) == ((5, 10, 20, 50), 20, True)
  assert needs(f"{MONITOR}, ndcg@7") == ((5, 7, 10, 20, 50), 20, False)
  assert needs("epoch") == ((5, 10, 20, 50), 0, False) == needs("")


@pytest.fixture(scope="module")
def logged(flags, small, tmp_path_factory):
  run = tmp_path_factory.mktemp("logged") / "run"
  loop.train(flags(*small, f"--monitor={MONITOR}", "--log_test", "--epochs=5", f"--workdir={run}"))
  return run


def test_the_test_curve_is_what_evaluation_says_and_changes_nothing(logged, flags, small, tmp_path):
  lines, result = run_directory.read_metrics(logged), run_directory.read_json(logged / run_directory.RESULT)
  found = run_report.evaluate_run(str(logged), options=EvaluationOptions(sampled=20))["metrics"]
  own = {name: value for name, value in found.items() if "own epoch" in name}
  among_few = {k: v for k, v in found.items() if k.endswith("(sampled 20)")}
  assert among_few and lines[result["best_epoch"] - 1]["test"] == among_few  # nothing asks for more while training
  for k in (5, 10):
    best = int(np.argmax([line["validation"][f"hit@{k}(sampled 20)"] for line in lines]))
    for metric in ("hit", "ndcg", "mrr"):
      assert own[f"{metric}@{k}(sampled 20, own epoch)"] == lines[best]["test"][f"{metric}@{k}(sampled 20)"]
  loop.train(flags(*small, "--epochs=5", f"--workdir={tmp_path / 'plain'}"))
  plain = run_directory.read_metrics(tmp_path / "plain")
  assert [line["loss"] for line in plain] == [line["loss"] for line in lines]
  assert all("test" not in line for line in plain)
  assert "recall@10" in plain[0]["validation"] and "recall@10" not in lines[0]["validation"]


def test_the_last_epoch_can_be_the_one_that_counts(flags, small, tmp_path):
  result = loop.train(flags(*small, "--monitor=epoch", "--patience=1", "--eval_every=2", "--log_test",
                            "--mask_validation", f"--workdir={tmp_path / 'run'}"))
  lines = [line for line in run_directory.read_metrics(tmp_path / "run") if "test" in line]
  assert [line["epoch"] for line in lines] == [2, 3] and (result["best_epoch"], result["epochs"]) == (3, 3)
  found = run_report.evaluate_run(str(tmp_path / "run"), options=EvaluationOptions(mask_validation=True))["metrics"]
  assert json.loads(json.dumps(found)) == lines[-1]["test"]


def test_masking_without_a_test_curve_is_refused(flags, small, tmp_path):
  with pytest.raises(InputError, match="`log_test`"):
    loop.train(flags(*small, "--mask_validation", f"--workdir={tmp_path / 'run'}"))
