"""Two processes give one's numbers; when one is killed the other ends, and both together go on. Plain: docs_test.py."""

import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import resume_test

from kd_jax import checkpoint, runs

RRD = "--kd=rrd(k=5, uninteresting=5, depth=30)"


def devices(number):
  return os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={number}"}


def start_both(arguments, save_seconds=0):
  """Two processes of two devices each, with a checkpoint after every epoch."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
  command = [sys.executable, "-c", resume_test.DRIVER, str(save_seconds), str(resume_test.TRAIN), *arguments, address]
  return [subprocess.Popen([*command, "--num_processes=2", f"--process_id={i}"], stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True, env=devices(2)) for i in range(2)]


@pytest.fixture
def both():
  """Starts two processes; none is left behind."""
  started = []

  def start(arguments):
    started.extend(start_both(arguments))
    return started[-2:]

  yield start
  for process in started:
    process.kill()
    process.communicate()


def finish(processes):
  said = [process.communicate(timeout=240) for process in processes]
  assert [process.returncode for process in processes] == [0, 0], said
  assert "validation" in said[0][0] and "validation" not in said[1][0]


def assert_equal_runs(one, two):
  """Losses, metrics and parameters of both runs are the same, to 1e-5."""
  lines = [runs.read_metrics(directory) for directory in (one, two)]
  assert len(lines[0]) == len(lines[1])
  for a, b in zip(*lines, strict=True):
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    assert a["validation"] == pytest.approx(b["validation"], abs=1e-5)
  first, second = (checkpoint.restore_best(directory)[0]["student"] for directory in (one, two))
  assert first.keys() == second.keys()
  for name in first:
    np.testing.assert_allclose(second[name], first[name], atol=1e-5, err_msg=name)


def test_one_of_two_is_killed_and_the_other_ends_and_both_go_on(small, teacher, script, tmp_path, both):
  arguments = [*small, "--patience=0", RRD, f"--teacher={teacher}"]
  first, second = both([*arguments, "--epochs=100000", f"--workdir={tmp_path}/two"])
  assert resume_test.wait_until(first, lambda: resume_test.lines(tmp_path / "two") >= 3), first.communicate()[1]
  second.send_signal(signal.SIGKILL)
  _, errors = first.communicate(timeout=60)
  assert first.returncode > 0 and len(errors.splitlines()) == 1 and "another one has ended" in errors, errors
  saved = checkpoint.latest(tmp_path / "two")
  assert saved >= 2
  finish(both([*arguments, f"--epochs={saved + 2}", f"--workdir={tmp_path}/two"]))
  done = script("train", *arguments, f"--epochs={saved + 2}", f"--workdir={tmp_path}/one", env=devices(4))
  assert done.returncode == 0, done.stderr[-2000:]
  assert_equal_runs(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(("wrong", "said"), [
    (["--num_processes=2"], "need --coordinator"),
    (["--coordinator=here", "--num_processes=2", "--process_id=0"], "HOST:PORT"),
    (["--coordinator=a:1", "--num_processes=2", "--process_id=2"], "0..N-1")])
def test_what_does_not_fit_together_is_refused(wrong, said, small, flags, tmp_path):
  from kd_jax import processes
  from kd_jax.base import InputError

  with pytest.raises(InputError, match=said), processes.joined(flags(*small, *wrong, f"--workdir={tmp_path}/run")):
    pass
