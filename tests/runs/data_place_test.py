"""The data of a run is identified by its hashes: a changed file is noticed, a moved one is found."""

import json
import shutil

import numpy as np
import pytest

from kd_jax import data
from kd_jax.base import InputError
from kd_jax.data import store
from kd_jax.evaluation import run_report
from kd_jax.runs import loop, setup
from kd_jax.serving import export
from kd_jax.storage import run_directory
from kd_jax.teachers import make_soft_labels

PARTS = "item_ids, test, train, user_ids, validation"


def write(path, seed=0):
  """A log of 40 users who take 12 of 30 items; with `seed` > 0 another one, of one user less."""
  rng = np.random.default_rng(seed)
  rows = [f"u{u},i{i}\n" for u in range(40 - (seed > 0)) for i in rng.permutation(30)[:12]]
  path.parent.mkdir(exist_ok=True)
  path.write_text("user,item\n" + "".join(rows))
  return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, flags):
  """A folder with there/log.csv, a finished run on it, its evaluation, and its cache of prepared data."""
  root = tmp_path_factory.mktemp("place")
  write(root / "there" / "log.csv")
  loop.train(of(root, flags))
  run_report.evaluate_run(root / "run", cache_dir=root / "cache")
  return root


@pytest.fixture
def place(trained, tmp_path):
  """A copy of `trained`; its run names the file in the original place."""
  return shutil.copytree(trained, tmp_path / "copy")


def of(root, flags, path=None, *more):
  path = path or root / "there" / "log.csv"
  return flags(f"--data=interactions(path={str(path)!r})", "--model=mf(dim=2)", "--epochs=1", "--batch_size=64",
               f"--workdir={root / 'run'}", f"--cache_dir={root / 'cache'}", *more)


def metrics(root, **places):
  return run_report.evaluate_run(root / "run", **places)["metrics"]


def stored(root):
  return json.loads((root / "run" / "test.json").read_text())["metrics"]


def test_a_finished_run_is_not_done_if_its_data_has_changed(trained, place, flags):
  there = trained / "there" / "log.csv"
  result = loop.train(of(place, flags, there))
  content = there.read_text()
  try:
    write(there, seed=1)
    with pytest.raises(InputError, match=r"`data=interactions\(path='.*log\.csv'\)`: has changed since the finished "
                                         rf"run in .*run: other {PARTS}; choose another `workdir`"):
      loop.train(of(place, flags, there))
    with pytest.raises(InputError, match="has changed since the finished run"):
      loop.fit(options=of(place, flags, there))
  finally:
    there.write_text(content)
  assert loop.train(of(place, flags, there)) == result


def test_the_hashes_of_now_are_those_of_the_loaded_data(tmp_path):
  call = f"interactions(path={str(write(tmp_path / 'a' / 'log.csv'))!r})"
  before = data.hashes(call, cache_dir=tmp_path / "cache")
  assert before == data.load(call, cache_dir=tmp_path / "cache").hashes
  for path in (tmp_path / "cache").rglob("*.array_record*"):
    path.write_bytes(b"not read for the hashes")
  assert data.hashes(call, cache_dir=tmp_path / "cache") == before
  write(tmp_path / "a" / "log.csv", seed=1)
  assert data.hashes(call, cache_dir=tmp_path / "cache")["train"] != before["train"]


def test_a_run_whose_file_is_gone_is_read_from_the_cache(trained, place, flags, capsys):
  gone = place / "there" / "log.csv"  # where no file ever was for this copy of the run
  gone.unlink()
  hidden = trained / "there" / "log.csv"
  hidden.rename(trained / "there" / "away.csv")
  try:
    assert metrics(place, cache_dir=place / "cache") == stored(place)
    assert make_soft_labels.write(place / "run", place / "labels", top_k=3, cache_dir=place / "cache")
    assert any("stored answers agree" in line for line in export.export_run(
        str(place / "run"), str(place / "program"), cache_dir=str(place / "cache")))
    assert loop.train(of(place, flags, hidden))["epochs"] == 1
    assert "its data cannot be compared with the data of now" in capsys.readouterr().out
    assert loop.fit(options=of(place, flags, hidden)).dataset.num_users == 40
    assert loop.train(of(place, flags, hidden, "--epochs=2"))["epochs"] == 2  # goes on without the file
    shutil.rmtree(place / "cache" / "data")
    with pytest.raises(InputError, match=r"log\.csv': no such file; no prepared copy of it is in .*cache/data"):
      metrics(place, cache_dir=place / "cache")
  finally:
    (trained / "there" / "away.csv").rename(hidden)


def test_another_file_of_this_name_in_the_working_directory(tmp_path, flags, monkeypatch):
  write(tmp_path / "a" / "log.csv"), write(tmp_path / "b" / "log.csv", seed=1)
  monkeypatch.chdir(tmp_path / "a")
  loop.train(of(tmp_path, flags, "log.csv"))
  before = metrics(tmp_path, cache_dir=tmp_path / "cache")
  monkeypatch.chdir(tmp_path / "b")
  assert metrics(tmp_path, cache_dir=tmp_path / "cache") == before
  with pytest.raises(InputError, match="has changed since the finished run"):
    loop.train(of(tmp_path, flags, "log.csv"))
  with pytest.raises(InputError, match=rf"b/log\.csv: gives other {PARTS} than the run had from "
                                       r"interactions\(.*path='log\.csv'.*; no prepared copy of what it had is in"):
    metrics(tmp_path, cache_dir=tmp_path / "empty")
  assert metrics(tmp_path, cache_dir=tmp_path / "empty2", data_dir=str(tmp_path / "a")) == before


def test_an_explicit_data_folder_wins_over_the_working_directory(tmp_path, monkeypatch):
  for name, seed in (("a", 0), ("b", 1)):
    write(tmp_path / name / "log.csv", seed)
  monkeypatch.chdir(tmp_path / "a")
  users = {}
  for name, folder in (("working directory", None), ("data_dir", tmp_path / "b")):
    users[name] = data.load("interactions(path='log.csv')", folder, tmp_path / "cache").num_users
  monkeypatch.setenv("KD_JAX_DATA", str(tmp_path / "b"))
  users["KD_JAX_DATA"] = data.load("interactions(path='log.csv')", cache_dir=tmp_path / "cache").num_users
  assert users == {"working directory": 40, "data_dir": 39, "KD_JAX_DATA": 40}
  (tmp_path / "a" / "log.csv").unlink()
  assert data.load("interactions(path='log.csv')", cache_dir=tmp_path / "cache").num_users == 39


def test_the_same_file_in_another_folder_is_the_same_run(trained, place, flags):
  moved = place / "moved" / "log.csv"
  moved.parent.mkdir()
  shutil.copy(trained / "there" / "log.csv", moved)
  assert loop.train(of(place, flags, moved)) == run_directory.read_finished(place / "run").result
  assert loop.train(of(place, flags, moved, "--epochs=2"))["epochs"] == 2  # an unfinished run goes on, too
  write(moved, seed=1)
  with pytest.raises(InputError, match="has changed since"):
    loop.train(of(place, flags, moved, "--epochs=2"))
  with pytest.raises(InputError, match="its run used other data"):
    loop.train(of(place, flags, moved, "--epochs=3"))
  renamed = moved.rename(moved.with_name("other.csv"))
  with pytest.raises(InputError, match="holds a run with other flags: `data="):
    loop.train(of(place, flags, renamed, "--epochs=2"))


def test_prepared_data_is_found_by_its_hashes_alone(tmp_path):
  calls = [f"interactions(path={str(write(tmp_path / name / 'log.csv', seed))!r})" for name, seed in (
      ("a", 0), ("b", 1))]
  first, second = (data.load(call, cache_dir=tmp_path / "cache") for call in calls)
  assert first.hashes != second.hashes
  found = data.load(calls[0], cache_dir=tmp_path / "cache", expected=second.hashes)
  assert found.num_users == 39 and found.name == calls[0]
  assert store.find("labelled(path='x')", second.hashes, tmp_path / "cache") is None
  assert store.find("../data/interactions", second.hashes, tmp_path / "cache") is None


def test_a_moved_teacher_of_a_new_run(trained, place, flags):
  """A warm start on other data needs the ids of the data of the other run."""
  hidden = trained / "there" / "log.csv"
  hidden.rename(trained / "there" / "away.csv")
  try:
    own = write(place / "new" / "log.csv", seed=1)
    options = of(place, flags, own, f"--init_from={place / 'run'}", f"--workdir={place / 'student'}")
    found = setup.prepare(options).warm_start
    assert found.report["user"] == "all 39 users"
  finally:
    (trained / "there" / "away.csv").rename(hidden)
