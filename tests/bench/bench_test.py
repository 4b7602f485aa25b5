"""The benchmark runs on what users name, and says what it was."""

import json
import re

import pytest
from conftest import in_a_folder, run_script

SMALL = ("--data=synthetic(users=100, items=240, interactions_per_user=16)", "--model=mf(dim=4)",
         "--teacher_model=mf(dim=8)", "--batch_size=256", "--repeats=2", "--warmup=1")


@pytest.mark.short
def test_an_unknown_method_is_refused_before_anything_is_timed(script):
  done = script("bench", *SMALL, "--kds=kl(); nonsense()")
  assert done.returncode == 2 and "nonsense" in done.stderr and not done.stdout


@pytest.mark.short
@pytest.mark.parametrize("other", ["--against=torch", "--methods", "--kds=kl()"])
def test_kernels_are_timed_alone(script, other):
  done = script("bench", *SMALL, "--kernels", other)
  assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout
  assert other.partition("=")[0] in done.stderr and "--kernels" in done.stderr


def test_a_side_that_fails_says_why_in_one_line(script):
  done = script("bench", *SMALL, "--data=synthetic(users=-1)")
  assert done.returncode == 2 and done.stderr.count("\n") == 1 and "users=-1 is not in" in done.stderr


def methods(tmp_path):
  out = tmp_path / "timings.json"
  kds = "dcd(k=3, depth=6, temperature=1.0, every=2); fitnet()"
  done = run_script("bench", *SMALL, f"--kds={kds}", f"--out={out}")
  assert done.returncode == 0, done.stderr
  written = json.loads(out.read_text())
  names = ["evaluation", "epoch plain", *(f"epoch {kd}" for kd in kds.split("; "))]
  assert list(written["seconds"]) == names and all(name in done.stdout for name in names)
  for seconds in written["seconds"].values():
    assert 0.01 < seconds["peak"] < 100  # GB
    assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
  # Two projections of 4 to 8 numbers, of users and of items, with their gradients: nothing beside the rest.
  assert 0 < written["seconds"]["epoch fitnet()"]["needed"] < written["seconds"]["epoch fitnet()"]["median"]
  assert "needed" not in written["seconds"]["epoch plain"]
  assert "scripts/bench.py" in written["command"] and written["machine"]["cores"] >= 1


def kernels(tmp_path):
  out = tmp_path / "kernels.json"
  done = run_script("bench", *SMALL, "--kernels", f"--out={out}")
  assert done.returncode == 0, done.stderr
  timed = json.loads(out.read_text())["seconds"]
  assert len(timed) == 8
  for name, seconds in timed.items():
    assert 0 <= seconds["products"] <= seconds["needed"] < seconds["median"], name


TABLE = """
title = "Two rows"
seeds = 2
metrics = ["ndcg@10"]
teacher_row = "teacher"
student_row = "student"
flags = ["--data=synthetic(users=100, items=240, interactions_per_user=16)", "--epochs=2", "--batch_size=256"]
[[row]]
row = "teacher"
flags = ["--model=mf(dim=8)"]
[[row]]
row = "student"
flags = ["--model=mf(dim=4)"]
"""


def sealing(tmp_path):
  (tmp_path / "two.toml").write_text(TABLE)
  done = run_script("bench", f"--sealing={tmp_path}/two.toml")
  assert done.returncode == 0, done.stderr
  said = re.search(r"([\d.]+) s, of these ([\d.]+) s \(([\d.]+) %\)", done.stdout)
  seconds, share, percent = map(float, said.groups())
  assert 0 < share < seconds
  assert percent == pytest.approx(100 * share / seconds, abs=1)


BESIDE = {"methods": in_a_folder(methods), "kernels": in_a_folder(kernels), "sealing": in_a_folder(sealing)}


@pytest.mark.slow
def test_every_method_named_is_timed_and_written(beside):
  beside("methods")


@pytest.mark.slow
def test_no_kernel_is_faster_than_the_machine(beside):
  beside("kernels")


@pytest.mark.slow
def test_the_time_of_seals_is_a_part_of_the_time_of_a_table(beside):
  beside("sealing")
