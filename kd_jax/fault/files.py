"""Gives readers files of nonsense: they read exactly what is there, or say in one line what is wrong with it."""

from __future__ import annotations

import functools
import gzip
import io
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from kd_jax import cli, serving
from kd_jax.data import feature_files, interactions, labelled
from kd_jax.evaluation import run_report
from kd_jax.fault import artefacts, csv_files, judge, layouts, nonsense, readers
from kd_jax.fault.copies import Place
from kd_jax.fault.csv_files import mutated
from kd_jax.fault.judge import Outcome
from kd_jax.storage import run_directory, sealed
from kd_jax.tables import toml_file
from kd_jax.teachers import imported, soft_labels

Random = np.random.Generator
_SECONDS = 20
_SHARES = {"interactions": 8, "layouts": 12, "labelled": 4, "teacher": 4, "teacher_rows": 3, "features": 3,
           "flagfile": 3, "toml": 3, "forged_run": 2, "unfinished": 1, "forged_artefact": 2}


class NonsenseFiles:
  """Files that are nonsense, or nearly right."""

  def __init__(self, place: Place):
    self.copy = place.copy()
    self.dataset = readers.dataset_now()
    self.train = cli.define(cli.FIT)

  def case(self, rng: Random) -> tuple[str, Outcome]:
    """(what was done, how it ended)."""
    kind = list(_SHARES)[rng.choice(len(_SHARES), p=np.array(list(_SHARES.values())) / sum(_SHARES.values()))]
    said, work, expected = getattr(self, f"_{kind}")(rng)
    names = ("exported", "labels", "student") if kind == "forged_artefact" else ()
    try:
      return f"{kind}: {said}", judge.of_call(work, expected, names, _SECONDS)
    finally:
      self.copy.heal()

  def _interactions(self, rng):
    content = csv_files.table(rng)
    name = "fuzz.csv" if rng.random() < 0.8 else "fuzz.csv.gz"
    pathlib.Path(name).write_bytes(_zipped(rng, content) if name.endswith("gz") else content)
    recipe = interactions.interactions(name, rating="rating", timestamp="time")
    return repr(content)[:1500], functools.partial(recipe.read, [pathlib.Path(name)]), functools.partial(
        _other_rows, csv_files.read(content))

  def _layouts(self, rng):
    form, content, name = layouts.drawn(rng)
    path = layouts.write(name, content)
    return f"{form} {name} {content[:1200]!r}", functools.partial(layouts.judged, path, form, content), str

  def _labelled(self, rng):
    content = mutated(rng, pathlib.Path("tags.csv").read_bytes())
    pathlib.Path("fuzz.csv").write_bytes(content)
    recipe = labelled.labelled("fuzz.csv", labels=("red", "round"), fields=("kind",), numeric=("size",))
    return repr(content)[:1500], functools.partial(recipe.read, [pathlib.Path("fuzz.csv")]), functools.partial(
        _other_contexts, content)

  def _teacher(self, rng):
    if rng.random() < 0.4:
      content = mutated(rng, pathlib.Path("scores.npz").read_bytes())
      said, expected = f"scores.npz, {len(content)} bytes", _not_the(imported.read("scores.npz", self.dataset))
    else:
      arrays = _arrays(rng, ("users", "items", "scores", "lists", "confidences", "user_vectors", "item_vectors"))
      content, said, expected = _npz(arrays), _shapes(arrays), _not_finite
    pathlib.Path("fuzz.npz").write_bytes(content)
    return said, lambda: imported.read("fuzz.npz", self.dataset, int(rng.integers(0, 100))), expected

  def _teacher_rows(self, rng):
    suffix = ["jsonl", "csv", "tsv", "jsonl.gz"][rng.integers(4)]
    rows = [_teacher_row(rng) for _ in range(rng.integers(0, 12))]
    if suffix.startswith("jsonl"):
      content = "\n".join(json.dumps(row) for row in rows).encode()
    else:
      names, mark = list(rows[0]) if rows else ["user"], "," if suffix == "csv" else "\t"
      lines = [mark.join(names), *(mark.join(str(row.get(x, "")) for x in names) for row in rows)]
      content = "\n".join(lines).encode("utf-8", "surrogatepass")
    content = mutated(rng, content) if rng.random() < 0.4 else content
    pathlib.Path(f"fuzz.{suffix}").write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    return f"{suffix} {content[:1500]!r}", lambda: imported.read(f"fuzz.{suffix}", self.dataset, 100), _not_finite

  def _features(self, rng):
    if rng.random() < 0.4:
      content, expected = mutated(rng, pathlib.Path("vectors.npz").read_bytes()), None
      said = f"vectors.npz, {len(content)} bytes"
    else:
      arrays = _arrays(rng, ("ids", "vectors"))
      content, said = _npz(arrays), _shapes(arrays)
    pathlib.Path("fuzz.npz").write_bytes(content)
    true = feature_files.attach(self.dataset, {"features": "vectors.npz"})[0].item_features.vectors["vectors"]

    def expected(found):
      vectors = found[0].item_features.vectors["fuzz"]
      if said.startswith("vectors.npz"):
        return "" if np.array_equal(vectors, true) else "other vectors"
      return "" if np.isfinite(vectors).all() and len(vectors) == len(true) else "vectors that are not finite"

    return said, lambda: feature_files.attach(self.dataset, {"features": "fuzz.npz"}), expected

  def _flagfile(self, rng):
    lines = [*artefacts.flags("teacher")]
    for _ in range(rng.integers(1, 4)):
      line = [nonsense.word(rng), f"--{nonsense.word(rng)}={nonsense.word(rng)}", f"--epochs={nonsense.number(rng)}",
              "# " + nonsense.word(rng), "--flagfile=fuzz.txt", f"--flagfile={nonsense.path(rng)}"][rng.integers(6)]
      lines.insert(int(rng.integers(len(lines) + 1)), line)
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    content = mutated(rng, content) if rng.random() < 0.3 else content
    pathlib.Path("fuzz.txt").write_bytes(content)
    return repr(content[:1500]), lambda: self.train.parse(["--flagfile=fuzz.txt"]), _anything

  def _toml(self, rng):
    content = pathlib.Path(artefacts.TABLE).read_bytes()
    if rng.random() < 0.5:
      content = mutated(rng, content)
    else:
      keys = ("title", "about", "seeds", "metrics", "flags", "evaluate", "compare", "tolerance", "row", "teacher_row",
              "x")
      line = f"{keys[rng.integers(len(keys))]} = {_toml_value(rng)}"
      lines = content.decode().splitlines()
      lines.insert(int(rng.integers(len(lines) + 1)), line)
      content = "\n".join(lines).encode("utf-8", "surrogatepass")
    pathlib.Path("fuzz.toml").write_bytes(content)
    return repr(content[:1500]), lambda: toml_file.load("fuzz.toml"), _anything

  def _forged_run(self, rng):
    """A finished run in which somebody changed a file, and then the seal: whatever it says, nothing may break."""
    name = [run_directory.INFO, run_directory.RESULT, run_directory.METRICS, run_directory.FLAGS][rng.integers(4)]
    path = pathlib.Path("teacher", name)
    content = path.read_bytes()
    path.write_bytes(_changed_json(rng, content) if name.endswith("json") else mutated(rng, content))
    if name == run_directory.FLAGS:
      _sign_flags(path)
    said = f"{name} {path.read_bytes()[:1200]!r}"

    def work():
      run_directory.seal("teacher")
      run_report.evaluate_run("teacher", cache_dir=artefacts.CACHE)

    return said, work, _anything

  def _unfinished(self, rng):
    """A file of an unfinished run, which no seal covers yet."""
    name = [run_directory.INFO, run_directory.METRICS, run_directory.FLAGS][rng.integers(3)]
    path = pathlib.Path("unfinished", name)
    content = path.read_bytes()
    path.write_bytes(_changed_json(rng, content) if name.endswith("json") else mutated(rng, content))
    said = f"{name} {path.read_bytes()[:1200]!r}"
    return said, functools.partial(readers.train_again, "unfinished"), _anything

  def _forged_artefact(self, rng):
    """An artefact in which somebody changed the manifest or a file, and then the hashes."""
    folder, read = [("labels", lambda: soft_labels.read("labels", self.dataset)),
                    ("student/test_values", lambda: readers.user_values("student")),
                    ("exported", lambda: serving.load("exported", trial=False))][rng.integers(3)]
    manifest = pathlib.Path(folder, "manifest.json")
    content = json.loads(manifest.read_bytes())
    others = [name for name in content["files"] if not name.startswith("program")]  # a program is code
    if rng.random() < 0.5 and others:
      name = others[rng.integers(len(others))]
      path = pathlib.Path(folder, name)
      path.write_bytes(_npz(_arrays(rng, ("items", "scores", "tail_mass", "users", "user_ids", "ndcg@10")))
                       if rng.random() < 0.5 else mutated(rng, path.read_bytes()))
      content["files"][name] = {"sha256": sealed.hash_file(path), "bytes": path.stat().st_size}
      said = f"{folder}/{name}"
    else:
      content["metadata"] = _changed(rng, content["metadata"])
      said = f"{folder} {content['metadata']}"[:1200]
    manifest.write_text(json.dumps(content))
    manifest.with_suffix(".sha256").write_text(f"{sealed.hash_file(manifest)}  manifest.json\n")
    return said, read, _anything


def _anything(found) -> str:
  return ""


def _other_rows(rows, log) -> str:
  """What of a log is not as in the rows that an own reader found."""
  if rows is None:
    return "a file with a mistake was read"
  ids = [(log.user_ids[user], log.item_ids[item]) for user, item in zip(log.users, log.items, strict=True)]
  rest = zip(log.ratings.tolist(), log.timestamps.tolist(), strict=True)
  found = [(*pair, *numbers) for pair, numbers in zip(ids, rest, strict=True)]
  return "" if sorted(found) == sorted(rows) else f"{len(found)} other rows than the file's {len(rows)}"


def _other_contexts(content, log) -> str:
  lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
  count = len(lines) - 1 - (not lines[-1])
  return "" if len(log.user_ids) == count else f"{len(log.user_ids)} rows of {count} lines"


def _not_the(true) -> Callable[[Any], str]:
  def wrong(found):
    same = found.tables.keys() == true.tables.keys() and all(
        np.array_equal(found.tables[name], true.tables[name]) for name in true.tables)
    return "" if same else "other scores"

  return wrong


def _not_finite(found) -> str:
  for name, values in found.tables.items():
    if not np.isfinite(values).all():
      return f"{name} is not finite"
  if found.lists is not None and not (np.isfinite(found.lists.scores) | (found.lists.items < 0)).all():
    return "a score of a list is not finite"
  return ""


def _zipped(rng, content) -> bytes:
  whole = gzip.compress(content)
  return whole if rng.random() < 0.5 else mutated(rng, whole)


def _npz(arrays) -> bytes:
  file = io.BytesIO()
  np.savez(file, **arrays)
  return file.getvalue()


def _shapes(arrays) -> str:
  return ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in arrays.items())


def _arrays(rng, names) -> dict[str, np.ndarray]:
  """Some arrays of these names, of shapes and types that often fit and often do not."""
  found = {}
  for name in names:
    if rng.random() < 0.6:
      count = [artefacts.ITEMS if name in ("items", "item_vectors", "ids", "vectors") else artefacts.USERS,
               int(rng.integers(0, 60))][int(rng.random() < 0.2)]
      found[name] = _array(rng, name, count)
  return found


def _array(rng, name, count) -> np.ndarray:
  mark = "i" if name in ("items", "ids") else "u"
  if name in ("users", "items", "ids", "user_ids") and rng.random() < 0.8:
    ids = np.array([f"{mark}{n}" for n in range(count)])
    if count and rng.random() < 0.2:
      ids[rng.integers(count)] = ["", f"{mark}0", "no"][rng.integers(3)]
    return ids
  shape = [(count, 3), (count, artefacts.ITEMS), (count,), (), (count, 2, 2), (0, 3), (count, 0)][
      rng.choice(7, p=[0.4, 0.2, 0.2, 0.05, 0.05, 0.05, 0.05])]
  values = rng.normal(size=shape) * 10
  if values.size and rng.random() < 0.3:
    values.flat[rng.integers(values.size)] = [np.nan, np.inf, 1e300, -1e38, 0][rng.integers(5)]
  with np.errstate(invalid="ignore", over="ignore"):
    return values.astype(["f4", "f8", "i4", "f2", "?", "U5", "S3", "c8", "i8", "M8[s]"][
        rng.choice(10, p=[0.4, 0.2, 0.15, 0.05, 0.05, 0.03, 0.03, 0.03, 0.03, 0.03])])


def _teacher_row(rng) -> dict[str, Any]:
  """A row of a teacher's file, mostly of scores."""
  row: dict[str, Any] = {"user": f"u{rng.integers(52)}", "item": f"i{rng.integers(42)}", "score": float(rng.normal())}
  if rng.random() < 0.2:
    kind = rng.integers(4)
    row = [{"user": "u1", "items": [f"i{n}" for n in range(rng.integers(0, 5))]}, {"user": "u1", "vector": [1.0, 2.0]},
           {"user": "u1", "item": "i1", "rank": int(rng.integers(-2, 5))}, {"item": "i1", "vector": []}][kind]
  if rng.random() < 0.2:
    row[list(row)[rng.integers(len(row))]] = _json_value(rng)
  return row


def _json_value(rng, depth=0) -> Any:
  values = [None, True, -1, 0, 1e308, 10**30, "", "a", "\ud800", "x" * 300, [], {}, [[]], {"a": 1}, "nan", float("nan"),
            float("inf"), "1", [1, "a"], "../x", "kd_jax.models.mf.mf(dim=2)", "os.getcwd()"]
  if depth < 3 and rng.random() < 0.2:
    return [_json_value(rng, depth + 1)]
  return values[rng.integers(len(values))]


def _changed_json(rng, content) -> bytes:
  """JSON with another value somewhere, a key less, or no JSON at all."""
  kind = rng.random()
  if kind < 0.2:
    return mutated(rng, content)
  if kind < 0.25:
    return [b"", b"null", b"[]", b"{}", b"1", b'"x"', b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"{} {}", b"NaN"][
        rng.integers(11)]
  return json.dumps(_changed(rng, json.loads(content))).encode()


def _changed(rng, value) -> Any:
  """A JSON value with another value somewhere inside, or without it."""
  place, above = value, []
  while isinstance(place, dict | list) and place and (not above or rng.random() < 0.6):
    key = list(place)[rng.integers(len(place))] if isinstance(place, dict) else int(rng.integers(len(place)))
    above.append((place, key))
    place = place[key]
  if not above:
    return {}
  inside, key = above[-1]
  if rng.random() < 0.2:
    del inside[key]
  else:
    inside[key] = _json_value(rng)
  return value


def _toml_value(rng) -> str:
  values = ["1", "-1", "0", '""', '"x"', "[]", "{}", "[1]", '["a"]', "true", "nan", "1e400", "{a = 1}", "[[1]]",
            '[["a", "b"]]', "1979-05-27", "'''x", '["--epochs=0"]', '["--workdir=x"]', '["--nothing"]',
            "{mask_validation = 1}", "{absolute = -1}", '{sampled = "x"}', '["ndcg@0"]', '["ndcg@10", "ndcg@10"]',
            "9" * 400, '"\\u0000"']
  return values[rng.integers(len(values))]


def _sign_flags(path) -> None:
  """Gives flags.txt a first line that fits its others again."""
  import hashlib

  _, _, lines = path.read_bytes().partition(b"\n")
  path.write_bytes(f"# sha256 {hashlib.sha256(lines).hexdigest()}\n".encode() + lines)
