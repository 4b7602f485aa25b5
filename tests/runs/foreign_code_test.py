"""Code that the files of a run name is neither imported nor called by any reader, unless its directory is allowed."""

import json
import os
import pathlib
import re
import shutil
import sys

import pytest

import kd_jax
from kd_jax.base import InputError
from kd_jax.registry import own_code
from kd_jax.serving import export
from kd_jax.storage import run_directory

MINE = '''
import flax.linen as nn

from kd_jax.base import Metric
from kd_jax.data.recipe import Recipe
from kd_jax.data.synthetic import synthetic
from kd_jax.models.mf import mf


def net(num_users, num_items, dim: int = 4) -> nn.Module:
  return mf(num_users, num_items, dim)


def shop(users=100) -> Recipe:
  return synthetic(users=users, items=240, interactions_per_user=16)


def hits(k: int = 5) -> Metric:
  return Metric(lambda found: found.total(found.ranks < k))
'''
DATA = "synthetic(users=100, items=240, interactions_per_user=16)"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """Finished runs whose model, data or monitor is of the module mine_of_stranger: {which: directory}."""
  folder = tmp_path_factory.mktemp("own")
  (folder / "mine_of_stranger.py").write_text(MINE)
  sys.path.insert(0, str(folder))
  own = {"model": {"model": "mine_of_stranger.net(dim=4)"}, "data": {"data": "mine_of_stranger.shop()"},
         "monitor": {"monitor": "mine_of_stranger.hits@5"}}
  made = {}
  for which, options in own.items():
    made[which] = folder / "runs" / which
    kd_jax.fit(**{"data": DATA, "model": "mf(dim=4)", "epochs": 1, "batch_size": 256} | options, workdir=made[which])
  sys.path.remove(str(folder))
  return made


@pytest.fixture
def stranger(runs, monkeypatch, tmp_path):
  """A process that does not know of the module, in another directory; the module says whether it is imported."""
  monkeypatch.setattr(own_code, "_NAMED", set())
  monkeypatch.setattr(own_code, "_ALLOWED", [])
  monkeypatch.setattr(sys, "path", list(sys.path))
  monkeypatch.chdir(tmp_path)
  sys.modules.pop("mine_of_stranger", None)
  module = runs["model"].parents[1] / "mine_of_stranger.py"
  module.write_text(MINE + f"\nopen({str(tmp_path / 'imported')!r}, 'w').close()\n")
  yield runs
  module.write_text(MINE)
  sys.modules.pop("mine_of_stranger", None)


FIT = {"model": "mf(dim=4)", "epochs": 1, "batch_size": 256}
READERS = {
    "evaluate": lambda run, **allow: kd_jax.evaluate(run, **allow),
    "compare": lambda run, **allow: kd_jax.evaluate(run, compare=run, **allow),
    "soft_labels": lambda run, **allow: kd_jax.soft_labels(run, "labels", 5, **allow),
    "export": lambda run, **allow: list(export.export_run(str(run), "program", **allow)),
    "teacher": lambda run, **allow: kd_jax.fit(DATA, kd="kl(k=5)", teacher=run, **FIT, **allow),
    "init_from": lambda run, **allow: kd_jax.fit(DATA, init_from=run, **FIT, **allow)}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("which", ["model", "data", "monitor"])
def test_no_reader_imports_what_a_file_names(which, reader, stranger, tmp_path):
  run = stranger[which]
  with pytest.raises(InputError, match="names code of a file, mine_of_stranger") as error:
    READERS[reader](run)
  assert str(run) in str(error.value) and "mine_of_stranger" not in sys.modules
  assert not (tmp_path / "imported").exists() and not list(tmp_path.iterdir())


@pytest.mark.parametrize("reader", READERS)
def test_the_directory_of_the_module_allows_it(reader, stranger, tmp_path):
  READERS[reader](stranger["model"], allow_code=stranger["model"].parents[1])
  assert (tmp_path / "imported").exists() == (reader != "init_from")  # parameters alone need no module


@pytest.mark.parametrize("called", ["os.system(command='touch imported')", "subprocess.check_call(args='x')",
                                    "numpy.loadtxt(fname='x')", "mine_of_stranger.hits()"])
@pytest.mark.parametrize("key", ["model", "data"])
def test_what_is_no_part_is_not_called_even_if_its_directory_is_allowed(key, called, stranger, tmp_path):
  run = tmp_path / "run"
  shutil.copytree(stranger["model"], run)
  info = json.loads((run / "run.json").read_text())
  (run / "run.json").write_text(json.dumps(info | {"model": "mf(dim=4)", key: called}))
  run_directory.seal(run)
  places = [pathlib.Path(os.__file__).parent, stranger["model"].parents[1]]
  with pytest.raises(InputError) as error:
    for place in places:
      own_code.allow_code(place)
    kd_jax.evaluate(run, cache_dir=tmp_path / "cache")
  assert re.search("no function of a Python file|names code of a file|cannot import", str(error.value))
  assert called.startswith("mine") or not (tmp_path / "imported").exists()


@pytest.mark.slow
def test_the_message_of_a_script_has_the_flag_that_helps(runs, script, tmp_path):
  arguments = [f"--teacher={runs['model']}", "--top_k=5", f"--out={tmp_path / 'labels'}"]
  refused = script("soft_labels", *arguments, cwd=runs["model"].parents[1])
  assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
  flag = re.search(r"--allow_code=\S+", refused.stderr)[0]
  done = script("soft_labels", *arguments, flag, cwd=tmp_path)
  assert done.returncode == 0, done.stderr


def test_every_script_that_reads_runs_has_the_flag():
  for name in ("evaluate", "export", "reproduce", "soft_labels", "train"):
    text = (pathlib.Path(__file__).parents[2] / "scripts" / f"{name}.py").read_text()
    assert "cli.PLACES" in text or "cli.FIT" in text
