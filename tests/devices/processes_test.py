"""Two processes give one's numbers, end together however one ends, and go on together. Plain: docs_test.py."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
import resume_test

from kd_jax import cli
from kd_jax.base import InputError
from kd_jax.devices import processes
from kd_jax.storage import checkpoint, run_directory

RRD = "--kd=rrd(k=5, uninteresting=5, depth=30)"


def devices(number):
  return os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={number}"}


def free_port():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


@pytest.fixture
def both():
  """both(arguments) starts two processes of two devices each, with a checkpoint after every epoch; none is left."""
  started = []

  def start(arguments, code=resume_test.DRIVER, save_seconds=0, host="127.0.0.1"):
    command = [sys.executable, "-c", code, str(save_seconds), str(resume_test.TRAIN), *arguments,
               f"--coordinator={host}:{free_port()}", "--num_processes=2"]
    started.extend(subprocess.Popen([*command, f"--process_id={i}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                    text=True, env=devices(2)) for i in range(2))
    return started[-2:]

  yield start
  for process in started:
    process.kill()
    process.communicate()


def finish(started):
  said = [process.communicate(timeout=240) for process in started]
  assert [process.returncode for process in started] == [0, 0], said
  assert "validation" in said[0][0] and "validation" not in said[1][0]


def assert_equal_runs(one, two):
  """Losses, metrics and parameters of both runs are the same, to 1e-5."""
  lines = [run_directory.read_metrics(directory) for directory in (one, two)]
  assert len(lines[0]) == len(lines[1])
  for a, b in zip(*lines, strict=True):
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    assert a["validation"] == pytest.approx(b["validation"], abs=1e-5)
  first, second = (checkpoint.restore_best(directory)[0]["student"] for directory in (one, two))
  assert first.keys() == second.keys()
  for name in first:
    np.testing.assert_allclose(second[name], first[name], atol=1e-5, err_msg=name)


@pytest.mark.slow
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


@pytest.mark.usefixtures("teacher")  # its data is prepared: nobody waits for it, and says so
def test_both_end_with_the_line_of_a_run_that_diverges(small, tmp_path, both):
  run = tmp_path / "run"
  started = both([*small, "--optimizer=sgd", "--learning_rate=1e25", f"--workdir={run}"])
  for process in started:
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 2 and len(errors.splitlines()) == 1 and f": {run}: epoch " in errors, errors
    assert "a loss is not finite" in errors


@pytest.mark.usefixtures("teacher")  # its data is prepared: nobody waits for it, and says so
def test_one_is_asked_to_stop_and_both_save_and_end(small, tmp_path, both):
  run = tmp_path / "run"
  started = both([*small, "--patience=0", "--epochs=100000", f"--workdir={run}"], save_seconds=1000)
  assert resume_test.wait_until(started[0], lambda: resume_test.lines(run) >= 3), started[0].communicate()[1]
  started[1].send_signal(signal.SIGTERM)
  for process in started:
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and errors == "train.py: interrupted; start the same command again to go on\n"
  assert checkpoint.latest(run) == resume_test.lines(run) >= 3 and not (run / run_directory.RESULT).exists()


# One process ends in the way that --workdir names, while the other one does something else.
ENDING = """
import sys, time
from kd_jax import base, cli
from kd_jax.devices import processes
ending = dict(interrupted=KeyboardInterrupt, refused=base.InputError("what is wrong"), broken=OSError("unforeseen"))
def main(values):
  with processes.joined(cli.options_of(cli.ProcessOptions, values), cli.as_flags):
    if processes.is_first():
      time.sleep(60)
    raise ending[values.workdir]
sys.argv = sys.argv[2:]
cli.run(main, "", cli.define(cli.FIT, cli.PROCESSES))
"""


@pytest.mark.parametrize(("how", "status", "line", "host"), [
    ("interrupted", 130, "process 1 of 2: interrupted; start the same commands again to go on", "127.0.0.1"),
    ("refused", 2, "process 1 of 2: what is wrong", "[::1]"),
    ("broken", 1, "process 1 of 2: OSError('unforeseen')", "127.0.0.1")])
def test_both_end_as_one_of_them_does(how, status, line, host, both):
  if "::" in host and not socket.has_dualstack_ipv6():
    pytest.skip("no IPv6 here")
  first, second = both([f"--workdir={how}"], ENDING, host=host)
  for process in (first, second):
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == status, errors
    if how == "broken" and process is second:
      assert errors.rstrip().endswith("OSError: unforeseen"), errors
    else:
      assert errors == line + "\n"


def test_strangers_are_sent_away(monkeypatch):
  """One is silent, one knows no token, one comes twice; then nobody comes any more."""
  monkeypatch.setattr(jax, "process_count", lambda: 3)
  monkeypatch.setattr(processes, "_MOMENT", 0.05)
  token = [1, 2, 3, 4]
  with processes._listen() as server:
    port, opened = server.getsockname()[1], []
    for said in (b"", b"GET / HTTP/1.1 and more", processes._pass(token, 1), processes._pass(token, 1),
                 processes._pass(token, 2)):
      opened.append(socket.create_connection(("127.0.0.1", port)))
      opened[-1].sendall(said)
    found = processes._accept(server, token)
    assert [one.getpeername()[1] for one in found] == [opened[n].getsockname()[1] for n in (2, 4)]
    monkeypatch.setattr(processes, "_SECONDS", 0.1)
    with pytest.raises(TimeoutError):
      processes._accept(server, token)
  for one in (*opened, *found):
    one.close()


def test_a_process_does_not_show_an_error_beside_the_line_of_another_one(monkeypatch, capsys):
  """Both waits are of two seconds; the one that `_watch` ends must not go on."""
  monkeypatch.setattr(processes, "_ENDING", threading.Lock())
  monkeypatch.setattr(processes, "_MOMENT", 0.05)
  monkeypatch.setattr(processes, "_arguments", lambda values: {"coordinator_address": "", "process_id": 0})
  monkeypatch.setattr(jax.distributed, "initialize", lambda **options: None)
  here, there = socket.socketpair()
  monkeypatch.setattr(processes, "_connect", lambda arguments: [here])
  monkeypatch.setattr(os, "_exit", lambda status: threading.Event().wait())  # on its way to the end

  def fail():
    with processes.joined(None):
      there.close()
      raise OSError("what follows from the loss")

  threading.Thread(target=fail, daemon=True).start()
  time.sleep(0.5)
  assert capsys.readouterr().err == "process 0 of 1: another one has ended; start the same commands again to go on\n"


@pytest.mark.parametrize(("wrong", "said"), [
    (["--num_processes=2"], "need `coordinator=HOST:PORT`"),
    (["--coordinator=here", "--num_processes=2", "--process_id=0"], "HOST:PORT"),
    (["--coordinator=a:1", "--num_processes=2", "--process_id=2"], "0..N-1")])
def test_what_does_not_fit_together_is_refused(wrong, said, small, tmp_path):
  values = cli.define(cli.FIT, cli.PROCESSES).parse([*small, *wrong, f"--workdir={tmp_path}/run"])
  with pytest.raises(InputError, match=said), processes.joined(cli.options_of(cli.ProcessOptions, values)):
    pass
