"""Damage changes what it says it changes, in the same way for the same seed, and is undone without a trace."""

import hashlib
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from kd_jax.fault import copies, damage

FILES = {"run/a.json": b'{"epoch": 12, "model": "mf"}\n', "run/b.bin": bytes(range(256)),
         "run/deep/c.txt": b"one\ntwo\nthree\n", "run/deep/.lock": b"1\n", "run/empty": b"", "other.csv": b"1,2\n"}


def write(root, change=b""):
  for name, content in FILES.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content + change)
  return root


def state(root):
  return {path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else b"a folder"
          for path in sorted(root.rglob("*"))}


@pytest.fixture
def copy(tmp_path):
  write(tmp_path / "before", b"old")
  return copies.Copy(write(tmp_path / "now"), tmp_path / "copy")


def test_every_kind_of_damage_changes_a_file_and_is_healed(copy, tmp_path):
  clean, said = state(copy.place), set()
  for number in range(300):
    path, what = damage.damage(np.random.default_rng(number), copy.place / "run", tmp_path / "before/run")
    now = state(copy.place)
    name = path.relative_to(copy.place).as_posix()
    assert now.get(name) != clean[name] and name.startswith("run/"), what
    assert {x for x in clean if now.get(x) != clean[x]} <= {x for x in clean if x.startswith("run/")}
    copy.heal()
    assert state(copy.place) == clean, what
    said.add(" ".join(what.split()[:2]).rstrip("0123456789"))
  for word in ("bit", "digit", "word", "line", "emptied", "zeros", "deleted", "swapped with", "replaced by",
               "its folder", "deleted, with"):
    assert any(what.startswith(word) for what in said), word


def test_the_same_seed_is_the_same_damage(copy, tmp_path):
  def one(seed):
    damage.damage(np.random.default_rng(seed), copy.place / "run", tmp_path / "before/run")
    found = hashlib.sha256(repr(state(copy.place)).encode()).hexdigest()
    copy.heal()
    return found

  first = [one(seed) for seed in range(30)]
  assert first == [one(seed) for seed in range(30)]
  assert len(set(first)) > 20


def test_whatever_happens_to_a_copy_is_undone(copy):
  clean = state(copy.place)
  (copy.place / "run/new/deep").mkdir(parents=True)
  (copy.place / "run/new/deep/x").write_text("x")
  (copy.place / "run/a.json").unlink()
  (copy.place / "run/a.json").mkdir()
  (copy.place / "run/b.bin").write_bytes(bytes(256))  # as long as before
  (copy.place / "other.csv").unlink()
  (copy.place / "other.csv").symlink_to("/dev/null")
  os.rename(copy.place / "run/deep", copy.place / "run/moved")
  copy.heal()
  assert state(copy.place) == clean
  assert not (copy.place / "other.csv").is_symlink()


WRITE = """
import os, pathlib, shutil, sys
from kd_jax.fault import operations
watch = operations.Watch(".", sys.argv[1], int(sys.argv[2]))
try:
  pathlib.Path("folder").mkdir()                  # 1
  pathlib.Path("folder/a").write_text("abcdef")   # 2 open, 3 write
  os.rename("folder/a", "folder/b")               # 4
  with open("folder/c", "wb") as file:            # 5
    file.write(b"123456")                         # 6, when it is flushed
    file.flush()
    os.fsync(file.fileno())                       # 7
  shutil.rmtree("folder")                         # 8, 9 unlink, 10 rmdir
  pathlib.Path(sys.executable).read_bytes()       # none
except OSError as error:
  print(error.strerror, error.filename)
print(watch.count)
"""
LEFT = {1: {}, 2: {"folder": 0}, 3: {"folder": 0, "folder/a": 0}, 4: {"folder": 0, "folder/a": 6},
        5: {"folder": 0, "folder/b": 6}, 6: {"folder": 0, "folder/b": 6, "folder/c": 0},
        7: {"folder": 0, "folder/b": 6, "folder/c": 6}, 10: {"folder": 0}}


def run(folder, action, number):
  folder.mkdir()
  done = subprocess.run([sys.executable, "-c", WRITE, action, str(number)], cwd=folder, capture_output=True, text=True)
  return done, {path.relative_to(folder).as_posix(): path.stat().st_size * path.is_file() for path in folder.rglob("*")}


def test_a_kill_comes_before_the_nth_file_operation(tmp_path):
  done, _ = run(tmp_path / "count", "count", 0)
  assert done.stdout.split() == ["10"] and not done.stderr
  for number, left in LEFT.items():
    done, found = run(tmp_path / str(number), "kill", number)
    assert (done.returncode, found) == (-9, left), number


def test_a_kill_in_the_middle_of_a_write_leaves_half(tmp_path):
  done, found = run(tmp_path / "half", "kill half way", 6)
  assert done.returncode == -9 and found == {"folder": 0, "folder/b": 6, "folder/c": 3}


@pytest.mark.parametrize("number, path, left", [
    (1, "folder", {}), (2, "folder/a", {"folder": 0}), (3, "folder/a", {"folder": 0, "folder/a": 3}),
    (4, "folder/a", {"folder": 0, "folder/a": 6})])
def test_a_full_disk_is_an_error_of_the_system(tmp_path, number, path, left):
  done, found = run(tmp_path / "full", "fail from then on", number)
  assert done.stdout.splitlines()[0].endswith(path) and "No space left" in done.stdout
  assert found == left and pathlib.Path(path).name in done.stdout
