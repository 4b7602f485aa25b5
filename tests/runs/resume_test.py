"""Runs that are killed go on, and end with the bits of the run that was not."""

import glob
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest

from kd_jax.storage import checkpoint, sealed

TRAIN = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "train.py"
# scripts/train.py, saving a checkpoint after every epoch.
DRIVER = """
import runpy, sys
from kd_jax.runs import loop
loop._SAVE_SECONDS = float(sys.argv[1])
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
EPOCHS = 12


def start(arguments, save_seconds):
  command = [sys.executable, "-c", DRIVER, str(save_seconds), str(TRAIN), *arguments]
  return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


def finish(arguments, save_seconds=0):
  process = start(arguments, save_seconds)
  _, errors = process.communicate(timeout=300)
  assert process.returncode == 0, errors


def wait_until(process, condition):
  """Whether the condition came true while the process ran."""
  while process.poll() is None:
    if condition():
      return True
    time.sleep(0.002)
  return False


def lines(directory):
  path = directory / "metrics.jsonl"
  return path.read_text().count("\n") if path.exists() else 0


def outcome(directory):
  """Hashes of every array of state and best parameters, the metrics and the result without times."""
  (saved,) = (directory / "checkpoints").glob("[0-9]*")
  sealed.read(saved, checkpoint.KIND)
  hashes = {}
  for part in ("state", "best"):
    tree = ocp.StandardCheckpointer().restore(saved / part)
    import jax

    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
      hashes[part + jax.tree_util.keystr(path)] = sealed.hash_array(np.asarray(leaf))
  read = [json.loads(x) for x in (directory / "metrics.jsonl").read_text().splitlines()]
  result = json.loads((directory / "result.json").read_text())

  def without(x):
    return {k: v for k, v in x.items() if k != "seconds"}

  return hashes, [without(x) for x in read], without(result)


@pytest.fixture(scope="module", params=["", "rrd(k=5, uninteresting=5, depth=30)"], ids=["plain", "distilled"])
def run(request, tmp_path_factory, small, teacher):
  """(flags, outcome of the run that nobody stopped)."""
  arguments = [*small, f"--epochs={EPOCHS}", "--patience=0", "--weight_decay=0.001", f"--kd={request.param}"]
  arguments += [f"--teacher={teacher}"] if request.param else []
  directory = tmp_path_factory.mktemp("whole") / "run"
  finish([*arguments, f"--workdir={directory}"], save_seconds=1000)
  return arguments, outcome(directory)


def moments(directory):
  """Conditions at which to kill: after a save, between epochs, in the middle of a save."""
  saving = directory / "checkpoints"
  return [
      lambda: any(saving.glob("00000[2-9]/manifest.json")),
      lambda: lines(directory) >= 6,
      # pathlib's glob raises where a folder that it lists is renamed meanwhile
      lambda: any(glob.iglob(f"{saving}/.0000*.tmp/*")) and lines(directory) >= 8,
  ]


@pytest.mark.slow
def test_three_kills_leave_no_trace(run, tmp_path):
  arguments, whole = run
  directory = tmp_path / "run"
  arguments = [*arguments, f"--workdir={directory}"]
  killed = 0
  for condition in moments(directory):
    process = start(arguments, 0)
    if wait_until(process, condition):
      process.send_signal(signal.SIGKILL)
    process.communicate()
    killed += process.returncode == -signal.SIGKILL
  assert killed == 3 and not (directory / "result.json").exists()
  finish(arguments)
  assert outcome(directory) == whole


def test_a_run_that_is_asked_to_stop_saves_and_goes_on(run, tmp_path):
  arguments, whole = run
  directory = tmp_path / "run"
  arguments = [*arguments, f"--workdir={directory}"]
  number = signal.SIGINT if "--kd=" in arguments else signal.SIGTERM
  process = start(arguments, 1000)  # no checkpoint but the one on request
  assert wait_until(process, lambda: lines(directory) >= 2)
  process.send_signal(number)
  _, errors = process.communicate(timeout=60)
  assert process.returncode not in (0, -number) and len(errors.splitlines()) == 1
  done = lines(directory)
  assert 2 <= done < EPOCHS and checkpoint.latest(directory) == done and not (directory / "result.json").exists()
  finish(arguments, save_seconds=1000)
  assert outcome(directory) == whole


def test_a_second_process_in_the_same_directory_is_refused(small, tmp_path):
  directory = tmp_path / "run"
  arguments = [*small, f"--workdir={directory}", "--epochs=100000", "--patience=0"]
  first = start(arguments, 1000)
  assert wait_until(first, lambda: lines(directory) >= 1)
  second = start(arguments, 1000)
  _, errors = second.communicate(timeout=60)
  assert second.returncode == 2 and f"in use by process {first.pid}" in errors and len(errors.splitlines()) == 1
  assert first.poll() is None
  first.kill()
  first.communicate()
