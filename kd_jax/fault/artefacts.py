"""Makes one small artefact of every kind in the working directory, and an older state of each in ../before.

  log.csv, tags.csv, vectors.npz, scores.npz, table.toml   the user's own files
  cache/           prepared data: of the log, of labelled data, and of the log as a stream
  teacher/         a finished run, with `keep_every` and an evaluation
  student/ other/  runs distilled from it, of two seeds, evaluated
  content/ imported/ warm/ streamed/   runs with feature vectors, a teacher from a file, `init_from`, `data_memory`
  unfinished/      a run that was killed after its second checkpoint
  labels/ packed/ exported/ table/   soft labels, the teacher in int8, an export, and a table with its runs
  ../before/       the same, as it was when runs had half of the epochs; its prepared data has another split
"""

from __future__ import annotations

import pathlib
import shutil

import numpy as np

from kd_jax import cli, data
from kd_jax.base import Callback
from kd_jax.data import store
from kd_jax.evaluation import run_report
from kd_jax.registry import Call
from kd_jax.runs import compress, loop
from kd_jax.runs.options import FitOptions, fit_options
from kd_jax.serving import export
from kd_jax.storage import run_directory
from kd_jax.tables import make
from kd_jax.teachers import make_soft_labels

USERS, ITEMS, TAKEN, EPOCHS = 50, 40, 8, 4
DATA = "interactions(path='log.csv',rating='rating',timestamp='time')"
TAGS = "labelled(path='tags.csv',labels=('red','round'),fields=('kind',),numeric=('size',))"
CACHE, BEFORE, TABLE, TOP = "cache", "../before", "table.toml", 10
MEMORY = 2e-5  # GB: several parts
_COMMON = (f"--data={DATA}", "--batch_size=128", "--learning_rate=0.02", "--monitor=ndcg@10", f"--cache_dir={CACHE}",
           "--patience=0")
_DISTILLED = ("--model=mf(dim=4)", "--kd=kl(k=5)", "--teacher=teacher")
# {run: its own flags}, in the order in which they are made.
_RUNS = {
    "teacher": ("--model=mf(dim=4)", "--keep_every=2"),
    "student": _DISTILLED,
    "other": (*_DISTILLED, "--seed=1"),
    "content": ("--model=two_tower(dim=4)", "--features=vectors.npz"),
    "imported": ("--model=mf(dim=4)", "--kd=kl(k=5)", "--teacher=file:scores.npz"),
    "warm": ("--model=mf(dim=4)", "--init_from=teacher"),
    "streamed": ("--model=mf(dim=4)", f"--data_memory={MEMORY}"),
    "unfinished": ("--model=mf(dim=4)",)}
RUNS = tuple(_RUNS)
EVALUATED = ("teacher", "student", "other", "content", "streamed")
_TABLE = """
title = "A small table"
seeds = 2
metrics = ["ndcg@10", "recall@10"]
teacher_row = "teacher"
student_row = "plain"
flags = {flags}

[[row]]
row = "teacher"
flags = ["--model=mf(dim=4)"]

[[row]]
row = "plain"
flags = ["--model=mf(dim=4)", "--learning_rate=0.01"]

[[row]]
row = "kl"
teacher = "teacher"
flags = ["--model=mf(dim=4)", "--kd=kl(k=5)"]
"""


class _StoppedError(Exception):
  pass


def flags(run: str, epochs: int = EPOCHS, workdir: str | None = None) -> list[str]:
  """The flags with which scripts/train.py makes a run of the folder."""
  return [*_COMMON, *_RUNS[run], f"--epochs={epochs}", f"--workdir={workdir or run}"]


def options(run: str, epochs: int = EPOCHS) -> FitOptions:
  """The same as options of `fit`."""
  return cli.parse_fit(flags(run, epochs))


def build() -> None:
  """Makes everything. Training saves a checkpoint after every epoch from now on, in this process."""
  save_always()
  write_sources()
  (pathlib.Path(TABLE)).write_text(_TABLE.format(flags=table_flags(EPOCHS // 2)))
  _make(EPOCHS // 2)
  made = [path.name for path in pathlib.Path().iterdir()]
  for name in made:
    if name != CACHE:
      _copy(pathlib.Path(name), pathlib.Path(BEFORE, name))
  for name in ("student", "other", "content", "imported", "warm", "streamed", "unfinished", "packed", "table"):
    shutil.rmtree(name)
  (pathlib.Path(TABLE)).write_text(_TABLE.format(flags=table_flags(EPOCHS)))
  _make(EPOCHS)
  data.load(TAGS, None, CACHE)
  _older_data()


def save_always() -> None:
  """Lets this process save a checkpoint after every epoch."""
  loop._SAVE_SECONDS = 0


def table_flags(epochs: int) -> list[str]:
  """The flags of all rows of the table."""
  return [x for x in _COMMON if not x.startswith("--cache_dir")] + [f"--epochs={epochs}"]


def write_sources() -> None:
  """Writes the user's own files: the same bytes whenever it is called."""
  rng = np.random.default_rng(0)
  taken = np.argsort(rng.random((USERS, ITEMS)) + 0.005 * np.arange(ITEMS), axis=1)[:, :TAKEN]
  rows = [f"u{user},i{item},{rng.integers(1, 6)},{rng.integers(10**9, 2 * 10**9)}"
          for user, items in enumerate(taken) for item in items]
  pathlib.Path("log.csv").write_text("\n".join(["user,item,rating,time", *rows]) + "\n")
  rows = [f"{a},{b},k{kind},{size:.3f}" for a, b, kind, size in zip(
      *rng.integers(2, size=(2, 60)), rng.integers(4, size=60), rng.normal(size=60), strict=True)]
  pathlib.Path("tags.csv").write_text("\n".join(["red,round,kind,size", *rows]) + "\n")
  users, items = [f"u{u}" for u in range(USERS)], [f"i{i}" for i in range(ITEMS)]
  np.savez("vectors.npz", ids=items, vectors=rng.normal(size=(ITEMS, 3)).astype(np.float32))
  np.savez("scores.npz", users=users, items=items, scores=rng.normal(size=(USERS, ITEMS)).astype(np.float32))


def data_folder(call: str = DATA, cache: str = CACHE) -> pathlib.Path:
  """The folder of prepared data."""
  return store.prepare(store.canonical(_call(call)), None, cache)


def _call(text) -> Call:
  from kd_jax import registry

  return registry.parse("data", text, "data")


def _make(epochs):
  for run in RUNS:
    if run == "unfinished":
      _stop_after(options(run, epochs), epochs - 1)
    else:
      loop.train(options(run, epochs))
  for run in EVALUATED:
    run_report.evaluate_run(run, cache_dir=CACHE)
  make_soft_labels.write("teacher", "labels", TOP, cache_dir=CACHE)
  compress.compress_run("teacher", "int8()", "packed", cache_dir=CACHE)
  for _ in export.export_run("student", "exported", cache_dir=CACHE):
    pass
  make.reproduce(TABLE, "table", None, None, CACHE)


def _stop_after(of_run, epochs):
  """Leaves what a kill leaves between an epoch's line of metrics.jsonl and its checkpoint."""
  def stop(progress):
    if progress.epoch == epochs:
      raise _StoppedError

  try:
    loop.fit(options=fit_options(of_run, callbacks=[Callback(epoch=stop)]))
  except _StoppedError:
    return
  raise AssertionError(f"{of_run.workdir}: was not stopped")


def _older_data():
  """Prepares the data with another split, under the names of today's folders."""
  now, older = data_folder(), pathlib.Path(BEFORE, CACHE)
  then = data_folder(DATA.replace("path", "split_seed=1,path"), str(older))
  for path in sorted(then.rglob(f"*{then.name}*"), key=lambda path: -len(path.parts)):
    path.rename(path.with_name(path.name.replace(then.name, now.name)))
  then.rename(then.with_name(now.name))


def _copy(source, target):
  target.parent.mkdir(parents=True, exist_ok=True)
  if source.is_dir():
    shutil.copytree(source, target, symlinks=True)
  else:
    shutil.copy2(source, target)


def lines_of(run: str) -> list[str]:
  """The lines of a run's metrics.jsonl."""
  path = pathlib.Path(run) / run_directory.METRICS
  return path.read_text("utf-8", "replace").splitlines() if path.exists() else []
