"""Training checkpoints: orbax files inside a verified artifact.

`run_dir/checkpoints/<epoch>/` holds two orbax pytrees, `state` (everything needed to resume) and `best` (the
parameters that evaluation and distillation use). Orbax has no checksum on array data and silently casts a
dtype that differs. The manifest of the artifact and the comparison in this module detect both.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import re
import shutil
import signal
import sys
import threading
import time
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from kd_jax.base import InputError
from kd_jax.storage import sealed

KIND = "checkpoint"
_MANIFEST = "manifest.json"
_OTHER_WRITES = 1.0  # seconds after a failed write in which the writes of other threads end
_OURS = re.compile(r"\d{6,}|\.\d{6,}\.(tmp|old)")


class Pin(NamedTuple):
  """What identifies a checkpoint of a run."""

  epoch: int
  sha256: str  # of its manifest


def save(run_dir: str | os.PathLike, epoch: int, state: Any, best: Any, metadata: dict[str, Any]) -> None:
  """Writes the checkpoint of `epoch`, then removes the others. Returns when it is on disk.

  `state` and `best` are pytrees of arrays and scalars, without typed PRNG keys; `metadata` is JSON.
  The caller holds `sealed.lock(run_dir)`. Raises InputError if the disk is full or the path cannot be
  written; the previous checkpoint then still exists.
  """
  root = _root(run_dir)
  target = root / f"{epoch:06d}"
  if target.is_dir() and not (target / _MANIFEST).exists():  # damaged: `restore` has reported it
    shutil.rmtree(target, ignore_errors=True)
  trees = {"state": _to_numpy(state), "best": _to_numpy(best)}
  leaves = {name: _describe(tree) for name, tree in trees.items()}
  content = {"epoch": epoch, "leaves": leaves, "metadata": metadata}
  with sealed.writing(target, KIND, content) as temporary:
    for name, tree in trees.items():
      _save_tree(temporary / name, tree, target)
  for other in root.iterdir():
    if other.name != target.name and _OURS.fullmatch(other.name):
      _remove(other)


def latest(run_dir: str | os.PathLike) -> int | None:
  """The highest epoch of a checkpoint, or None if there is none. A damaged one counts; `restore` reports it."""
  return next(iter(_epochs(run_dir)), None)


def restore(
  run_dir: str | os.PathLike, template_state: Any, template_best: Any
) -> tuple[int, Any, Any, dict[str, Any]]:
  """(epoch, state, best, metadata) of the newest checkpoint that passes verification.

  The templates are pytrees of arrays or jax.ShapeDtypeStruct with the structure that `save` was given.
  Leaves are returned as jax arrays with the template's placement, or as numpy arrays where the template's
  leaf is not a jax array. If a damaged checkpoint is replaced by an older one, a line on stderr reports it.

  Raises InputError: no checkpoint, all are damaged (naming the file), or a leaf differs in name, shape
  or dtype from the template (nothing is cast).
  """
  directory, content = _newest(run_dir)
  trees = []
  for name, template in (("state", template_state), ("best", template_best)):
    _compare(directory / name, content["leaves"][name], _describe(template))
    trees.append(_place(_load_tree(directory / name, _empty(template)), template))
  return content["epoch"], *trees, content["metadata"]


def restore_best(run_dir: str | os.PathLike, template: Any = None) -> tuple[Any, dict[str, Any]]:
  """(best parameters, metadata) of the newest checkpoint that passes verification.

  Without a template, the parameters are nested dicts of numpy arrays ({} if there are no arrays).
  Raises InputError as `restore` does.
  """
  directory, content = _newest(run_dir)
  if template is None:
    return _load_tree(directory / "best"), content["metadata"]
  _compare(directory / "best", content["leaves"]["best"], _describe(template))
  return _place(_load_tree(directory / "best", _empty(template)), template), content["metadata"]


def restore_pinned(run_dir: str | os.PathLike, pin: Pin, name: str = "best") -> Any:
  """The tree `best` or `state` of exactly this checkpoint, as nested dicts of numpy arrays ({} if there are none).

  Raises InputError if it is damaged, or is replaced by another one while it is read.
  """
  directory, _ = _of(run_dir, pin.epoch)
  found = _load_tree(directory / name)
  if sealed.hash_file(directory / _MANIFEST) != pin.sha256:
    raise InputError(f"{directory}: not the checkpoint with which the run finished")
  return found


def newest_manifest(run_dir: str | os.PathLike) -> pathlib.Path:
  """The path of the newest checkpoint's manifest, whose sha256 identifies its content. Raises as `restore`."""
  return _newest(run_dir)[0] / _MANIFEST


def _root(run_dir) -> pathlib.Path:
  return pathlib.Path(os.path.realpath(run_dir)) / "checkpoints"  # absolute: orbax loses saves to relative paths


def _epochs(run_dir) -> list[int]:
  root = _root(run_dir)
  sealed.names(root)  # if a replacement was killed, restores the old checkpoint
  found = [path.name for path in root.iterdir()] if root.is_dir() else []
  return sorted((int(name) for name in found if re.fullmatch(r"\d{6,}", name)), reverse=True)


def _of(run_dir, epoch):
  directory = _root(run_dir) / f"{epoch:06d}"
  return directory, sealed.read(directory, KIND)


def _newest(run_dir):
  damage = None
  for epoch in _epochs(run_dir):
    try:
      directory, content = _of(run_dir, epoch)
    except InputError as error:
      damage = damage or error
      continue
    if damage:
      print(f"{damage}: damaged, using the older checkpoint of epoch {epoch}", file=sys.stderr)
    return directory, content
  if damage is None:
    raise InputError(f"{run_dir}: no checkpoint")
  raise InputError(f"{damage}: damaged, and there is no older one; remove {_root(run_dir)} to train from the start")


def _describe(tree) -> list[list[Any]]:
  """[[path, shape, dtype], ...] of the leaves, as JSON."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [[jax.tree_util.keystr(p), list(np.shape(x)), _dtype(x).name] for p, x in leaves]


def _dtype(leaf):
  return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def _compare(path, stored, wanted):
  stored, wanted = ({name: (tuple(s), d) for name, s, d in x} for x in (stored, wanted))
  for name in sorted(stored.keys() | wanted.keys()):
    pair = [f"{d}{list(s)}" if d else "nothing" for s, d in (x.get(name, ((), "")) for x in (stored, wanted))]
    if pair[0] != pair[1]:
      raise InputError(
        f"{path}: leaf {name} is {pair[0]} in the checkpoint and {pair[1]} in this run: flags of the model "
        "or optimiser have changed"
      )


def _to_numpy(tree):
  return jax.tree.map(np.asarray, jax.device_get(tree))


def _empty(template):
  return jax.tree.map(lambda leaf: np.empty(np.shape(leaf), _dtype(leaf)), template)


def _place(tree, template):
  def place(leaf, like):
    if not isinstance(like, jax.Array):
      return leaf
    # An uncommitted array stays uncommitted, so that jit may still move it to the device of the other arguments.
    return jax.device_put(leaf, like.sharding if like.committed else None)

  return jax.tree.map(place, tree, template)


def _save_tree(path, tree, target):
  if not jax.tree.leaves(tree):  # orbax refuses a tree without leaves, so it has no directory
    return
  try:
    with _quiet(), _alone() as checkpointer:
      checkpointer.save(path, tree)
      checkpointer.wait_until_finished()
  except Exception as error:  # orbax raises a plain Exception with pages of text, e.g. on a full disk
    if isinstance(error, OSError):
      raise
    raise InputError(f"{target}: cannot be written: {_line(error)}") from error


def _load_tree(path, empty=None):
  if not path.exists():
    return {} if empty is None else empty
  try:
    with _quiet(), _alone() as checkpointer:
      return checkpointer.restore(path, empty)
  except Exception as error:  # the bytes were verified, so the orbax version differs
    raise InputError(f"{path}: orbax {ocp.__version__} cannot read it: {_line(error)}") from error


def _alone():
  """A checkpointer for this process only, since with several processes orbax would wait for the others."""
  if jax.process_count() == 1:
    return ocp.StandardCheckpointer()
  me = jax.process_index()
  return ocp.StandardCheckpointer(multiprocessing_options=ocp.options.MultiprocessingOptions(
      primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"{me}"))


@contextlib.contextmanager
def _quiet():
  """Hides what orbax and its threads print about an error as pages of traceback; orbax raises it as well."""
  logger = logging.getLogger("absl")
  before, hook = logger.disabled, sys.unraisablehook
  logger.disabled, sys.unraisablehook = True, _ignore
  try:
    with _uninterrupted():
      yield
  except Exception:
    time.sleep(_OTHER_WRITES)
    raise
  finally:
    logger.disabled, sys.unraisablehook = before, hook


def _ignore(*_):
  pass


@contextlib.contextmanager
def _uninterrupted():
  """Delays signals: an exception inside of orbax's event loop would be printed there, and lost.

  SIGALRM is one of them where it has a handler: it raises an interrupt again that was lost.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  asked: list[int] = []
  numbers = [signal.SIGTERM, signal.SIGINT, *([signal.SIGALRM] if callable(signal.getsignal(signal.SIGALRM)) else [])]
  before = {number: signal.signal(number, lambda number, _: asked.append(number)) for number in numbers}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if asked:
      signal.raise_signal(asked[0])


def _line(error):
  return (str(error).splitlines() or [type(error).__name__])[0][-160:]  # the cause is at the end of the line


def _remove(directory):
  hidden = directory.with_name(f".{directory.name}.tmp")  # renamed first, so that a kill leaves no part of it visible
  if not directory.name.startswith("."):
    shutil.rmtree(hidden, ignore_errors=True)
    os.rename(directory, hidden)
    directory = hidden
  shutil.rmtree(directory, ignore_errors=True)
