"""scripts/scaling.py starts what users start, and its numbers are of the runs that it leaves."""

import json

import pytest
from conftest import in_a_folder, run_script

from kd_jax.storage import run_directory
from kd_jax.teachers import soft_labels

FLAGS = ("--users=100", "--items=300", "--model=mf(dim=4)", "--batch_size=256", "--top_k=20")


def sizes(tmp_path):
  from kd_jax import data

  out = tmp_path / "scaling.json"
  done = run_script("scaling", *FLAGS, "--interactions=1000,4000", "--data_memory=8e-4", f"--workdir={tmp_path}/runs",
                f"--out={out}")
  assert done.returncode == 0, done.stderr
  small, large = json.loads(out.read_text())
  assert (small["parts"], large["parts"]) == (1, 2)
  for found, size in ((small, 1000), (large, 4000)):
    last = run_directory.read_metrics(tmp_path / f"runs/{size}")[-1]["seconds"]
    assert found["epoch, us"] * (size - 200) == pytest.approx(1e6 * sum(last.values()))  # without held-out ones
    call = f"synthetic(users=100, items=300, interactions_per_user={size // 100}, dim=0, split='loo')"
    labels = soft_labels.read(tmp_path / f"runs/{size}/labels", data.load(call))
    assert labels.items.shape == (100, 20)
    assert 0.1 < found["peak of training, GB"] < 10


BESIDE = {"sizes": in_a_folder(sizes)}


@pytest.mark.slow
def test_sizes_are_measured_in_memory_and_streamed(beside):
  beside("sizes")


@pytest.mark.parametrize("wrong", ["150", "-100", "many"])
def test_sizes_that_users_do_not_divide_are_refused(wrong, script, tmp_path):
  done = script("scaling", *FLAGS, f"--interactions={wrong}", f"--workdir={tmp_path}/runs")
  assert done.returncode == 2 and done.stderr.startswith("scaling.py: --interactions") and not list(tmp_path.iterdir())


def test_a_script_that_fails_says_why(script, tmp_path):
  done = script("scaling", *FLAGS, "--interactions=1000", "--model=mf(width=3)", f"--workdir={tmp_path}/runs")
  assert done.returncode == 2 and "width" in done.stderr and done.stderr.count("\n") == 1
