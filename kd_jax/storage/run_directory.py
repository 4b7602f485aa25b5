"""The directory of a run: everything that is needed to repeat it.

  flags.txt       the flags, as a flagfile; its first line is the sha256 of the others
  run.json        versions, commit, devices, hashes of data and features, model size, teacher
  metrics.jsonl   one line per epoch
  checkpoints/    the latest state and the best parameters, with sha256
  result.json     best epoch, validation metrics, seconds
  run.sha256      the seal, written last: the sha256 of all files above, in the format of `sha256sum --check`
  test.json       written by evaluate.py
  after/EPOCH     with `keep_every`, a run directory as if the run had ended after this epoch

Only a run with a seal is finished. `read_finished` refuses a run in which a file is damaged or belongs to another run.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import pathlib
import platform
import re
import subprocess
from importlib import metadata
from typing import Any, NamedTuple

from kd_jax import registry
from kd_jax.base import InputError
from kd_jax.registry import literals
from kd_jax.storage import checkpoint, sealed

FLAGS, INFO, METRICS, RESULT, TEST = "flags.txt", "run.json", "metrics.jsonl", "result.json", "test.json"
SEAL = "run.sha256"
# Flags in flags.txt of older runs that do not change the result of a run; they are ignored.
_PLACES = ("flagfile", "workdir", "data_dir", "cache_dir", "profile", "seeds", "sweep", "coordinator", "num_processes",
           "process_id")
FILE = "file:"  # prefix of the path of a teacher in a file from another framework
_PATHS = ("teacher", "init_from")  # compared as absolute paths; run.json has the hashes of their content
_IDENTIFIED = {"hashes": "data", "teacher": "teacher", "features": "features", "init_from": "`init_from`"}
_SEALED_LINE = re.compile(r"([0-9a-f]{64})  ([\w./]+)")
_SEALED = (FLAGS, INFO, RESULT, METRICS)  # in this order in run.sha256, before the checkpoint's manifest
_FLAG = re.compile(r"--(\w+)=(.*)")
_FLAGS_LINE = re.compile(r"# sha256 ([0-9a-f]{64})")
# The required keys of each file.
_WRITTEN = {INFO: {"model", "data", "hashes", "parameters", "bytes", "versions", "devices", "python", "synthetic"},
            RESULT: {"epochs", "best_epoch", "monitor", "seconds"}, TEST: {"metrics", "options", "epochs"}}
_TYPES = {**dict.fromkeys(("model", "data", "devices", "python"), str), "peer": str | None, "synthetic": bool,
          **dict.fromkeys(("num_users", "num_items", "parameters", "bytes"), int), "data_memory": int | float,
          **dict.fromkeys(("teacher", "features", "init_from", "left_out"), list),
          **dict.fromkeys(("versions", "compression", "privacy"), dict)}  # of fields of run.json
_MEASURED = ("loss", "scalars", "validation", "test")  # {name: number} in lines of metrics.jsonl and in result.json
_PACKAGES = ("kd_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")


def check_flags(directory: str | os.PathLike, now: dict[str, str], defaults: dict[str, str], epochs: int,
                extendable: bool) -> None:
  """Compares options, as texts, with the run in the directory, if there is one. Raises InputError if one has changed.

  An option that an older run did not have counts as its default. `epochs` may be larger if the run is `extendable`.
  """
  path = pathlib.Path(directory) / FLAGS
  if path.exists():
    before = {name: defaults[name] for name in now if name in defaults} | _read_flags(path)
    changed = sorted(k for k in now.keys() | before.keys()
                     if (k != "epochs" or not extendable) and _meant(k, now) != _meant(k, before))
    if changed == ["epochs"]:
      raise InputError(f"`epochs={epochs}`: the run in {directory} was started for {before['epochs']}, on which its "
                       "`schedule` depends; choose another directory")
    if changed:
      was = ", ".join(f"`{k}={now.get(k, '')}` (there: {before.get(k, '')})" for k in changed)
      raise InputError(f"`workdir={directory}` holds a run with other flags: {was}; choose another directory")
    if (done := epochs_done(directory)) > epochs:
      raise InputError(f"`epochs={epochs}`: the run in {directory} has had {done}; choose another directory "
                       "(`keep_every` keeps what a run is after fewer)")
  elif path.parent.exists() and (not path.parent.is_dir() or not all(
      p.name.startswith(".") for p in path.parent.iterdir())):  # hidden: the lock, and what a killed process left
    raise InputError(f"`workdir={directory}`: not empty, and no run is in it ({FLAGS} is missing)")


def _meant(name, values) -> str | list[tuple[bool, str]] | None:
  """The value of a flag, in comparable form: paths are resolved, or left out if the content is compared by hash."""
  if name == "data" and name in values:
    return without_directories(values[name])
  if name not in _PATHS or name not in values:
    return values.get(name)
  return [(path.startswith(FILE), os.path.realpath(path.removeprefix(FILE))) for path in values[name].split(",")]


def without_directories(call: str) -> str:
  """The call of a data set in which `path='...'` is the name of the file alone."""
  try:
    tree = literals.tree(call, "", "")
  except InputError:  # the name of an object
    return call
  for keyword in tree.keywords if isinstance(tree, ast.Call) else ():
    if keyword.arg == "path" and isinstance(keyword.value, ast.Constant):
      keyword.value = ast.Constant(os.path.basename(str(keyword.value.value)))
  return literals.shown(tree)


def epochs_done(directory: str | os.PathLike) -> int:
  """The epoch of the last whole line of metrics.jsonl, or 0."""
  lines = _lines(pathlib.Path(directory) / METRICS)
  return next((epoch for line in reversed(lines) if math.isfinite(epoch := _epoch(line))), 0)


def finished(directory: str | os.PathLike, epochs: int) -> Finished | None:
  """The run, if it has finished with this maximum number of epochs, else None. Raises InputError if it is damaged."""
  if not (pathlib.Path(directory) / SEAL).exists():
    return None
  run = read_finished(directory)
  return run if run.flags.get("epochs") == str(epochs) else None


def start(directory: str | os.PathLike, flags: dict[str, str], info: dict[str, Any]) -> dict[str, Any]:
  """Writes flags.txt and run.json, and returns the content of run.json.

  Raises InputError if the directory holds a run with other data, teacher, features or `init_from`, or a checkpoint
  without run.json.
  """
  path = pathlib.Path(directory) / INFO
  if path.exists():
    before = read_info(directory)
    for key, what in _IDENTIFIED.items():
      if before.get(key, []) != _as_json(info[key]):
        raise InputError(f"`workdir={directory}`: its run used other {what}; choose another directory")
    if before["versions"] != info["versions"] or before["devices"] != info["devices"]:
      print(f"{directory}: goes on with other versions or devices; numbers may differ in the last bits")
  elif checkpoint.latest(directory) is not None:
    raise InputError(f"{path}: missing, though the run has a checkpoint; choose another directory")
  for name in (SEAL, RESULT):  # if a finished run is extended
    path.with_name(name).unlink(missing_ok=True)
  _write_flags(path.with_name(FLAGS), flags)
  sealed.write_json_atomic(path, info)
  return info


def identity(flags: dict[str, str], defaults: dict[str, str], info: dict[str, Any]) -> str:
  """A sha256 that checkpoints of a run carry: of its flags, and of the content of its data, teachers and features.

  Options that have their default are left out, so that a later version may have more options.
  """
  ignored = {"epochs", "data", *_PLACES, *_PATHS}
  kept = {name: value for name, value in flags.items() if name not in ignored and value != defaults.get(name)}
  content = {"flags": kept} | {key: info[key] for key in _IDENTIFIED}
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Finished(NamedTuple):
  """A finished run whose files belong together."""

  flags: dict[str, str]
  info: dict[str, Any]  # run.json
  result: dict[str, Any]  # result.json
  history: list[dict[str, Any]]  # metrics.jsonl
  pin: checkpoint.Pin  # its checkpoint
  seal: str  # the sha256 of run.sha256, which identifies the run


def seal(directory: str | os.PathLike) -> None:
  """Writes run.sha256, the last file of a run. Raises InputError if it cannot be written."""
  root = pathlib.Path(directory)
  names = [name for name in _SEALED if (root / name).exists()]
  names.append(checkpoint.newest_manifest(root).relative_to(os.path.realpath(root)).as_posix())
  text = "".join(f"{sealed.hash_file(root / name)}  {name}\n" for name in names)
  sealed.write_atomic(root / SEAL, text.encode())


def read_finished(directory: str | os.PathLike) -> Finished:
  """Reads a finished run. Every file is read once, compared with the seal, and then parsed.

  Raises InputError, which names the file: the run is not finished, or a file is missing, damaged or of another run.
  """
  root = pathlib.Path(directory)
  text = _bytes(root / SEAL) if (root / SEAL).exists() else None
  if text is None:
    raise InputError(_not_finished(root))
  listed = _listed(root / SEAL, text)
  contents = {name: _verified(root, name, sha256) for name, sha256 in listed.items()}
  found = [name for name in listed if name not in _SEALED]
  places = [re.fullmatch(r"checkpoints/(\d{6,})/manifest\.json", name) for name in found]
  if len(places) != 1 or places[0] is None or not {FLAGS, INFO, RESULT} < listed.keys():
    raise InputError(f"{root / SEAL}: damaged: it lists {', '.join(listed)}")
  if METRICS not in listed and (root / METRICS).exists():
    raise InputError(f"{root / METRICS}: not listed in {SEAL}")
  info = _parse(root / INFO, contents[INFO])
  if "bytes_on_disk" not in info.get("compression", {"bytes_on_disk": 0}):
    raise InputError(f"{root / INFO}: damaged: its compression has no bytes_on_disk")
  return Finished(_parse_flags(root / FLAGS, contents[FLAGS]), info, _parse(root / RESULT, contents[RESULT]),
                  _parse_lines(root / METRICS, contents.get(METRICS, b"")), checkpoint.Pin(
                      int(places[0][1]), listed[found[0]]), hashlib.sha256(text).hexdigest())


def _not_finished(root) -> str:
  if not (root / FLAGS).is_file():
    return f"{root}: no run directory ({FLAGS} is missing)"
  if (root / RESULT).exists():
    return (f"{root / SEAL}: missing, so it is unknown whether the files of this run belong together; start the "
            "command of its training again, which seals it")
  done = epochs_done(root)
  return (f"{root}: its training is not finished ({done} epochs are done); start its command again"
          + (f", or with `epochs={done}` to end it there" if done else ""))


def _listed(path, text) -> dict[str, str]:
  """{name: sha256} of run.sha256."""
  lines = [_SEALED_LINE.fullmatch(line) for line in text.decode("latin-1").split("\n")[:-1]]
  if not text.endswith(b"\n") or None in lines:
    raise InputError(f"{path}: damaged: not lines of a sha256 and a file")
  listed = {line[2]: line[1] for line in lines if line}
  # A seal has one form, since its hash identifies the run.
  if len(listed) < len(lines) or [name for name in _SEALED if name in listed] != [n for n in listed if n in _SEALED]:
    raise InputError(f"{path}: damaged: it lists {', '.join(line[2] for line in lines if line)}")
  return listed


def _verified(root, name, sha256) -> bytes:
  content = _bytes(root / name)
  if (actual := hashlib.sha256(content).hexdigest()) != sha256:
    raise InputError(f"{root / name}: damaged, or of another run: its sha256 is {actual[:12]}..., {SEAL} lists "
                     f"{sha256[:12]}...")
  return content


def _bytes(path) -> bytes:
  try:
    return path.read_bytes()
  except (FileNotFoundError, NotADirectoryError):
    raise InputError(f"{path}: missing; is this the directory of a finished run?") from None
  except OSError as error:
    raise InputError(f"{path}: {error.strerror}") from None


def _as_json(value):
  return json.loads(json.dumps(value))


def versions() -> dict[str, Any]:
  """What a run is made by: Python, packages, and the commit of a checkout."""
  return {"python": platform.python_version(), "versions": {p: version(p) for p in _PACKAGES},
          "commit": commit(pathlib.Path(__file__).parents[2])}


def after(directory: str | os.PathLike, epoch: int) -> pathlib.Path:
  """The directory of the copy of a run after `epoch` epochs, see `keep_every`."""
  return pathlib.Path(directory) / "after" / str(epoch)


def start_after(directory: str | os.PathLike, epoch: int) -> pathlib.Path:
  """Creates `after(directory, epoch)` with flags.txt and run.json of the run, and returns it."""
  made = after(directory, epoch)
  made.mkdir(parents=True, exist_ok=True)
  (made / SEAL).unlink(missing_ok=True)
  _write_flags(made / FLAGS, _read_flags(pathlib.Path(directory) / FLAGS) | {"epochs": str(epoch)})
  sealed.write_json_atomic(made / INFO, read_info(directory))
  return made


def _write_flags(path, flags_of_run):
  for name, value in flags_of_run.items():
    if "\n" in value or "\r" in value:
      raise InputError(f"`{name}={value!r}`: must be one line")
  lines = "".join(f"--{name}={value}\n" for name, value in flags_of_run.items()).encode()
  sealed.write_atomic(path, f"# sha256 {hashlib.sha256(lines).hexdigest()}\n".encode() + lines)


def _read_flags(path) -> dict[str, str]:
  return _parse_flags(path, _bytes(path))


def _parse_flags(path, content) -> dict[str, str]:
  first, _, lines = content.partition(b"\n")
  expected = _FLAGS_LINE.fullmatch(first.decode("latin-1"))
  if expected is None or hashlib.sha256(lines).hexdigest() != expected[1]:
    raise InputError(f"{path}: damaged, or written by a version before run.sha256: its lines do not have the sha256 of "
                     "its first line")
  try:
    pairs = [_FLAG.fullmatch(line) for line in lines.decode().split("\n")[:-1]]
  except UnicodeDecodeError as error:
    raise InputError(f"{path}: damaged: {error}") from None
  if None in pairs:
    raise InputError(f"{path}: damaged: not lines of flags with values")
  return {pair[1]: pair[2] for pair in pairs if pair and pair[1] not in _PLACES}


def commit(root: pathlib.Path) -> str | None:
  """The commit that is checked out in `root`, with "+" if files differ from it; None if it is not a repository."""
  def git(*words):
    return subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=True).stdout

  try:
    if not (root / ".git").exists():  # ignores a repository that only contains our environment
      return None
    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "--short=10", "HEAD").strip() + ("+" if changed else "")
  except (OSError, subprocess.CalledProcessError):
    return None


def version(package: str) -> str:
  """The version of an installed package, or "not installed"."""
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return "not installed"


def read_info(directory: str | os.PathLike) -> dict[str, Any]:
  """The content of run.json. Raises InputError if it is missing or damaged."""
  return read_json(pathlib.Path(directory) / INFO)


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The content of a JSON file of a run. Raises InputError if it is missing or damaged."""
  return _parse(path, _bytes(path))


def _parse(path, content) -> dict[str, Any]:
  try:
    found = sealed.from_json(content)
  except (ValueError, RecursionError) as error:
    raise InputError(f"{path}: damaged: {error}") from None
  if missing := _WRITTEN.get(path.name, set()) - set(found if isinstance(found, dict) else ()):
    raise InputError(f"{path}: damaged: it has no {', '.join(sorted(missing))}")
  if path.name == INFO and not (isinstance(found["hashes"], dict) and all(
      isinstance(x, str) for x in found["hashes"].values())):
    raise InputError(f"{path}: damaged: its hashes are not texts")
  if path.name == INFO and (wrong := _undescribed(found)):
    raise InputError(f"{path}: damaged, or of another version: {wrong} is of another type")
  registry.refuse_code(path, found)
  return _with_nan(found) if path.name == RESULT else found


def _undescribed(info) -> str:
  """The first field of run.json that has another type than readers expect, or ""."""
  if wrong := next((name for name, kind in _TYPES.items() if name in info and not isinstance(info[name], kind)), ""):
    return wrong
  if not all(isinstance(file, dict) and all(isinstance(file.get(name), str) for name in ("side", "path", "sha256"))
             for file in info.get("features", [])):
    return "features"
  made = info.get("compression", {"chain": ""})
  return "" if isinstance(made.get("chain"), str) and isinstance(made.get("bytes_on_disk", 0), int) else "compression"


def truncate_metrics(directory: str | os.PathLike, epoch: int, sha256: str) -> None:
  """Removes the lines of metrics.jsonl after `epoch`, because these epochs are run again.

  Raises InputError unless the other lines have this sha256, see `hash_metrics`.
  """
  path = pathlib.Path(directory) / METRICS
  if not epoch:
    path.unlink(missing_ok=True)
    return
  kept = "".join(line + "\n" for line in _lines(path) if _epoch(line) <= epoch).encode("utf-8", "surrogateescape")
  if hashlib.sha256(kept).hexdigest() != sha256:
    raise InputError(f"{path}: damaged: its lines up to epoch {epoch} are not those of the checkpoint; choose another "
                     "directory")
  sealed.write_atomic(path, kept)


def hash_metrics(directory: str | os.PathLike) -> str:
  """The sha256 of metrics.jsonl; of nothing, if there is none."""
  path = pathlib.Path(directory) / METRICS
  return sealed.hash_file(path) if path.exists() else hashlib.sha256().hexdigest()


def _lines(path) -> list[str]:
  return path.read_text(errors="surrogateescape").split("\n") if path.exists() else []


def _epoch(line):
  try:
    epoch = sealed.from_json(line)["epoch"]
  except (ValueError, KeyError, TypeError, RecursionError):  # an incomplete last line
    return float("inf")
  return epoch if isinstance(epoch, int) else float("inf")


def append_metrics(directory: str | os.PathLike, line: dict[str, Any]) -> None:
  """Appends one line to metrics.jsonl."""
  path = pathlib.Path(directory) / METRICS
  with sealed.reporting(path), open(path, "ab") as file:
    file.write(sealed.to_json(line, indent=None))


def read_metrics(directory: str | os.PathLike) -> list[dict[str, Any]]:
  """All lines of metrics.jsonl. Raises InputError if one is damaged."""
  path = pathlib.Path(directory) / METRICS
  return _parse_lines(path, _bytes(path))


def _parse_lines(path, content) -> list[dict[str, Any]]:
  try:
    return [_with_nan(sealed.from_json(line)) for line in content.splitlines()]
  except (ValueError, RecursionError) as error:
    raise InputError(f"{path}: damaged: {error}") from None


def _with_nan(found):
  """NaN for null, which stands for it in JSON, where a file holds measured numbers."""
  def numbers(values):
    return {name: math.nan if value is None else value for name, value in values.items()}

  return {key: numbers(value) if key in _MEASURED and isinstance(value, dict) else value for key, value in found.items()
          } if isinstance(found, dict) else found
