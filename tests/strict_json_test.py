"""Every JSON file that the program writes is JSON: a strict parser reads it, also where a number does not exist."""

import ast
import json
import math
import pathlib

import numpy as np
import pytest

from kd_jax.evaluation import model_selection, protocol_audit, run_report
from kd_jax.evaluation.model_selection import Position
from kd_jax.runs import loop
from kd_jax.serving import export
from kd_jax.storage import run_directory, sealed
from kd_jax.tables import make
from kd_jax.teachers import make_soft_labels

ROOT = pathlib.Path(__file__).resolve().parent.parent


def strict(text):
  def refuse(constant):
    raise ValueError(f"{constant} is not JSON")

  return json.loads(text, parse_constant=refuse)


def strict_files(folder):
  """{path below `folder`: content} of all JSON files."""
  found = {}
  for path in sorted(folder.rglob("*.json*")):
    if path.suffix == ".jsonl":
      found[path.relative_to(folder).as_posix()] = [strict(line) for line in path.read_text().splitlines()]
    elif path.suffix == ".json":
      found[path.relative_to(folder).as_posix()] = strict(path.read_text())
  return found


# Others make hashes, or messages between processes.
NOT_OF_FILES = ("kd_jax/storage/run_directory.py", "kd_jax/devices/", "kd_jax/fault/")


def test_only_one_function_makes_the_json_of_files():
  calls = []
  for path in [*(ROOT / "kd_jax").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dump", "json.dumps"):
        calls.append((path.relative_to(ROOT).as_posix(), ast.unparse(node)))
  (file, call), = (found for found in calls if not found[0].startswith(NOT_OF_FILES))
  assert file == "kd_jax/storage/sealed.py" and "allow_nan=False" in call


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_a_number_that_is_none_is_null(value, tmp_path):
  given = {"a": value, "b": [1.5, value, (value, "NaN")], "c": {"d": {"e": value}}}
  expected = {"a": None, "b": [1.5, None, [None, "NaN"]], "c": {"d": {"e": None}}}
  sealed.write_json_atomic(tmp_path / "x.json", given)
  assert strict((tmp_path / "x.json").read_text()) == expected == sealed.finite(given)
  with sealed.writing(tmp_path / "artifact", "kind", given):
    pass
  assert sealed.read(tmp_path / "artifact", "kind") == expected
  assert strict((tmp_path / "artifact" / "manifest.json").read_text())["metadata"] == expected
  assert sealed.to_json(given, indent=None).count(b"\n") == 1


def test_a_line_of_the_log_holds_null_and_is_read_as_nan(tmp_path):
  line = {"epoch": 1, "loss": {"base": math.inf}, "validation": {"auc": math.nan, "log_loss": 0.5}, "teacher": None}
  run_directory.append_metrics(tmp_path, line)
  (found,) = strict_files(tmp_path)["metrics.jsonl"]
  assert found == {"epoch": 1, "loss": {"base": None}, "validation": {"auc": None, "log_loss": 0.5}, "teacher": None}
  (read,) = run_directory.read_metrics(tmp_path)
  assert math.isnan(read["validation"]["auc"]) and math.isnan(read["loss"]["base"])
  assert read["validation"]["log_loss"] == 0.5 and read["teacher"] is None


@pytest.fixture(scope="module")
def one_label(tmp_path_factory):
  """A data set whose validation and test splits have one label only, so that AUC does not exist."""
  path, rng, lines = tmp_path_factory.mktemp("clicks") / "clicks.csv", np.random.default_rng(0), ["kind,part,click"]
  for part, n in (("train", 60), ("validation", 20), ("test", 20)):
    lines += [f"k{rng.integers(3)},{part},{rng.integers(2) if part == 'train' else 1}" for _ in range(n)]
  path.write_text("\n".join(lines) + "\n")
  return f"labelled(path={str(path)!r}, labels=('click',), fields=('kind',), split='given', split_column='part')"


def test_files_of_runs_and_tables_without_a_value_are_strict(one_label, tmp_path):
  (tmp_path / "small.toml").write_text(f"""
title = "Small"
flags = [{json.dumps(f"--data={one_label}")}, "--model=lr()", "--epochs=3", "--keep_every=1", "--log_test"]
metrics = ["auc", "log_loss"]
seeds = 2
teacher_row = "teacher"
student_row = "student"
[[row]]
row = "teacher"
[[row]]
row = "student"
flags = ["--learning_rate=0.01"]
[[row]]
row = "taught"
teacher = "teacher"
flags = ["--kd=bce(candidates='full')"]
""")
  result = make.reproduce(str(tmp_path / "small.toml"), str(tmp_path), None, None, None)
  files = strict_files(tmp_path)
  run = "runs/student-seed0"
  assert files[f"{run}/metrics.jsonl"][0]["validation"]["auc"] is None
  assert files[f"{run}/result.json"]["validation"]["auc"] is None
  assert files[f"{run}/test.json"]["metrics"]["auc"] is None
  assert files["small.json"]["rows"][0]["metrics"]["auc"]["mean"] is None
  assert files["small.json"]["rows"][2]["no_transfer"]["auc"] == "the teacher has no value"
  assert any(name.startswith(f"{run}/checkpoints/") for name in files) and f"{run}/after/1/run.json" in files
  assert math.isnan(result["rows"][0]["metrics"]["auc"]["mean"])
  again = make.reproduce(str(tmp_path / "small.toml"), str(tmp_path), None, None, None)
  assert sealed.to_json(again) == sealed.to_json(result)
  found = run_report.evaluate_run(tmp_path / run, teacher=str(tmp_path / "runs/teacher-seed0"),
                                  student=str(tmp_path / "runs/teacher-seed0"))
  assert found["relative_improvement"] is None and set(found["transfer_ratio"].values()) == {None}
  strict_files(tmp_path)


def test_any_value_is_better_than_none():
  for name in ("auc", "log_loss"):
    monitor = model_selection.monitor(name, "clicks")
    position, first = model_selection.compare(monitor, Position(epoch=1), {name: math.nan})
    restored = Position.restored(json.loads(sealed.to_json(position._asdict())))
    for before in (position, restored):
      position, better = model_selection.compare(monitor, before._replace(epoch=2), {name: 0.4})
      assert first and better and position.best_epoch == 2
      assert not model_selection.compare(monitor, position._replace(epoch=3), {name: math.nan})[1]


def test_a_run_whose_metric_has_no_value_is_continued(one_label, tmp_path, flags):
  run = tmp_path / "run"

  def train(epochs):
    return loop.train(flags(f"--data={one_label}", "--model=lr()", f"--epochs={epochs}", f"--workdir={run}"))

  assert train(2)["best_epoch"] == 1 == train(3)["best_epoch"]
  assert math.isnan(run_directory.read_finished(run).result["validation"]["auc"])
  strict_files(tmp_path)


def test_other_files_are_strict(teacher, small, tmp_path):
  list(export.export_run(str(teacher), str(tmp_path / "exported")))
  make_soft_labels.write(str(teacher), str(tmp_path / "labels"), top_k=9, exclude_seen=True)
  sealed.write_json_atomic(tmp_path / "audit.json", protocol_audit.run(small[0].removeprefix("--data="), 4, 1))
  files = strict_files(tmp_path)
  assert {"exported/manifest.json", "labels/manifest.json", "audit.json"} <= files.keys() and strict_files(teacher)
