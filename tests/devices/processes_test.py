"""Two processes belong together or end; they end together however one ends, and go on together. Plain: docs_test.py."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types

import jax
import numpy as np
import pytest
import resume_test

from kd_jax import cli
from kd_jax.base import InputError
from kd_jax.devices import processes, rendezvous
from kd_jax.devices.options import ProcessOptions
from kd_jax.storage import checkpoint, run_directory

RRD = "--kd=rrd(k=5, uninteresting=5, depth=30)"


def devices(number):
  return os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={number}"}


def free_port():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


def of_slurm(port, number):
  """The environment of one of two tasks of a SLURM step on this machine."""
  return {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_PROCID": str(number),
          "SLURM_LOCALID": "0", "JAX_COORDINATOR_PORT": str(port)}


@pytest.fixture
def both():
  """both(arguments) starts two processes of two devices each, with a checkpoint after every epoch; none is left.

  `own` are further arguments of each; None: it is not started. With host "auto" they are tasks of SLURM.
  """
  started = []

  def start(arguments, code=resume_test.DRIVER, save_seconds=0, host="127.0.0.1", port=None, own=((), ())):
    port = port or free_port()
    command, begun = [sys.executable, "-c", code, str(save_seconds), str(resume_test.TRAIN), *arguments], []
    for i, further in enumerate(own):
      place = [f"--coordinator={host}:{port}", "--num_processes=2", f"--process_id={i}"]
      place, of_host = (["--coordinator=auto"], of_slurm(port, i)) if host == "auto" else (place, {})
      if further is not None:
        begun.append(subprocess.Popen([*command, *place, *further], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                      text=True, env=devices(2) | of_host))
        started.append(begun[-1])
    return begun

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


def ended(started):
  """The lines with which processes ended, each with status 2."""
  said = [process.communicate(timeout=120)[1] for process in started]
  assert [process.returncode for process in started] == [2] * len(started), said
  assert all(len(errors.splitlines()) == 1 for errors in said), said
  return [errors.rstrip() for errors in said]


@pytest.mark.parametrize(("flag", "first", "second"), [
    ("seed", "0", "1"), ("learning_rate", "0.02", "0.03"), ("epochs", "3", "4"), ("batch_size", "256", "512")])
def test_another_flag_ends_both(flag, first, second, small, tmp_path, both):
  started = both([*small, f"--workdir={tmp_path}/run"], own=([f"--{flag}={first}"], [f"--{flag}={second}"]))
  line = f"the processes do not belong together: --{flag}={first} in process 0, --{flag}={second} in process 1"
  assert ended(started) == [f"train.py: {line}"] * 2
  assert not (tmp_path / "run").exists()


def test_other_data_ends_both(small, tmp_path, both):
  rows = [f"u{user},i{item}" for user in range(40) for item in range(user % 7, 30)]
  for host, of_host in (("a", rows), ("b", [*rows[:-1], "u39,other"])):
    (tmp_path / host).mkdir()
    (tmp_path / host / "log.csv").write_text("\n".join(["user,item", *of_host]))
  started = both([*small, "--data=interactions(path='log.csv')", f"--workdir={tmp_path}/run"],
                 own=([f"--data_dir={tmp_path}/a"], [f"--data_dir={tmp_path}/b"]))
  for line in ended(started):
    assert re.match(r"process \d of 2: the processes do not belong together: ", line), line
    assert re.search(r"--data=interactions\(path='log.csv'\) with item_ids (\w{12}) in process 0, "
                     r"--data=interactions\(path='log.csv'\) with item_ids (?!\1)\w{12} in process 1", line), line
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("here", [0, 1])
def test_a_partner_that_does_not_come_is_named(here, small, tmp_path, both):
  arguments = [*small, f"--workdir={tmp_path}/run", "--connect_seconds=1"]
  line, = ended(both(arguments, own=((), None) if here == 0 else (None, ())))
  why = "did not find process 0 within --connect_seconds=1: Connection refused" if here else (
      "process 1 of 2 did not come within --connect_seconds=1")
  assert re.fullmatch(rf"train.py: --coordinator=127.0.0.1:\d+: {why}", line), line
  assert not (tmp_path / "run").exists()


def test_a_port_that_is_taken_ends_both(small, tmp_path, both):
  with socket.create_server(("", 0)) as other:
    port = other.getsockname()[1]
    lines = ended(both([*small, f"--workdir={tmp_path}/run", "--connect_seconds=1"], port=port))
  assert f"--coordinator=127.0.0.1:{port}: another program, or another run, uses port {port}" in lines[0]
  assert lines[1].endswith("did not find process 0 within --connect_seconds=1: it does not answer")
  assert not (tmp_path / "run").exists()


def test_a_number_that_is_given_twice_ends_all(small, tmp_path, both):
  arguments = [*small, f"--workdir={tmp_path}/run"]
  started = both(arguments, own=[[f"--process_id={number}", "--num_processes=3"] for number in (0, 1, 1)])
  lines = set(ended(started))
  assert len(lines) == 1 and all(f"process {process.pid} on" in min(lines) for process in started[1:]), lines
  assert min(lines).startswith("train.py: --process_id=1 was given to process ") and not (tmp_path / "run").exists()


# One process is killed after all have come, before JAX connects them.
KILLED = """
import os, runpy, signal, sys
import jax
if f"--process_id={sys.argv[1]}" in sys.argv:
  jax.distributed.initialize = lambda *place, **options: os.kill(os.getpid(), signal.SIGKILL)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("killed", [0, 1])
def test_the_other_one_ends_if_one_is_killed_before_jax_connects_them(killed, small, tmp_path, both):
  started = both([*small, f"--workdir={tmp_path}/run"], KILLED, save_seconds=killed)
  errors = started[1 - killed].communicate(timeout=120)[1]
  assert started[1 - killed].returncode == 1
  assert errors == f"process {1 - killed} of 2: another one has ended; start the same commands again to go on\n"


# What both say of equal facts, and then of facts that differ in length and in number.
AGREED = """
import sys
from kd_jax import cli
from kd_jax.base import InputError
from kd_jax.devices import processes
def main(values):
  with processes.joined(cli.options_of(cli.ProcessOptions, values)):
    me = values.process_id
    for facts in ({"a": "alike"}, {"a": f"{'very ' * 300 * me}long", "b": "alike", f"own {me}": f"its {me}"}):
      try:
        processes.agree(lambda: facts)
        print("agreed", file=sys.stderr)
      except InputError as error:
        print(error, file=sys.stderr)
sys.argv = sys.argv[2:]
cli.run(main, "", cli.define(cli.FIT, cli.PROCESSES))
"""


def test_facts_are_compared_by_all(both):
  said = [process.communicate(timeout=120)[1] for process in both([], AGREED)]
  different = (f"long in process 0, {'very ' * 300}long in process 1; its 0 in process 0, no own 0 in process 1; "
               "no own 1 in process 0, its 1 in process 1")
  assert said == [f"agreed\nthe processes do not belong together: {different}\n"] * 2


def test_processes_have_equally_many_devices(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(process_index=number) for number in (0, 0, 1)])
  with pytest.raises(InputError, match=r"together: local devices: 2 in process 0, local devices: 1 in process 1$"):
    processes.agree(dict)


@pytest.mark.slow
def test_one_of_two_is_killed_and_the_other_ends_and_both_go_on(small, teacher, script, tmp_path, both):
  arguments = [*small, "--patience=0", RRD, f"--teacher={teacher}"]
  first, second = both([*arguments, "--epochs=100000", f"--workdir={tmp_path}/two"])
  assert resume_test.wait_until(first, lambda: resume_test.lines(tmp_path / "two") >= 3), first.communicate()[1]
  second.send_signal(signal.SIGKILL)
  _, errors = first.communicate(timeout=120)
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
  started = both([*small, "--optimizer=sgd", "--learning_rate=1e6", f"--workdir={run}"])
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
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 143, errors
    assert errors == "train.py: stopped by SIGTERM; what is done is saved; start the same command again to go on\n"
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
    ("broken", 1, "process 1 of 2: OSError: unforeseen; unforeseen: the traceback is in ", "auto")])
def test_both_end_as_one_of_them_does(how, status, line, host, both):
  if "::" in host and not socket.has_dualstack_ipv6():
    pytest.skip("no IPv6 here")
  first, second = both([f"--workdir={how}"], ENDING, host=host)
  for process in (first, second):
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == status, errors
    assert errors.startswith(line) and len(errors.splitlines()) == 1


ALONE = ProcessOptions("a:1", 1, 0, connect_seconds=1)


def test_a_process_does_not_show_an_error_beside_the_line_of_another_one(monkeypatch, capsys):
  """Both waits are of two seconds; the one that `_watch` ends must not go on."""
  monkeypatch.setattr(processes, "_ENDING", threading.Lock())
  monkeypatch.setattr(processes, "_MOMENT", 0.05)
  monkeypatch.setattr(jax.distributed, "initialize", lambda *place, **options: None)
  here, there = socket.socketpair()
  monkeypatch.setattr(rendezvous, "connect", lambda *arguments: [here])
  monkeypatch.setattr(os, "_exit", lambda status: threading.Event().wait())  # on its way to the end

  def fail():
    with processes.joined(ALONE):
      there.close()
      raise OSError("what follows from the loss")

  threading.Thread(target=fail, daemon=True).start()
  time.sleep(0.5)
  assert capsys.readouterr().err == "process 0 of 1: another one has ended; start the same commands again to go on\n"


def test_a_process_that_jax_does_not_connect_ends(monkeypatch, capsys):
  """JAX waits, as behind a proxy; some time later it would abort this process."""
  left, for_ever = threading.Event(), threading.Event()

  def leave(status):
    assert status == 2
    left.set()
    for_ever.wait()

  def wait():
    with processes.joined(ALONE):
      pass

  monkeypatch.setattr(processes, "_ENDING", threading.Lock())
  monkeypatch.setattr(processes, "_MOMENT", 0.05)
  monkeypatch.setattr(rendezvous, "connect", lambda *arguments: [])
  monkeypatch.setattr(jax.distributed, "initialize", lambda *place, **options: for_ever.wait())
  monkeypatch.setattr(os, "_exit", leave)
  threading.Thread(target=wait, daemon=True).start()
  assert left.wait(20)
  assert capsys.readouterr().err == "process 0 of 1: `coordinator=a:1`: JAX does not connect the processes within 1 s\n"


@pytest.mark.parametrize(("wrong", "said"), [
    (["--num_processes=2"], "need `coordinator=HOST:PORT`"),
    (["--coordinator=here", "--num_processes=2", "--process_id=0"], "HOST:PORT"),
    (["--coordinator=a:1", "--num_processes=2", "--process_id=2"], "0..N-1"),
    (["--coordinator=a:65536", "--num_processes=2", "--process_id=0"], "HOST:PORT"),
    (["--coordinator=a:0", "--num_processes=2", "--process_id=0"], "HOST:PORT"),
    (["--coordinator=auto"], "`coordinator=auto`: neither a SLURM step"),
    (["--coordinator=a:1", "--num_processes=2", "--process_id=0", "--connect_seconds=0"], "`connect_seconds=0`")])
def test_what_does_not_fit_together_is_refused(wrong, said, small, tmp_path):
  with pytest.raises(InputError, match=said):
    values = cli.define(cli.FIT, cli.PROCESSES).parse([*small, *wrong, f"--workdir={tmp_path}/run"])
    with processes.joined(cli.options_of(cli.ProcessOptions, values)):
      pass
