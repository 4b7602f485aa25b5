"""Everything that would make processes train apart is a fact, and is told with its flag."""

import copy
import shutil

import pytest

from kd_jax.devices import rendezvous
from kd_jax.runs import agreement
from kd_jax.storage import run_directory

INFO = {"hashes": {"train": "a" * 64, "item_ids": "b" * 64}, "teacher": [{"checkpoint": "c" * 64}],
        "features": [{"path": "text.npz", "sha256": "d" * 64}], "init_from": [{"checkpoint": "e" * 64}],
        "versions": {"kd_jax": "1", "numpy": "2"}, "python": "3.11.0", "commit": None}


def told(one, other):
  return rendezvous.difference({0: one, 1: other}).removeprefix("the processes do not belong together: ")


@pytest.mark.parametrize(("flag", "said"), [
    ("--seed=7", "`seed=0` in process 0, `seed=7` in process 1"),
    ("--kd=kl()", "`kd=` in process 0, `kd=kl()` in process 1"),
    ("--teacher=t", "no 0 teacher in process 0, `teacher=t` in process 1"),
    ("--data_dir=elsewhere", "")])
def test_options_are_compared(flag, said, flags):
  assert told(agreement.of_options([flags()], [None]), agreement.of_options([flags(flag)], [None])) == said


def test_what_is_in_the_directory_is_compared(flags, small, teacher, tmp_path):
  shutil.copytree(teacher, tmp_path / "run")
  options = [flags(*small, f"--workdir={tmp_path}/run")]
  going, finished = agreement.of_options(options, [None]), agreement.of_options(options, [{"epochs": 3}])
  shutil.rmtree(tmp_path / "run")
  where = f"`workdir={tmp_path}/run`"
  empty = agreement.of_options(options, [None])
  assert told(empty, finished) == f"{where} without a checkpoint in process 0, {where} with a finished run in process 1"
  assert told(going, empty).startswith(f"{where} with checkpoint 000003, sha256 ")
  assert "no workdir in process 1" in told(empty, agreement.of_options([flags(*small)], [None]))
  assert told(empty, agreement.of_options(options * 2, [None] * 2)).startswith("runs: 1 in process 0, runs: 2 in ")


@pytest.mark.parametrize(("path", "said"), [
    (("hashes", "train"), "`data=movielens` with train aaaaaaaaaaaa in process 0, `data=movielens` with train 000000"),
    (("teacher", 0, "checkpoint"), "`teacher=t` with sha256 "),
    (("features", 0, "sha256"), "`features=text.npz` with sha256 "),
    (("init_from", 0, "checkpoint"), "`init_from=i` with sha256 "),
    (("versions", "numpy"), "numpy 2 in process 0, numpy 000"),
    (("python",), "Python 3.11.0 in process 0, Python 000"),
    (("commit",), "commit None in process 0, commit 000")])
def test_content_is_compared(path, said, flags):
  options, other = [flags("--kd=kl()", "--teacher=t", "--init_from=i")], copy.deepcopy(INFO)
  part = other
  for key in path[:-1]:
    part = part[key]
  part[path[-1]] = "0" * 64
  facts = agreement.of_content(options, [INFO])
  assert told(facts, agreement.of_content(options, [other])).startswith(said)
  assert told(facts, agreement.of_content(options, [copy.deepcopy(INFO)])) == ""


def test_the_info_of_a_run_has_what_is_compared(flags, small, teacher):
  facts = agreement.of_content([flags(*small)], [run_directory.read_info(teacher)])
  assert facts["0 train"].startswith("`data=synthetic(users=100, items=240, interactions_per_user=16)` with train ")
  assert facts["kd_jax"].startswith("kd_jax ")
