"""Tables: what is written is what the runs say; verdicts, comparisons, and configurations that are refused."""

import json
import os
import pathlib
import re
import shutil
import subprocess

import jax
import numpy as np
import pytest
from scipy import stats

from kd_jax.base import InputError
from kd_jax.evaluation import sealed_report
from kd_jax.metrics import significance
from kd_jax.runs import loop
from kd_jax.storage import run_directory
from kd_jax.tables import figures, make, toml_file

CONFIGS = sorted((pathlib.Path(__file__).resolve().parents[2] / "configs" / "tables").glob("*.toml"))
TABLE = """
title = "A small table"
source = "A paper"
seeds = 2
metrics = ["ndcg@10", "recall@10"]
student_row = "student"
teacher_row = "teacher"
tolerance = {absolute = 0.5, relative = 0.1}
flags = ["--data=synthetic(users=60, items=240, interactions_per_user=16)", "--epochs=2", "--log_test",
         "--batch_size=256"]
[[row]]
row = "teacher"
flags = ["--model=mf(dim=8)", "--keep_every=1"]
note = "said of the teacher"
[[row]]
row = "student"
flags = ["--model=mf(dim=2)"]
published = {"recall@10" = 0.03}
published_curve = {"ndcg@10" = [[1, 0.02], [2, 0.03], [9, 0.04]]}
[[row]]
row = "both"
teacher = ["teacher@1", "teacher@9", "student"]
flags = ["--model=mf(dim=2)", "--kd=kl(k=10)"]
published = {"recall@10" = 0.9}
tolerance = {absolute = 0.01}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp("table")
  (folder / "small.toml").write_text(TABLE)
  return folder, make.reproduce(str(folder / "small.toml"), str(folder), None, None, None)


def of(folder, row, seed):
  return sealed_report.read(folder / "runs" / f"{row}-seed{seed}", "test")


def test_summaries_are_means_of_users_and_seeds(made):
  folder, result = made
  assert json.loads((folder / "small.json").read_text()) == json.loads(json.dumps(result))
  for row in result["rows"]:
    for metric in ("ndcg@10", "recall@10"):
      kept = [of(folder, row["row"], seed).values[metric] for seed in range(2)]
      assert row["metrics"][metric]["values"] == pytest.approx([v.mean() for v in kept])
      assert row["metrics"][metric]["std"] == pytest.approx(np.std([v.mean() for v in kept], ddof=1))
    assert set(row["groups"]) >= {"recall@10(popular)", "recall@10(unpopular)"}


def test_verdicts_hold_ours_against_the_largest_tolerance(made):
  rows = {row["row"]: row["metrics"] for row in made[1]["rows"]}
  student, both = (rows[name]["recall@10"] for name in ("student", "both"))
  assert (student["verdict"], student["tolerance"]) == ("within", 0.5)
  assert student["difference"] == pytest.approx(student["mean"] - 0.03)
  assert (both["verdict"], both["tolerance"]) == ("below", 0.01)
  assert "verdict" not in rows["student"]["ndcg@10"]
  summary = {"mean": 0.5, "std": 0.04}
  assert make._judge(summary, 0.4, {"absolute": 0.05, "relative": 0.1, "stds": 3})["tolerance"] == pytest.approx(0.12)
  assert make._judge(summary, 0.4, {"relative": 0.1})["verdict"] == "above"
  assert make._judge(summary | {"std": None}, 0.5, {"stds": 2}) == {
      "published": 0.5, "difference": 0.0, "tolerance": 0.0, "verdict": "within"}


def test_comparisons_are_of_the_users_values_averaged_over_seeds(made):
  folder, result = made
  assert [entry["rows"] for entry in result["comparisons"]] == [["both", "student"], ["both", "teacher"]]
  both, student = (np.mean([of(folder, row, seed).values["ndcg@10"] for seed in range(2)], axis=0)
                   for row in ("both", "student"))
  expected = significance.compare(both, student)
  found = result["comparisons"][0]["metrics"]["ndcg@10"]
  assert {k: found[k] for k in expected} == expected and 0 < expected["users"] <= 60


def test_a_row_learns_from_what_another_was_after_some_epochs_or_from_its_end(made):
  run = made[0] / "runs" / "both-seed1"
  others = [str(made[0] / "runs" / name) for name in ("teacher-seed1/after/1", "teacher-seed1", "student-seed1")]
  assert f"--teacher={','.join(others)}\n" in (run / "flags.txt").read_text()
  assert [x["epoch"] for x in run_directory.read_info(run)["teacher"]] == [
      run_directory.read_json(pathlib.Path(other) / "result.json")["best_epoch"] for other in others]


def test_published_curves_stand_beside_the_epochs_that_were_run(made):
  folder, result = made
  points = result["rows"][1]["test_curve"]["ndcg@10"]
  assert [(x["epoch"], x["published"]) for x in points] == [(1, 0.02), (2, 0.03)]
  lines = [run_directory.read_metrics(folder / "runs" / f"student-seed{seed}") for seed in range(2)]
  assert [x["values"] for x in points] == [[line[e]["test"]["ndcg@10"] for line in lines] for e in range(2)]
  assert "| ndcg@10 | student | 2 | 0.0300 |" in (folder / "small.md").read_text()


def test_the_page_shows_all_of_it(made):
  page = (made[0] / "small.md").read_text()
  for words in ("| recall@10 | both | 0.9000 |", "| below |", "| both − student |", "1 of 2 values are within",
                "- teacher: said of the teacher", "SYNTHETIC", "recall@10(unpopular)", "2 seeds",
                f"jax {jax.__version__}", " s in all."):
    assert words in page
  made_by = made[1]["made_by"]
  results = [run_directory.read_json(path) for path in (made[0] / "runs").glob("*/result.json")]
  assert len(results) == 6 and made_by["seconds"] == pytest.approx(sum(x["seconds"] for x in results))
  assert (made[0] / "small.png").read_bytes().startswith(b"\x89PNG")


def test_a_commit_is_named_and_whether_files_differ_from_it(tmp_path):
  assert run_directory.commit(tmp_path) is None

  def git(*words):
    return subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words],
                                        check=True, capture_output=True, text=True).stdout.strip()

  git("init")
  assert run_directory.commit(tmp_path) is None  # nothing was committed
  (tmp_path / "file").write_text("1")
  git("add", "file")
  git("commit", "-m", "first")
  assert run_directory.commit(tmp_path) == git("rev-parse", "HEAD")[:10]
  (tmp_path / "other").write_text("is not of the source")
  assert "+" not in run_directory.commit(tmp_path)
  (tmp_path / "file").write_text("2")
  assert run_directory.commit(tmp_path) == git("rev-parse", "HEAD")[:10] + "+"


def test_finished_runs_are_reused_unless_the_evaluation_changes(made, tmp_path):
  folder, before = made
  kept = shutil.copytree(folder / "runs", tmp_path / "runs")
  assert make.reproduce(str(folder / "small.toml"), str(folder), None, None, None) == before
  path = folder / "masked.toml"
  path.write_text(TABLE.replace("seeds = 2", "seeds = 2\nevaluate = {mask_validation = true}"))
  masked = make.reproduce(str(path), str(folder), None, None, None)
  assert "validation items" in masked["candidates"] and masked["rows"][0]["metrics"] != before["rows"][0]["metrics"]
  assert [r["training_seconds"] for r in masked["rows"]] == [r["training_seconds"] for r in before["rows"]]
  shutil.copytree(kept, folder / "runs", dirs_exist_ok=True)


def test_any_two_rows_may_be_compared(made):
  folder, before = made
  path = str(folder / "small.toml")

  def compared(pairs):
    return toml_file.with_pairs(toml_file.load(path), pairs)["compare"]

  assert compared("both,student| teacher, both") == [["both", "student"], ["teacher", "both"]]
  assert compared("all") == [["teacher", "student"], ["teacher", "both"], ["student", "both"]]
  for wrong in ("both", "both,pupil", "both,both", "both,student|", "both,student,teacher"):
    with pytest.raises(InputError, match=r"`compare=.*two rows, ROW,OTHER; there are: teacher, student, both"):
      compared(wrong)
  found = make.reproduce(path, str(folder), None, None, None, pairs="student,both")
  (only,), (was, _) = found["comparisons"], before["comparisons"]
  assert only["rows"] == ["student", "both"]
  assert only["metrics"]["ndcg@10"]["difference"] == -was["metrics"]["ndcg@10"]["difference"]
  assert make.reproduce(path, str(folder), None, None, None) == before


def test_chosen_rows_bring_their_teachers_and_no_other(made):
  table = toml_file.load(str(made[0] / "small.toml")) | {"compare": [["both", "student"], ["student", "teacher"]]}

  def names(chosen):
    return [row["row"] for row in chosen["row"]]

  assert names(toml_file.choose(table, ["teacher", " both"])) == ["teacher", "student", "both"]
  chosen = toml_file.choose(table, ["student"])
  assert names(chosen) == ["student"] and chosen["compare"] == [] and "teacher_row" not in chosen
  assert chosen["student_row"] == "student"
  with pytest.raises(InputError, match="`rows=pupil`: no row 'pupil' in small; there are: teacher, student, both"):
    toml_file.choose(table, ["pupil"])
  with pytest.raises(InputError, match="`workdir=a,b`: no comma"):
    make.reproduce(str(made[0] / "small.toml"), "a,b", None, None, None)


def test_seeds_of_a_row_may_be_trained_together(made, tmp_path):
  again = make.reproduce(str(made[0] / "small.toml"), str(tmp_path), None, None, None, together=True)
  assert [row["metrics"] for row in again["rows"]] == [row["metrics"] for row in made[1]["rows"]]


def test_a_row_with_a_run_that_diverges_makes_no_table_and_keeps_its_other_seeds(made, tmp_path, monkeypatch):
  train_all = loop.train_many
  monkeypatch.setattr(loop, "train_many", lambda several: [*train_all(several)[:-1], InputError("x: diverged")])
  with pytest.raises(InputError, match=r"^1 of 2 runs diverged: x: diverged$"):
    make.reproduce(str(made[0] / "small.toml"), str(tmp_path), None, None, None, together=True)
  assert [path.name for path in tmp_path.iterdir()] == ["runs"]
  assert {path.name for path in (tmp_path / "runs").iterdir()} == {"teacher-seed0", "teacher-seed1"}


def test_damaged_values_of_users_are_noticed(made):
  folder, before = made
  path = folder / "runs" / "student-seed0" / "test_values" / "values.npz"
  content = path.read_bytes()
  path.write_bytes(content[:-9] + b"garbage!!")
  with pytest.raises(InputError, match=r"values\.npz"):
    make.reproduce(str(folder / "small.toml"), str(folder), None, None, None)
  path.write_bytes(content)
  assert make.reproduce(str(folder / "small.toml"), str(folder), None, None, None) == before


@pytest.mark.parametrize(("field", "key", "other"), [
    ("options", "mask_validation", True), ("options", "history", "train+validation"), ("options", "sampled", 9),
    ("options", "sampled_seed", 1), ("seal", "", "0" * 64), ("kd_jax", "", "0.0.1")])
def test_values_of_another_evaluation_are_evaluated_again(made, field, key, other, capsys):
  """Whatever the readable copy and times of files say."""
  folder, before = made
  run, stored = folder / "runs" / "student-seed0", of(folder, "student", 0)
  copy = (run / "test.json").read_bytes()
  shutil.rmtree(run / "test_values")
  value = stored.report["options"] | {key: other} if key else other
  sealed_report.write(run, "test", stored._replace(report=stored.report | {field: value},
                                                   values={name: 0 * x for name, x in stored.values.items()}))
  (run / "test.json").write_bytes(copy)  # as after a kill between the two files
  os.utime(run / "test_values" / "values.npz", (1, 1))
  os.utime(run / "test.json")
  capsys.readouterr()
  assert make.reproduce(str(folder / "small.toml"), str(folder), None, None, None) == before
  assert f"{run / 'test_values'}: replaced, it was of " in (said := capsys.readouterr().err)
  assert not key or f"other options {key}={other}" in said
  assert json.loads((run / "test.json").read_text()) == of(folder, "student", 0).report == stored.report


def test_a_copy_that_a_kill_left_behind_is_written_again(made):
  folder, before = made
  path = folder / "runs" / "student-seed1" / "test.json"
  expected = path.read_bytes()
  path.write_text("{}")
  assert make.reproduce(str(folder / "small.toml"), str(folder), None, None, None) == before
  assert path.read_bytes() == expected


def test_values_of_another_run_are_not_taken(made, monkeypatch):
  folder, before = made
  one, other = (folder / "runs" / f"student-seed{seed}" for seed in range(2))

  def swap():
    shutil.copytree(other / "test_values", one / "test_values", dirs_exist_ok=True)

  def swapped(*arguments, done=make._done):
    yield from done(*arguments)
    swap()

  with monkeypatch.context() as patched, pytest.raises(InputError, match="seed0: was changed while the table was made"):
    patched.setattr(make, "_done", swapped)
    make.reproduce(str(folder / "small.toml"), str(folder), None, None, None)
  assert of(folder, "student", 0).report["seal"] == of(folder, "student", 1).report["seal"]
  assert make.reproduce(str(folder / "small.toml"), str(folder), None, None, None) == before  # evaluated again
  result = (one / "result.json").read_bytes()
  (one / "result.json").write_bytes((other / "result.json").read_bytes())
  with pytest.raises(InputError, match=r"student-seed0.result\.json: damaged, or of another run"):
    make.reproduce(str(folder / "small.toml"), str(folder), None, None, None)
  (one / "result.json").write_bytes(result)


def test_rows_of_other_users_are_not_compared(made, tmp_path):
  shutil.copytree(made[0] / "runs", tmp_path / "runs")
  text = TABLE[: TABLE.index("[[row]]\nrow = \"both\"")] + """
[[row]]
row = "elsewhere"
flags = ["--model=pop()", "--data=synthetic(users=50, items=240, interactions_per_user=16)"]
"""
  path, wrong = tmp_path / "small.toml", "were evaluated on different users and cannot be compared"
  path.write_text(text.replace('teacher_row = "teacher"\n', ""))
  assert make.reproduce(str(path), str(tmp_path), 1, None, None)["comparisons"] == []
  with pytest.raises(InputError, match=f"small: rows 'student' and 'elsewhere' {wrong}"):
    make.reproduce(str(path), str(tmp_path), 1, None, None, pairs="student,elsewhere")
  path.write_text(text.replace('teacher_row = "teacher"', 'teacher_row = "elsewhere"'))
  with pytest.raises(InputError, match=f"small: rows 'elsewhere' and 'student' {wrong}"):
    make.reproduce(str(path), str(tmp_path), 1, None, None)


def test_a_ratio_stands_only_where_the_teacher_is_told_apart(made):
  """From the means over seeds, and the paired t-test of values that are averaged over seeds."""
  folder, result = made
  both = next(row for row in result["rows"] if row["row"] == "both")
  page = (folder / "small.md").read_text()
  for number, metric in enumerate(("ndcg@10", "recall@10")):
    teacher, student = (np.mean([of(folder, row, seed).values[metric] for seed in range(2)], axis=0)
                        for row in ("teacher", "student"))
    gap, p = teacher.mean() - student.mean(), stats.ttest_rel(teacher, student).pvalue
    if gap > 0 and p < 0.05:
      assert both["transfer_ratio"][metric] == pytest.approx((both["metrics"][metric]["mean"] - student.mean()) / gap)
    else:
      assert both["transfer_ratio"][metric] is None and both["no_transfer"][metric].endswith(
          f"student: {gap:+.4f} (p {f'{p:.2g}'.removeprefix('0')})")
      if not number:
        assert f"- no transfer ratio in ndcg@10: {both['no_transfer'][metric]}\n" in page
        assert re.search(r"\| both \|.*\| none \| [\d.]+ \|\n", page)
  assert all("transfer_ratio" not in row for row in result["rows"] if row["row"] != "both")


def test_bands_are_of_the_seeds_that_still_run():
  epochs, mean, std = figures.band([([1, 2, 3], [0.1, 0.2, 0.4]), ([1, 2], [0.3, 0.2])])
  assert epochs.tolist() == [1, 2, 3] and mean == pytest.approx([0.2, 0.2, 0.4])
  assert std == pytest.approx([np.std([0.1, 0.3], ddof=1), 0.0, 0.0])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_table_is_well_formed(path):
  table = toml_file.load(path.stem)
  assert table["name"] == path.stem
  published = [row for row in table["row"] if "published" in row]
  assert not published or (table["source"] and ("tolerance" in table or all("tolerance" in row for row in published)))


@pytest.mark.parametrize(("old", "new", "said"), [
    ("absolute = 0.01", "absolut = 0.01", "unknown keys absolut"),
    ('"student"]\nflags', '"no"]\nflags', "'both'"), ("teacher@9", "teacher@x", "after @ comes a number of epochs"),
    ("--keep_every=1", "--keep_every=4", "teacher@1 needs a --keep_every of row 'teacher' that divides 1"),
    ('student_row = "student"', 'student_row = "x"', "'x'"),
    ("seeds = 2", 'compare = [["both", "no"]]', "'no'"),
    ("seeds = 2", 'compare = [["both"]]', "compare"), ('"recall@10" = 0.9', '"recall@7" = 0.9', "recall@7"),
    (', "--log_test"', "", "needs --log_test"), ('"--kd=kl(k=10)"', "", "row 'both': .*no --kd to distil with"),
    ("kl(k=10)", "kll(k=10)", "row 'both': .*did you mean kl"),
    ("--keep_every=1", "--keep_evry=1", "row 'teacher': .*keep_evry"),
    ('["teacher@1", "teacher@9", "student"]', '"both"', "in a circle: both"),
    ('"recall@10"]', '"recall@10", "recall@0"]', "metrics: 'recall@0' is not a metric like .*recall@10"),
    ('["ndcg@10", "recall@10"]', "[]", "a list of metr"),
    ("seeds = 2", "seeds = 0", "a positive whole number"), ("seeds = 2", "seeds = true", "a positive whole number"),
    ("absolute = 0.01", "absolute = nan", "row 'both': tolerance"), ("0.9", '"high"', "row 'both': published"),
    ("relative = 0.1", "relative = -0.1", "not negative"), ("[9, 0.04]", "[9]", "row 'student': published_curve"),
    ('"A small table"', "5", "title = 5: must be text"), ('row = "both"', 'row = "../both"', "no / "),
    ('row = "both"', "note = 'x'", "each with its name"), ('"--kd=kl(k=10)"', '"--kd", "kl()"', "flags = "),
    ('row = "both"', 'row = "student"', "named twice"),
    ("seeds = 2", 'evaluate = {history = "all"}', "choose from train"),
    ("seeds = 2", "evaluate = {sampled = -1}", "must not be negative"),
    ("seeds = 2", "evaluate = {flagfile = 'x'}", "flagfile")])
def test_what_cannot_be_is_refused(old, new, said, tmp_path):
  assert TABLE.count(old) == 1
  (tmp_path / "small.toml").write_text(TABLE.replace(old, new))
  with pytest.raises(InputError, match=said):
    toml_file.load(str(tmp_path / "small.toml"))


def test_any_cutoff_may_be_a_column(tmp_path):
  more = ["recall@7(cold)", "hit@3(sampled 9)"]
  (tmp_path / "small.toml").write_text(TABLE.replace('"recall@10"]', f'"recall@10", {json.dumps(more)[1:-1]}]'))
  assert toml_file.load(str(tmp_path / "small.toml"))["metrics"][2:] == more


def test_rows_stand_after_those_that_they_learn_from():
  rows = [{"row": "a", "teacher": "b@3"}, {"row": "b", "init_from": ["c"]}, {"row": "c"}, {"row": "d"}]
  assert [row["row"] for row in toml_file.in_order("", rows)] == ["c", "d", "b", "a"]


def test_a_metric_that_runs_do_not_have_is_named(made, tmp_path):
  shutil.copytree(made[0] / "runs", tmp_path / "runs")
  for column, said in (("luck", "metrics: 'luck' is not a metric like .*ndcg@10"),
                       ("ndcg@5(own epoch)", r"ndcg@5\(own epoch\) is none of row 'teacher'; there are: .*ndcg@5")):
    (tmp_path / "small.toml").write_text(TABLE.replace('"recall@10"]', f'"recall@10", "{column}"]'))
    with pytest.raises(InputError, match=said):
      make.reproduce(str(tmp_path / "small.toml"), str(tmp_path), None, None, None)
