"""Some cases of every kind of fault end well; without the checks of hashes, results are silently wrong."""

import json
import os
import re
import subprocess
import sys
import tempfile

import pytest
from conftest import ROOT

from kd_jax.fault import batches, judge

# {kind: number of cases}
CASES = {"damage": 500, "process": 10, "flags": 1200, "files": 800, "kill": 16, "disk": 10, "writers": 5}
OPEN = {"seal": 80, "manifest": 80, "data": 80}  # {check that is switched off: number of damaged files}
PAGE = (ROOT / "docs/reliability.md").read_text()


def torture(folder, *arguments):
  """(the finished process, the counts that it wrote)."""
  command = [sys.executable, str(ROOT / "scripts" / "torture.py"), f"--workdir={folder}", f"--out={folder}/counts.json"]
  done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=1500)
  path = os.path.join(folder, "counts.json")
  assert os.path.exists(path), f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
  with open(path) as file:
    return done, json.load(file)["kinds"]


def whole():
  """{"": (process, counts), check that is switched off: the same}."""
  with tempfile.TemporaryDirectory() as folder:
    cases = ",".join(f"{kind}={number}" for kind, number in CASES.items())
    found = {"": torture(folder, f"--cases={cases}", "--seed=0")}
    for check, number in OPEN.items():
      found[check] = torture(folder, f"--cases=damage={number}", f"--without={check}")
    return found


BESIDE = {"torture": whole}


@pytest.mark.slow
@pytest.mark.parametrize("kind", batches.KINDS)
def test_every_case_ends_well(kind, beside):
  done, counts = beside("torture")[""]
  found = counts[kind]
  failed = {name: found[name] for name in judge.FAILURES if found[name]}
  assert found["cases"] == CASES[kind] and not failed, "\n".join(
      re.findall(rf"^{kind} \d+: .*\n(?:  .*\n)*", done.stdout, re.MULTILINE))[:6000] + done.stderr[-2000:]
  assert found["right"] + found["refused"] == CASES[kind]


@pytest.mark.slow
def test_many_damages_are_noticed(beside):
  """More than half: not every reader reads every file of its artefact."""
  _, counts = beside("torture")[""]
  assert counts["damage"]["refused"] > CASES["damage"] / 2


@pytest.mark.slow
@pytest.mark.parametrize("check", OPEN)
def test_without_a_check_results_are_silently_wrong(check, beside):
  done, counts = beside("torture")[check]
  assert counts["damage"]["silent"] > 0
  assert done.returncode == 1
  assert f"--without={check}" in done.stdout  # of the command that repeats a case


@pytest.mark.parametrize("arguments, said", [
    ((), "`hours`"), (("--minutes=1", "--kinds=damag"), "damag"), (("--cases=damage=x",), "damage='x'"),
    (("--cases=kills=1",), "kills"), (("--cases=damage=1", "--without=hash"), "seal")])
def test_wrong_flags_are_one_line(arguments, said, script):
  done = script("torture", *arguments)
  assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and said.replace("`", "") in done.stderr


def test_the_page_on_reliability_names_every_kind_and_a_command_that_runs():
  assert re.findall(r"^\| `(\w+)` \| ", PAGE, re.MULTILINE) == list(batches.KINDS)
  for command in re.findall(r"^python scripts/torture.py (.*)$", PAGE, re.MULTILINE):
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "torture.py"), *command.split(), "--cases=nothing=1"],
                          capture_output=True, text=True)
    assert "no kind 'nothing'" in done.stderr  # all other flags are known


def test_a_case_is_drawn_from_seed_kind_and_number():
  def first(*key):
    return batches.drawn(*key).integers(2**60)

  assert first(0, "kill", 3) == first(0, "kill", 3)
  assert len({first(0, "kill", 3), first(1, "kill", 3), first(0, "disk", 3), first(0, "kill", 4)}) == 4
