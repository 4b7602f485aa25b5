"""scripts/load_test.py measures what wrk and the service's own log say of the same requests."""

import json
import os
import shutil

import pytest
from conftest import run_script

for needed in ("fastapi", "uvicorn", "prometheus_client"):
  pytest.importorskip(needed, reason="pip install 'kd_jax[serve]'")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("wrk") is None, reason="apt-get install wrk")
def test_a_service_answers_all_users_at_the_rate_while_its_export_changes(teacher, tmp_path):
  done = run_script("load_test", f"--teacher={teacher}", f"--student={teacher}", f"--out={tmp_path}", "--seconds=3",
                    "--rate=60", "--connections=4", "--replace_seconds=0")
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert (tmp_path / "load.md").read_text().splitlines() == lines and len(lines) == 10
  found = json.loads((tmp_path / "load.json").read_text())
  assert all(0 < one["p50"] <= one["p99"] < 1000 for one in found["in_process"].values())
  phases = found["phases"]
  slow, fast, replaced = phases.values()
  for one in phases.values():
    assert 0 < one["p50"] <= one["p95"] <= one["p99"] <= one["longest"] < 10_000
    assert [one[name] for name in ("connect", "read", "write", "status", "timeout")] == [0] * 5
  for one in (slow, replaced):
    assert one["requests"] / one["seconds"] == pytest.approx(60, rel=0.15)
  assert fast["requests"] > 2 * slow["requests"] and slow["replaced"] == fast["replaced"] == 0
  logged = [json.loads(line) for line in (tmp_path / "service.log").read_text().splitlines()]
  answered = [line for line in logged if line["event"] == "request" and line["path"] == "/recommend"]
  sent = sum(one["requests"] for one in phases.values())
  assert sent <= len(answered) <= sent + 3 * 4  # wrk does not count the answers that it no longer waits for
  assert {line["status"] for line in answered} == {200}
  assert len({line["user"] for line in answered}) == 100
  assert [line["event"] for line in logged].count("refused") == 0
  loaded = [line["export"] for line in logged if line["event"] == "loaded" and line["model"] == "a"]
  assert len(loaded) - 1 >= replaced["replaced"] >= 1 and len(set(loaded)) == 2


def test_what_is_missing_is_said_in_one_line(tmp_path):
  given = ("--teacher=nowhere", "--student=nowhere", f"--out={tmp_path / 'out'}")
  done = run_script("load_test", *given, "--cores=1")
  assert done.returncode == 2 and done.stderr.startswith("load_test.py: --cores=1: two numbers")
  done = run_script("load_test", *given, env=os.environ | {"PATH": str(tmp_path)})
  assert done.returncode == 2 and done.stderr.count("\n") == 1 and "apt-get install wrk" in done.stderr
  assert not (tmp_path / "out").exists()
