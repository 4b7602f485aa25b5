"""Everything that reads an artefact, each as a function whose result is JSON: equal results mean the same content.

All work in a folder made by `artefacts.build`. What they write there, `copies` removes.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from kd_jax import data, serving
from kd_jax.base import Dataset, InputError, parameter_name
from kd_jax.data import store, streams
from kd_jax.evaluation import run_report, sealed_report
from kd_jax.fault import artefacts
from kd_jax.fault.artefacts import CACHE, DATA, EPOCHS, MEMORY, TAGS, TOP
from kd_jax.runs import compress, loop, setup
from kd_jax.serving import export
from kd_jax.serving.requests import Request
from kd_jax.storage import run_directory, sealed
from kd_jax.tables import figures, make
from kd_jax.teachers import loading, make_soft_labels, soft_labels

SPLITS = ("train", "validation", "test")


class Reader(NamedTuple):
  """A reader of an artefact."""

  name: str
  read: Callable[[], Any]
  cost: float = 1.0  # relative time without damage: expensive readers are called less often
  script: tuple[str, ...] = ()  # the command that does the same, if there is one
  notices: bool = False  # it refuses a file that has other bytes, though its result does not depend on them


class Artefact(NamedTuple):
  """A file or folder that is damaged, and what reads it."""

  path: str
  readers: tuple[Reader, ...]


def dataset_now() -> Dataset:
  """The data of the runs, for readers that are given a data set. Call it before anything is damaged."""
  return data.load(DATA, None, CACHE, SPLITS)


def all_artefacts(dataset: Dataset | None) -> dict[str, Artefact]:
  """Every artefact of the folder, with its readers; those that are given no data set are scripts only."""
  def run(name, *more):
    return Artefact(name, (*_of_run(name, dataset), *more))

  evaluated = [Reader("values", functools.partial(user_values, "student"), 0.2),
               Reader("compared", _compared, 4, ("evaluate", "--run=student", "--teacher=teacher", "--student=other",
                                                 "--compare=other", f"--cache_dir={CACHE}"))]
  kept = Artefact("teacher/after/2", (Reader("teacher", functools.partial(_teacher, "teacher/after/2", dataset)),))
  stored = Artefact("labels", (Reader("labels", functools.partial(labels, "labels", dataset), 0.5),
                               Reader("teacher", functools.partial(_stored_teacher, dataset), 0.5)))
  prepared, tags = (artefacts.data_folder(call).as_posix() for call in (DATA, TAGS))
  stream = f"{CACHE}/streams/{prepared.rpartition('/')[2]}"
  table = Reader("table", _table, 20, ("reproduce", f"--table={artefacts.TABLE}", "--workdir=table",
                                       f"--cache_dir={CACHE}"))
  prepare = ("prepare", f"--data={DATA}", f"--cache_dir={CACHE}")
  return {
      "prepared": Artefact(prepared, (Reader("data", functools.partial(data_of, DATA), 1, prepare),)),
      "labelled": Artefact(tags, (Reader("data", functools.partial(data_of, TAGS)),)),
      "stream": Artefact(stream, (Reader("stream", _stream),)),
      "teacher": run("teacher", *_products("teacher")), "after": kept,
      "student": run("student", *evaluated), "content": run("content"), "imported": run("imported"),
      "warm": run("warm"), "streamed": Artefact("streamed", (_evaluation("streamed"), _again("streamed"))),
      "unfinished": Artefact("unfinished", (Reader("resumed", _resumed, 8, (
          "train", *artefacts.flags("unfinished"))),)),
      "labels": stored, "packed": Artefact("packed", (_evaluation("packed"), Reader("unpacked", unpacked, 0.5))),
      "exported": Artefact("exported", (Reader("program", program_of, 3),)),
      "table": Artefact("table", (table,)),
      "log": Artefact("log.csv", (_evaluation("student"), _again("teacher"), _again("student"))),
      "vectors": Artefact("vectors.npz", (_evaluation("content"), _again("content", True))),
      "scores": Artefact("scores.npz", (_again("imported", True),))}


def _of_run(name, dataset) -> tuple[Reader, ...]:
  return (_again(name), _evaluation(name), Reader("teacher", functools.partial(_teacher, name, dataset), 1),
          Reader("opened", functools.partial(_opened, name), 2))


def _again(name, notices=False) -> Reader:
  """A finished run is reported as finished, if what it learned from is what it was."""
  return Reader(f"again {name}", functools.partial(train_again, name), 2, ("train", *artefacts.flags(name)), notices)


def _evaluation(name) -> Reader:
  return Reader(f"evaluated {name}", functools.partial(_evaluate, name), 2,
                ("evaluate", f"--run={name}", f"--cache_dir={CACHE}"))


def _products(name) -> tuple[Reader, ...]:
  """What is made from a run."""
  return (Reader("soft labels", functools.partial(_soft_labels, name), 2,
                 ("soft_labels", f"--teacher={name}", f"--top_k={TOP}", "--out=made", f"--cache_dir={CACHE}")),
          Reader("export", functools.partial(_export, name), 30,
                 ("export", f"--run={name}", "--out=made", f"--cache_dir={CACHE}")),
          Reader("start", functools.partial(_start, name), 4))


def hash_tree(tree: Any) -> dict[str, str]:
  """{name: sha256} of the arrays of a tree."""
  return {parameter_name(path): sealed.hash_array(np.asarray(leaf))
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _of_dataset(dataset) -> dict[str, Any]:
  return {"name": dataset.name, "arrays": store.hashes_of(dataset), "stored": dataset.hashes, "report": dataset.report,
          "sizes": [dataset.num_users, dataset.num_items]}


def unpacked():
  return hash_tree(compress.unpacked("packed"))


def data_of(call):
  return _of_dataset(data.load(call, None, CACHE, SPLITS))


def _stream():
  dataset = data.load(DATA, None, CACHE, SPLITS, MEMORY)
  return [_of_dataset(streams.part(dataset, number)) for number in range(dataset.stream.parts)]


def train_again(name):
  return loop.train(artefacts.options(name))


def _opened(name):
  fitted = loop.fit(options=artefacts.options(name))
  return [hash_tree((fitted.params, fitted.adapters, fitted.constants)), fitted.history, fitted.result, fitted.info,
          fitted.dataset.hashes]


def _evaluate(name):
  details = run_report.evaluate_run(name, cache_dir=CACHE)
  return [details, user_values(name)]


def _compared():
  details = run_report.evaluate_run("student", teacher="teacher", student="other", others=["other"], cache_dir=CACHE)
  return [details, user_values("student")]


def user_values(name):
  """As tables read it: an evaluation of another training of the run counts as none, and then the run is evaluated."""
  found = sealed_report.read(name, "test")
  if found is None or found.report["seal"] != run_directory.read_finished(name).seal:
    raise InputError(f"{name}/test_values: missing, or of another training of this run")
  return [found.report, found.user_ids.tolist(), hash_tree(found.values)]


def _teacher(name, dataset):
  found = loading.load(name, dataset)
  return [hash_tree((found.params, found.constants)), str(found.module), found.provenance]


def _start(name):
  ready = setup.prepare(artefacts.options("warm"))
  return [{key: hash_tree(found._asdict()) for key, found in ready.warm_start.found.items()}, ready.warm_start.report,
          ready.warm_start.provenance]


def _soft_labels(name):
  said = make_soft_labels.write(name, "made", TOP, cache_dir=CACHE)
  return [said, labels("made", data.load(DATA, None, CACHE))]


def labels(folder, dataset):
  found = soft_labels.read(folder, dataset)
  return [hash_tree(found[:3]), found.metadata]


def _stored_teacher(dataset):
  found = loading.load("labels", dataset)
  return [hash_tree(found.stored), found.exclude_seen, found.provenance]


def _export(name):
  lines = list(export.export_run(name, "made", cache_dir=CACHE))
  return [lines[0].partition(",")[0], program_of("made")]


def program_of(folder="exported"):
  recommender = serving.load(folder, trial=False)
  answers = recommender.recommend_many([Request(f"u{user}") for user in range(8)])
  return [answers, {key: value for key, value in recommender.metadata.items() if key != "written"}]


def _table():
  figures.draw = _no_figure
  # Times are others if a run that was deleted as a whole is trained again.
  return without_times(make.reproduce(artefacts.TABLE, "table", None, None, CACHE))


def _no_figure(*arguments) -> bytes:
  """Figures take half a second, and read nothing."""
  return b""


def _resumed():
  """The end of the unfinished run. Lines of epochs before its checkpoint must be the same bytes: none is run again."""
  return finished("unfinished", artefacts.options("unfinished"), saved_lines("unfinished"))


def saved_lines(name: str) -> list[str]:
  """The lines of metrics.jsonl of the epochs until the newest checkpoint of a run."""
  saved = [int(path.name) for path in pathlib.Path(name, "checkpoints").glob("[0-9]*")]
  return artefacts.lines_of(name)[: max(saved, default=0)]


def finished(name: str, options: Any, kept: list[str]) -> Any:
  """Trains a run to its end; its result without times, and whether the lines `kept` are still there."""
  fitted = loop.fit(options=options)
  lines = artefacts.lines_of(name)
  return {"parameters": hash_tree((fitted.params, fitted.adapters)), "result": without_times(fitted.result),
          "history": [without_times(line) for line in fitted.history], "epochs": EPOCHS,
          "lost": [line for line in kept if line not in lines]}


def without_times(value: Any) -> Any:
  """A JSON value without the measured seconds in it."""
  if isinstance(value, dict):
    return {key: without_times(x) for key, x in value.items() if "seconds" not in key}
  return [without_times(x) for x in value] if isinstance(value, list) else value
