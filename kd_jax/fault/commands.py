"""The commands that are killed, run out of disk and race: each with the state that it starts from and its result.

All work in a folder made by `artefacts.build`. They run in children; what they return is JSON without times.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
import signal
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kd_jax import cli
from kd_jax.fault import artefacts, children, operations, readers
from kd_jax.fault.artefacts import BEFORE, CACHE, DATA, TOP
from kd_jax.serving import layout
from kd_jax.storage import run_directory, sealed
from kd_jax.teachers import soft_labels

_PLACE = f"--cache_dir={CACHE}"


class Command(NamedTuple):
  """A script with its flags."""

  script: str
  flags: Sequence[str]
  begin: Callable[[], None]  # makes the state before the command from that of the folder
  result: Callable[[], Any]  # of a folder in which the command has succeeded; it may use JAX
  target: str  # the folder that it makes or changes
  kind: str = ""  # of a sealed artefact that is replaced: at any moment it is the old or the new one


def _gone(*paths):
  def begin():
    for path in paths:
      shutil.rmtree(path, ignore_errors=True)

  return begin


def _older(path):
  def begin():
    shutil.rmtree(path)
    shutil.copytree(pathlib.Path(BEFORE, path), path)

  return begin


def _run(name):
  def result():
    return readers.finished(name, artefacts.options(name), [])

  return result


def _rival():
  return readers.finished("teacher", cli.parse_fit(COMMANDS["rival"].flags), [])


def _labels():
  return readers.labels("labels", readers.dataset_now())[0]


def _program():
  return readers.program_of("exported")[:1]


def _evaluation():
  return [json.loads(pathlib.Path("student", run_directory.TEST).read_text()), readers.user_values("student")]


def _data():
  return readers.data_of(DATA)


def _table():
  found = json.loads(pathlib.Path("table/table.json").read_text())
  found.pop("made_by", None)
  return readers.without_times(found)


def _unevaluated():
  pathlib.Path("student", run_directory.TEST).unlink()
  shutil.rmtree("student/test_values")


def _uncompiled():
  """Without a cache of compiled programs: kills come while it is written, too."""
  shutil.rmtree("teacher")
  compiled = pathlib.Path(CACHE, "compiled")
  compiled.unlink()
  compiled.mkdir()


def _new_data():
  shutil.rmtree(CACHE + "/data")


def _train(name, begin) -> Command:
  return Command("train", artefacts.flags(name), begin, _run(name), name)


COMMANDS = {
    "train": _train("teacher", _gone("teacher")),
    "cold": _train("teacher", _uncompiled),
    "extend": _train("teacher", _older("teacher")),
    "resume": _train("unfinished", _gone()),
    "distil": _train("student", _gone("student")),
    "stream": _train("streamed", _gone("streamed", CACHE + "/streams")),
    "soft_labels": Command("soft_labels", ("--teacher=teacher", f"--top_k={TOP}", "--out=labels", _PLACE),
                           _older("labels"), _labels, "labels", soft_labels.KIND),
    "compress": Command("compress", ("--run=teacher", "--compress=int8()", "--workdir=packed", _PLACE), _gone("packed"),
                        readers.unpacked, "packed"),
    "evaluate": Command("evaluate", ("--run=student", _PLACE), _unevaluated, _evaluation, "student"),
    "export": Command("export", ("--run=student", "--out=exported", _PLACE), _older("exported"),
                      _program, "exported", layout.KIND),
    "prepare": Command("prepare", (f"--data={DATA}", _PLACE), _new_data, _data, CACHE),
    "rival": Command("train", (*artefacts.flags("teacher"), "--seed=7"), _gone("teacher"), _rival, "teacher"),
    "rival_labels": Command("soft_labels", ("--teacher=teacher", "--top_k=5", "--out=labels", _PLACE),
                            _older("labels"), _labels, "labels", soft_labels.KIND),
    "reproduce": Command("reproduce", (f"--table={artefacts.TABLE}", "--workdir=table", _PLACE), _gone("table"), _table,
                         "table")}


def perform(name: str, answer: pathlib.Path, action: str = operations.COUNT, number: int = 0,
            then: Callable[[], None] | None = None) -> None:
  """In a child: runs the command, with a fault at its Nth file operation; writes what it returned to `answer`.

  `then` is called between the command and the reading of its result.
  """
  command = COMMANDS[name]
  artefacts.save_always()
  with _signals_in_main_only():
    watch = operations.Watch(".", action, number)
    children.run_script(command.script, command.flags)
    count, watch.action = watch.count, operations.COUNT
  if then is not None:
    then()
  answer.write_text(json.dumps({"result": command.result(), "operations": count}, default=str))


@contextlib.contextmanager
def _signals_in_main_only():
  """Holds SIGTERM and SIGINT back until the script handles errors, and ignores them after it.

  A process has no such moments. Its own handlers must not be those that the torture has for itself.
  """
  signals, run = (signal.SIGTERM, signal.SIGINT), cli.run
  signal.pthread_sigmask(signal.SIG_BLOCK, signals)
  for number in signals:
    signal.signal(number, signal.SIG_IGN)  # until the script sets its own, and again after it

  def with_signals(main, *arguments):
    def called(values):
      signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
      try:
        main(values)
      finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    run(called, *arguments)

  cli.run = with_signals
  yield


def whole(name: str) -> str:
  """The seal of the artefact that the command replaces, "" if there is none. Raises InputError if it is damaged."""
  command = COMMANDS[name]
  if not command.kind:
    return ""
  sealed.read(command.target, command.kind)
  return sealed.hash_file(pathlib.Path(command.target, "manifest.json"))
