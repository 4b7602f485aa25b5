"""What all tests share: one CPU device, a cache of this session only, small data, scripts as processes."""

import functools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from concurrent import futures
from importlib import metadata

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
_CACHE = tempfile.mkdtemp(prefix="kd_jax_tests_")
# Before anything imports jax; processes that tests start inherit it.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["KD_JAX_CACHE"] = _CACHE
try:
  metadata.distribution("kd_jax")
except metadata.PackageNotFoundError:  # a checkout that is not installed: processes must find it too
  sys.path.insert(0, str(ROOT))
  os.environ["PYTHONPATH"] = os.pathsep.join(x for x in (str(ROOT), os.environ.get("PYTHONPATH")) if x)


_SECOND_CORE = futures.ThreadPoolExecutor(1)
_BEGUN = {}


def pytest_collection_finish(session):
  """Starts what takes processes of its own, one after another, while other tests run.

  A test file has `BESIDE`, {key: function}, and its tests ask the fixture `beside` for what the functions returned.
  """
  if not session.config.option.collectonly:
    for module in dict.fromkeys(item.module for item in session.items if "beside" in item.fixturenames):
      for key, function in getattr(module, "BESIDE", {}).items():
        _BEGUN[module.__name__, key] = _SECOND_CORE.submit(function)


@pytest.fixture(scope="module")
def beside(request):
  """beside(key): what a function of the file's `BESIDE` returned, when it has; what it raised is raised."""
  return lambda key: _BEGUN[request.module.__name__, key].result()


def pytest_unconfigure(config):
  _SECOND_CORE.shutdown(cancel_futures=True)
  shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled():
  """Compiled functions hold mappings of memory, over 20,000 in one file, of which Linux allows a process 65,530."""
  import jax

  yield
  jax.clear_caches()


DATA = pathlib.Path(os.environ.get("KD_JAX_DATA") or ROOT.parent / "shared" / "data")  # of source files, if it is there


@pytest.fixture(scope="session")
def real_data():
  """The folder of source files of the real data sets."""
  if not DATA.is_dir():
    pytest.skip(f"no real data: set KD_JAX_DATA to a folder of source files ({DATA} does not exist)")
  return DATA


def run_script(name, *arguments, cwd=None, env=None):
  """The finished process of scripts/NAME.py."""
  command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, arguments)]
  return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def in_a_folder(function, *arguments):
  """A function for `BESIDE` that calls `function(folder, *arguments)` with an empty folder, removed at the end."""
  def call():
    with tempfile.TemporaryDirectory() as folder:
      return function(pathlib.Path(folder), *arguments)

  return call


@functools.cache
def bpr():
  """The usual base loss: one object, so that runs in several tests compile once."""
  from kd_jax.objectives.bpr import bpr

  return bpr()


def quickly(function, **options):
  """jax.jit without XLA's costly passes, where nearly all of the time would be compiling."""
  import jax

  return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **options)


def build_dataset(num_users=48, num_items=950, train=9, validation=1, test=1, seed=0):
  """A data set in memory of so many random items per user in each split."""
  from kd_jax.base import Dataset, Interactions

  rng = np.random.default_rng(seed)
  drawn = np.argsort(rng.random((num_users, num_items)), axis=1)[:, : train + validation + test]
  splits = []
  for columns in np.split(drawn, [train, train + validation], axis=1):
    users = np.repeat(np.arange(num_users, dtype=np.int32), columns.shape[1])
    splits.append(Interactions(users, columns.reshape(-1).astype(np.int32)))
  ids = np.arange(num_users).astype(str), np.arange(num_items).astype(str)
  return Dataset("in_memory()", num_users, num_items, *splits, *ids, hashes={}, report={}, synthetic=True)


def build_labelled(contexts=48, labels=10, seed=0):
  """Labelled data in memory: a field that says something of the labels, one that does not, a number and a vector."""
  from kd_jax.base import Dataset, Features, Interactions

  rng = np.random.default_rng(seed)
  kind = rng.integers(5, size=contexts)
  true = rng.random((contexts, labels)) < rng.beta(0.5, 1.5, size=(5, labels))[kind]
  parts = np.split(np.arange(contexts, dtype=np.int32), [contexts * 3 // 4, contexts * 7 // 8])
  splits = []
  for part in parts:
    row, label = np.nonzero(true[part])
    splits.append(Interactions(part[row].astype(np.int32), label.astype(np.int32)))
  vectors = {"size": rng.normal(5, 3, size=(contexts, 1)), "text": rng.normal(size=(contexts, 3))}
  features = Features(("kind", "user"), (5, 7), np.stack([kind, rng.integers(7, size=contexts)], 1).astype(np.int32),
                      {name: v.astype(np.float32) for name, v in vectors.items()})
  ids = np.arange(contexts).astype(str), np.arange(labels).astype(str)
  names = dict(zip(("train", "validation", "test"), parts, strict=True))
  return Dataset("in_memory()", contexts, labels, *splits, *ids, hashes={}, report={}, synthetic=True,
                 user_features=features, contexts=names)


@pytest.fixture(scope="session")
def make_dataset():
  return build_dataset


@pytest.fixture(scope="session")
def wide(make_dataset):
  """Enough users and items for the default lists of every method: MovieLens, five training interactions a user.

  Random ones in their place where the data set is not at hand.
  """
  from kd_jax import data
  from kd_jax.base import InputError, Interactions

  try:
    dataset = data.load("movielens", os.environ.get("KD_JAX_DATA") or ROOT.parent / "shared" / "data")
  except InputError:
    return make_dataset(num_users=1000, num_items=950, train=5)
  shuffled = np.random.default_rng(0).permutation(len(dataset.train.users))
  by_user = shuffled[np.argsort(dataset.train.users[shuffled], kind="stable")]
  users = dataset.train.users[by_user]
  kept = np.sort(by_user[np.arange(len(users)) - np.searchsorted(users, users) < 5])
  return dataset._replace(train=Interactions(dataset.train.users[kept], dataset.train.items[kept]))


@pytest.fixture(scope="session")
def flags():
  """flags("--workdir=x", ...): the options of a run, parsed as scripts/train.py does."""
  from kd_jax import cli

  return lambda *arguments: cli.parse_fit([str(a) for a in arguments])


@pytest.fixture(scope="session")
def small():
  """Flags of a run that takes a second: few users, a few epochs."""
  data = "synthetic(users=100, items=240, interactions_per_user=16)"
  return (f"--data={data}", "--model=mf(dim=4)", "--epochs=3", "--batch_size=256", "--learning_rate=0.02")


@pytest.fixture(scope="session")
def teacher(tmp_path_factory, flags, small):
  """A finished run on the data of `small`."""
  from kd_jax.runs import loop

  directory = tmp_path_factory.mktemp("teacher") / "run"
  loop.train(flags(*small, "--model=mf(dim=16)", f"--workdir={directory}"))
  return directory


@pytest.fixture(scope="session")
def script():
  """script("train", "--epochs=1", ...): the finished process of scripts/train.py."""
  return run_script
