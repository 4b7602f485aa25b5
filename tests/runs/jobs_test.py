"""Several runs at a time are the runs one after the other, and end in good order."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from tables_test import TABLE

from kd_jax.base import InputError
from kd_jax.runs import jobs
from kd_jax.tables import make

ROOT = pathlib.Path(__file__).resolve().parents[2]
two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="of two cores")


def work(folder, name, how="well"):
  """Writes who started and ended when; `how` it ends."""
  log = pathlib.Path(folder) / "log"
  with log.open("a") as file:
    file.write(f"+{name}\n")
  if how == "refused":
    raise InputError(f"{name} is refused")
  if how == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
  if how == "wrong":
    return {}["nothing"]
  if how == "long":
    time.sleep(60)
  while how == "together" and len(log.read_text().split()) < 2:
    time.sleep(0.01)
  with log.open("a") as file:
    file.write(f"-{name}\n")
  return name.upper(), sorted(os.sched_getaffinity(0)), os.getpid()


def lines(folder):
  return (folder / "log").read_text().split()


@two_cores
def test_calls_wait_for_those_they_need(tmp_path):
  calls = {name: (tmp_path, name) for name in "dcba"}
  found = dict(jobs.run(2, work, calls, {"a": set(), "b": {"a"}, "c": {"a"}, "d": {"b", "c"}}))
  assert {key: name for key, (name, _, _) in found.items()} == {name: name.upper() for name in "abcd"}
  said = lines(tmp_path)
  assert said[:2] == ["+a", "-a"] and said[-2:] == ["+d", "-d"] and len(said) == 8


@two_cores
def test_two_at_a_time_have_cores_of_their_own(tmp_path):
  calls = {name: (tmp_path, name, "together") for name in "ab"}
  found = dict(jobs.run(2, work, calls, {key: set() for key in calls}))
  (_, first, one), (_, second, other) = found["a"], found["b"]
  assert one != other and not set(first) & set(second) and {*first, *second} == os.sched_getaffinity(0)


@two_cores
@pytest.mark.parametrize(("how", "error", "said"), [
    ("refused", InputError, "^bad is refused$"), ("killed", InputError, "`jobs=2`: a process was ended from outside"),
    ("wrong", KeyError, "nothing")])
def test_what_one_raises_ends_the_others(tmp_path, how, error, said):
  calls, start = {"other": (tmp_path, "other", "long"), "bad": (tmp_path, "bad", how)}, time.monotonic()
  with pytest.raises(error, match=said) as raised:
    dict(jobs.run(2, work, calls, {"other": set(), "bad": set()}))
  assert time.monotonic() - start < 50 and "-other" not in lines(tmp_path)
  if how == "wrong":
    assert "in work" in "".join(raised.value.__notes__)  # where it was


def test_more_jobs_than_cores_are_refused():
  cores = len(os.sched_getaffinity(0))
  with pytest.raises(InputError, match=f"`jobs={cores + 1}`: there are {cores} processor cores"):
    jobs.check(cores + 1)


@pytest.fixture
def table(tmp_path):
  (tmp_path / "small.toml").write_text(TABLE)
  return tmp_path / "small.toml"


@pytest.mark.slow
@two_cores
def test_a_table_of_several_runs_at_a_time_is_the_table(table, tmp_path, capsys):
  made = make.reproduce(str(table), str(tmp_path / "two"), None, None, None, at_a_time=2)
  said = capsys.readouterr().out.splitlines()
  assert sorted(line.partition("  ")[0] for line in said if line[0].isdigit()) == [f"{i}/6" for i in range(1, 7)]
  alone = make.reproduce(str(table), str(tmp_path / "one"), None, None, None)
  for row, other in zip(made["rows"], alone["rows"], strict=True):
    for metric, summary in row["metrics"].items():
      assert summary["values"] == pytest.approx(other["metrics"][metric]["values"], abs=1e-12), (row["row"], metric)


@pytest.mark.slow
@two_cores
def test_a_table_that_is_asked_to_stop_goes_on_when_started_again(table, tmp_path):
  table.write_text(TABLE.replace('"--epochs=2"', '"--epochs=200", "--patience=0"'))
  command = [sys.executable, ROOT / "scripts" / "reproduce.py", f"--table={table}", f"--workdir={tmp_path}", "--jobs=2"]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  logs = [tmp_path / "runs" / f"{row}-seed0" / "metrics.jsonl" for row in ("teacher", "student")]
  deadline = time.monotonic() + 120
  while not all(log.exists() and log.stat().st_size for log in logs) and time.monotonic() < deadline:
    time.sleep(0.05)
  process.terminate()
  _, error = process.communicate(timeout=60)
  assert process.returncode == 143
  assert error.endswith("stopped by SIGTERM; what is done is saved; start the same command again to go on\n")
  done = [log.read_text().count("\n") for log in logs]
  assert 0 < min(done) < 200
  again = subprocess.run([*command, "--rows=teacher,student", "--seeds=1"], capture_output=True, text=True, timeout=300)
  assert again.returncode == 0, again.stderr
  assert [log.read_text().count("\n") for log in logs] == [200, 200]
