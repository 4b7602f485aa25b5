"""The stored report of a run: results of several calls stand together if they belong together, and only then."""

import json
import math
import os
import re
import shutil

import numpy as np
import pytest
from scipy import stats

from kd_jax import data
from kd_jax.base import InputError
from kd_jax.evaluation import protocols, run_report, sealed_report, streaming
from kd_jax.evaluation.options import EvaluationOptions
from kd_jax.runs import loop
from kd_jax.storage import run_directory, sealed
from kd_jax.teachers import loading
from kd_jax.training import windows

OPTIONS = EvaluationOptions(metrics="ndcg@7")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, flags, small, teacher):
  """A folder with the runs `student`, `distilled`, and `longer`, which continues `student`."""
  folder = tmp_path_factory.mktemp("runs")
  loop.train(flags(*small, f"--workdir={folder / 'student'}"))
  loop.train(flags(*small, "--kd=kl(k=10)", f"--teacher={teacher}", f"--workdir={folder / 'distilled'}"))
  shutil.copytree(folder / "student", folder / "longer")
  loop.train(flags(*small, "--epochs=4", f"--workdir={folder / 'longer'}"))
  return folder


@pytest.fixture
def runs(trained, tmp_path):
  """A copy of `trained`, which a test may change."""
  return shutil.copytree(trained, tmp_path / "runs")


def evaluate(run, **arguments):
  return run_report.evaluate_run(str(run), **arguments)


def usual(of_metrics):
  """Without what `OPTIONS` add."""
  kept = {name: value for name, value in of_metrics.items() if "@7" not in name}
  assert 0 < len(kept) <= len(of_metrics)
  return kept


def stored(run):
  found = sealed_report.read(run, "test")
  assert json.loads((run / "test.json").read_text()) == found.report  # the readable copy
  for name, values in found.values.items():
    assert found.report["metrics"][name] == pytest.approx(np.nanmean(values))
  return found


def test_calls_on_the_same_run_with_the_same_options_add_up(runs, teacher):
  run, student, other = runs / "distilled", str(runs / "student"), str(runs / "longer")
  whole = evaluate(run, teacher=str(teacher), student=student, others=[student, other], options=OPTIONS)
  values = stored(run).values
  shutil.rmtree(run / "test_values")
  evaluate(run, options=OPTIONS)
  evaluate(run, teacher=str(teacher), student=student)
  evaluate(run, others=[student])
  found = evaluate(run, others=[other])
  assert found == stored(run).report and found["metrics"] == whole["metrics"] and "ndcg@7" in found["metrics"]
  # What was not asked for together is not there.
  assert found["differences"] == {place: usual(x) for place, x in whole["differences"].items()}
  for name in ("compression_ratio", "overlap@10", "teacher", "student", "others", "seal", "users_sha256"):
    assert found[name] == whole[name]
  for name in ("transfer_ratio", "no_transfer"):
    assert found[name] == usual(whole[name])
  assert found["others"] == {place: run_directory.read_finished(place).seal for place in (str(teacher), student, other)}
  assert stored(run).values.keys() == values.keys()
  assert all(np.array_equal(stored(run).values[name], x, equal_nan=True) for name, x in values.items())


@pytest.mark.parametrize("other", [{"mask_validation": True}, {"sampled": 9, "sampled_seed": 1}])
def test_other_options_replace_the_report_and_say_so(runs, capsys, other):
  run = runs / "distilled"
  evaluate(run, others=[str(runs / "student")],
           options=EvaluationOptions(sampled=9) if "sampled_seed" in other else None)
  assert not capsys.readouterr().err
  found = evaluate(run, options=EvaluationOptions(**other))
  said = capsys.readouterr().err
  assert said.count("\n") == 1 and "test_values: replaced, it was of other options" in said
  assert said.endswith("options sampled_seed=0\n" if "sampled_seed" in other else "options mask_validation=False\n")
  assert found["differences"] == {} and found["options"] == EvaluationOptions(**other).recorded()
  assert found == stored(run).report


def test_a_run_that_was_trained_longer_gets_a_report_of_its_own(runs, small, flags, teacher, capsys):
  run = runs / "student"
  before = evaluate(run, teacher=str(teacher), others=[str(runs / "distilled")])
  loop.train(flags(*small, "--epochs=4", f"--workdir={run}"))
  capsys.readouterr()
  found = evaluate(run)
  assert "test_values: replaced, it was of another training of this run\n" in capsys.readouterr().err
  assert found["seal"] == run_directory.read_finished(run).seal != before["seal"]
  assert found["differences"] == {} and "compression_ratio" not in found and found == stored(run).report
  assert found["metrics"] == evaluate(runs / "longer")["metrics"]


def test_results_against_a_run_that_was_trained_again_are_dropped(runs, small, flags, teacher, capsys):
  run, student, longer = runs / "distilled", str(runs / "student"), str(runs / "longer")
  before = evaluate(run, teacher=str(teacher), student=student, others=[student, longer], options=OPTIONS)
  loop.train(flags(*small, "--epochs=4", f"--workdir={student}"))
  capsys.readouterr()
  found = evaluate(run, others=[student])
  said = capsys.readouterr().err
  assert said == f"{run / 'test_values'}: replaces results against {student}, trained again since\n"
  assert found["differences"][longer] == before["differences"][longer]
  assert found["differences"][student] == usual(before["differences"][longer])  # no line of the earlier one
  assert not {"student", "transfer_ratio", "no_transfer"} & found.keys()
  assert found["overlap@10"] == before["overlap@10"] and found["others"][student] == run_directory.read_finished(
      student).seal


def test_another_teacher_replaces_all_that_was_measured_against_the_first(runs, teacher):
  run, student = runs / "distilled", str(runs / "student")
  evaluate(run, teacher=str(teacher), student=student)
  found = evaluate(run, teacher=str(runs / "longer"))
  assert found["teacher"] == str(runs / "longer") and found["compression_ratio"] == 1
  assert not {"student", "transfer_ratio", "no_transfer"} & found.keys()
  assert found["others"] == {str(runs / "longer"): run_directory.read_finished(runs / "longer").seal}


class _Killed(BaseException):
  """What no handler expects, as SIGKILL."""


@pytest.mark.parametrize("place", ["write_json_atomic", "_write_manifest", "_swap"])
def test_a_kill_between_two_files_leaves_no_mix(runs, monkeypatch, place):
  run, options = runs / "distilled", EvaluationOptions(mask_validation=True)
  before = evaluate(run, others=[str(runs / "student")])
  with monkeypatch.context() as patched, pytest.raises(_Killed):
    patched.setattr(sealed, place, lambda *arguments: (_ for _ in ()).throw(_Killed))
    evaluate(run, options=options)
  found = sealed_report.read(run, "test")
  assert found.report["options"]["mask_validation"] == (place == "write_json_atomic")
  assert found.report == before or found.report["differences"] == {}
  for name, values in found.values.items():
    assert found.report["metrics"][name] == pytest.approx(np.nanmean(values))
  again = evaluate(run, options=options)
  assert again == stored(run).report and again["options"]["mask_validation"]


@pytest.mark.parametrize("name", ["values.npz", "manifest.json", "manifest.sha256"])
def test_a_damaged_report_is_refused_with_the_way_out(runs, name):
  run = runs / "distilled"
  evaluate(run)
  path = run / "test_values" / name
  content = path.read_bytes()
  for damaged in (content[:-9], content[:40] + bytes([content[40] ^ 1]) + content[41:]):
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=rf"test_values.*{re.escape(name.partition('.')[0])}.*; remove .*test_values "
                                         "and evaluate again"):
      evaluate(run)
  path.unlink()
  with pytest.raises(InputError, match="test_values"):
    evaluate(run)
  shutil.rmtree(run / "test_values")
  assert evaluate(run) == stored(run).report


@pytest.mark.parametrize("metadata", [{}, {"report": None}, {"report": {"seal": "x", "metrics": {}}}])
def test_an_artifact_without_the_fields_of_a_report_is_refused(runs, metadata):
  run = runs / "distilled"
  evaluate(run)
  found = stored(run)
  with sealed.writing(run / "test_values", "values of users", metadata) as temporary:
    np.savez(temporary / "values.npz", user_ids=found.user_ids, **found.values)
  with pytest.raises(InputError, match="test_values: not the evaluation of a run"):
    evaluate(run)
  shutil.rmtree(run / "test_values")


def test_the_files_for_people_are_not_read(runs):
  run = runs / "distilled"
  expected = evaluate(run)
  (run / "test.json").write_text('{"metrics": NaN')
  assert evaluate(run, others=[str(runs / "student")])["metrics"] == expected["metrics"]
  os.remove(run / "test.json")
  assert evaluate(run) == stored(run).report


def test_unfinished_and_changed_runs_are_not_evaluated(runs, monkeypatch):
  run = runs / "distilled"
  monkeypatch.setattr(protocols, "means", lambda values, means=protocols.means: (
      shutil.copytree(runs / "student", run, dirs_exist_ok=True), means(values))[1])
  with pytest.raises(InputError, match="distilled: was changed during its evaluation"):
    evaluate(run)
  monkeypatch.undo()
  os.remove(runs / "longer" / "run.sha256")
  for arguments in ({"others": [str(runs / "longer")]}, {"teacher": str(runs / "longer")}):
    with pytest.raises(InputError, match=r"longer.run\.sha256: missing"):
      evaluate(runs / "student", **arguments)
  assert not (run / "test_values").exists() and not (runs / "student" / "test_values").exists()


def test_a_ratio_needs_a_teacher_that_is_told_apart_from_the_student(runs, teacher):
  run, student, longer = (runs / name for name in ("distilled", "student", "longer"))
  found = evaluate(run, teacher=str(longer), student=str(student))
  ends = [run_report.evaluate_run(str(end)) and sealed_report.read(end, "test") for end in (longer, student)]
  assert found["users_without_training"] == 0 and not any("known" in name for name in found["metrics"])
  assert found["transfer_ratio"].keys() == ends[0].values.keys()
  reasons = set()
  for name, ratio in found["transfer_ratio"].items():
    (up, down), own = (np.nanmean(end.values[name]) for end in ends), found["metrics"][name]
    p = stats.ttest_rel(*(end.values[name] for end in ends), nan_policy="omit").pvalue
    if up > down and p < 0.05:
      assert ratio == pytest.approx((own - down) / (up - down)) and name not in found["no_transfer"]
    else:
      assert ratio is None and f"{up - down:+.4f}" in found["no_transfer"][name]
      reasons.add(found["no_transfer"][name].partition(":")[0])
  assert reasons
  same = evaluate(run, teacher=str(student), student=str(student))
  assert set(same["transfer_ratio"].values()) == {None}
  assert set(same["no_transfer"].values()) == {"the teacher is not better than the student: +0.0000 (p 1)"}


def rows_of_a_split(path, unknown):
  """A file with a given split, in which the last `unknown` of 60 users have no training interaction."""
  rng, lines = np.random.default_rng(0), ["user,item,part"]
  for user in range(60):
    items = rng.choice(40, 6, replace=False)
    parts = ["test"] * 6 if user >= 60 - unknown else ["train"] * 4 + ["validation", "test"]
    lines += [f"u{user},i{item},{part}" for item, part in zip(items, parts, strict=True)]
  path.write_text("\n".join(lines) + "\n")
  return f"interactions(path={str(path)!r}, split='given', split_column='part')"


@pytest.fixture(scope="module")
def with_unknown(tmp_path_factory, flags):
  """(call, run) on a split in which 13 of 60 users have no training interaction."""
  folder = tmp_path_factory.mktemp("unknown")
  call = rows_of_a_split(folder / "own.csv", 13)
  loop.train(flags(f"--data={call}", "--model=pop()", f"--workdir={folder / 'run'}"))
  return call, folder / "run"


def test_users_without_training_are_counted_and_have_a_mean_of_their_own(with_unknown):
  _, run = with_unknown
  report, found = evaluate(run), stored(run)
  assert (report["users_without_training"], report["users"]) == (13, 60)
  of_unknown = np.array([int(user[1:]) >= 47 for user in found.user_ids])
  for name in ("recall@10", "ndcg@5"):
    for group, mask in (("unknown", of_unknown), ("known", ~of_unknown)):
      assert report["metrics"][f"{name}({group})"] == pytest.approx(found.values[name][mask].mean())
      assert np.array_equal(np.isfinite(found.values[f"{name}({group})"]), mask)


def test_the_script_warns_of_users_without_training(with_unknown, script):
  done = script("evaluate", f"--run={with_unknown[1]}")
  assert done.returncode == 0, done.stderr
  assert [line for line in done.stderr.splitlines() if line.startswith("WARNING: 13 of 60 evaluated users have no ")]
  assert '"users_without_training": 13' in done.stdout and '"recall@10(unknown)"' in done.stdout


def test_streamed_data_has_the_same_groups_of_users(with_unknown):
  call, _ = with_unknown
  splits = ("train", "validation", "test")
  whole, streamed = data.load(call, splits=splits), data.load(call, splits=splits, memory=20_000 / 1e9)
  assert streamed.stream.parts > 2
  module, rng = loading.build_model("mf(dim=3)", whole), np.random.default_rng(0)
  params = {side: rng.normal(size=(n, 3)).astype(np.float32) for side, n in (("user", 60), ("item", whole.num_items))}
  users, expected = protocols.measure(module, {"params": params, "constants": {}}, protocols.layout(whole, "test"))
  windowed = windows.windowed(module, params, streamed)
  own, found = streaming.measure(windowed, params, streaming.Protocol(streamed, "test"))
  assert np.array_equal(own, users) and "recall@10(unknown)" in found and found.keys() == expected.keys()
  for name, values in expected.items():
    np.testing.assert_allclose(found[name], values, rtol=1e-12, err_msg=name)
  assert protocols.count_unknown(streamed, own) == protocols.count_unknown(whole, users) == 13


def test_most_test_users_of_movielens_split_by_time_are_unknown(real_data):
  dataset = data.load("movielens(split='temporal')", real_data, splits=("train", "validation", "test"))
  evaluation = protocols.layout(dataset, "test")
  users = np.unique(dataset.test.users)
  known = set(dataset.train.users.tolist())
  assert len(users) == 153 and protocols.count_unknown(dataset, users) == 96
  assert sum(user not in known for user in users.tolist()) == 96
  assert np.array_equal(evaluation.groups["unknown"], [user not in known for user in dataset.test.users.tolist()])


def test_a_number_that_is_none_is_null_in_files_and_nan_in_memory(tmp_path, flags):
  rng, lines = np.random.default_rng(0), ["kind,part,click"]
  for part, n in (("train", 60), ("validation", 20), ("test", 20)):  # without both labels, AUC does not exist
    lines += [f"k{rng.integers(3)},{part},{1 if part != 'train' else rng.integers(2)}" for _ in range(n)]
  (tmp_path / "clicks.csv").write_text("\n".join(lines) + "\n")
  call = (f"labelled(path={str(tmp_path / 'clicks.csv')!r}, labels=('click',), fields=('kind',), split='given', "
          "split_column='part')")
  run = tmp_path / "run"
  loop.train(flags(f"--data={call}", "--model=lr()", "--epochs=2", "--log_test", f"--workdir={run}"))
  report = evaluate(run)
  assert report["metrics"]["auc"] is None and report["users_without_training"] is None
  assert report == stored(run).report
  finished = run_directory.read_finished(run)
  assert all(math.isnan(line["validation"]["auc"]) for line in finished.history)
  assert math.isnan(finished.result["validation"]["auc"])
  assert math.isnan(run_report.evaluate(str(run))["auc"])
