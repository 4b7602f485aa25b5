"""Files of interactions in every layout, with mistakes, and an own reader that says which rows of each are right.

The reader is written from the documents, not from the code that it judges: it splits bytes with Python alone.
"""

from __future__ import annotations

import bz2
import collections
import csv
import functools
import gzip
import json
import lzma
import pathlib
from typing import Any, NamedTuple

from kd_jax.base import InputError
from kd_jax.data import interactions
from kd_jax.fault import csv_files
from kd_jax.fault.csv_files import Random, Rows

_MARKS = (",", "\t", ";", "|", "::", " ")
_LINES = ("user items", "user count items", "count items", "items", "user item:rating", "user count item:rating",
          "count item:rating", "item:rating")
_PACKERS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": functools.partial(lzma.compress, preset=0)}
_JSON = "json"
_NAMES = ("user", "item", "rating", "time")
_VALUES = ("u1", "001", 1, 2**60, 2.5, None, True, [], {}, "", " ", "NA", "x" * 201, "ü", "5", "1_0", -1, 0)


class Form(NamedTuple):
  """How a file is written."""

  layout: str  # "" for one interaction per line, _JSON, or one of _LINES
  mark: str = ","  # of one interaction per line
  header: bool = True
  skip: int = 0
  quoting: bool = True


class Reference(NamedTuple):
  """What a strict reading gives: rows of (user, item), perhaps with rating and seconds, and rows that are refused."""

  rows: list[tuple[Any, ...]]
  bad: int


def drawn(rng: Random) -> tuple[Form, bytes, str]:
  """A form, the content of a file before it is packed, and the name of the file."""
  kind, packed = rng.random(), list(_PACKERS)[rng.integers(len(_PACKERS))] if rng.random() < 0.2 else ""
  if kind < 0.6:
    skip = int(rng.integers(3) * (rng.random() < 0.3))
    form = Form("", _MARKS[rng.integers(len(_MARKS))], bool(rng.random() < 0.6), skip, bool(rng.random() < 0.8))
    name, content = f"fuzz{['.csv', '.tsv', '.dat', '.txt'][rng.integers(4)]}", _table(rng, form)
  elif kind < 0.75:
    form, name = Form(_JSON), "fuzz.jsonl"
    content = "\n".join(json.dumps(_object(rng)) for _ in range(rng.integers(1, 20))).encode("utf-8", "surrogatepass")
  else:
    form, name = Form(_LINES[rng.integers(len(_LINES))]), "fuzz.txt"
    content = b"".join(_line(rng, form.layout.split()) for _ in range(rng.integers(1, 20)))
  return form, csv_files.mutated(rng, content) if rng.random() < 0.4 else content, name + packed


def write(name: str, content: bytes) -> pathlib.Path:
  """Writes the content, packed as the name says."""
  path = pathlib.Path(name)
  path.write_bytes(_PACKERS.get(path.suffix, bytes)(content))
  return path


def judged(path: pathlib.Path, form: Form, content: bytes) -> str:
  """What is wrong with how the file is read, with and without the arguments of its form; "" if nothing is.

  Raises InputError, that of the reader, if it is right to refuse the file.
  """
  given = arguments(form)
  expected = reference(content, form)
  if wrong := _of_path(path, content):
    return wrong
  try:
    found = interactions.interactions(str(path), **given, max_bad_rows="100%").read([path])
  except InputError:
    if expected is None or not expected.rows:
      raise
    return f"{len(expected.rows)} right rows were refused"
  if expected is None:
    return "a file without the columns was read"
  if (wrong := _other(expected, found)) or len(found.bad_rows) != expected.bad:
    return wrong or f"{len(found.bad_rows)} rows refused, not {expected.bad}"
  try:
    strict = interactions.interactions(str(path), **given).read([path])
  except InputError:
    if expected.bad:
      raise
    return "refused, without a bad row"
  return f"{expected.bad} bad rows were read" if expected.bad else _other(expected, strict)


def arguments(form: Form) -> dict[str, Any]:
  """The arguments of `interactions` that read the form."""
  if form.layout == _JSON:
    return {"rating": "rating", "timestamp": "time"}
  if form.layout:
    return {"layout": form.layout}
  columns = _NAMES if form.header else range(4)
  return dict(zip(("user", "item", "rating", "timestamp"), columns, strict=True)) | {
      "delimiter": form.mark, "header": form.header, "skip": form.skip, "quoting": form.quoting}


def reference(content: bytes, form: Form) -> Reference | None:
  """The rows of a file and the number of bad ones; None if it lacks the columns."""
  lines = _lines(content)
  if form.layout == _JSON:
    return _counted(_of_object(line) for line in lines) if _keys(lines) >= set(_NAMES) else None
  if form.layout:
    return _counted(row for number, line in enumerate(lines) for row in _of_line(number, line, form.layout.split()))
  lines = lines[form.skip :]
  first = _cut(lines[0], form) if lines else None
  if form.header:
    if first is None or any(first.count(name) != 1 for name in _NAMES):
      return None
    return _counted(_of_fields(line, form, len(first), [first.index(name) for name in _NAMES]) for line in lines[1:])
  widths = collections.Counter(len(row) for line in lines if (row := _cut(line, form)) is not None)
  width = widths.most_common(1)[0][0] if widths else 1
  return _counted(_of_fields(line, form, width, range(4)) for line in lines) if width >= 4 else None


def _counted(rows) -> Reference:
  found = list(rows)
  return Reference([row for row in found if row is not None], sum(row is None for row in found))


def _of_path(path, content) -> str:
  """Whether a file that is recognised by its path alone is read whole: rows read = rows kept + rows refused."""
  try:
    more = interactions.interactions(str(path)).complete([path])
    log = interactions.interactions(**{"path": str(path), "max_bad_rows": "100%"} | more).read([path])
  except InputError as error:
    return "" if "\n" not in str(error) and "`data`" in str(error) else f"said {error}"
  if more.get("layout"):
    return ""
  lines = len(_lines(content)) - more.get("skip", 0) - (more.get("header", True) and path.name.find(".json") < 0)
  read = len(log.users) + len(log.bad_rows)
  return "" if read == lines else f"{more}: {read} rows of {lines} lines"


def _lines(content) -> list[bytes]:
  content = content.replace(b"\r", b"\n") if b"\n" not in content and b"\r" in content[:-1] else content
  lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
  return [line.removesuffix(b"\r") for line in (lines if lines[-1] else lines[:-1])]


def _cut(line, form) -> list[str] | None:
  try:
    text = line.decode()
    if "\0" in text:
      return None
    if form.quoting and '"' in text and len(form.mark) == 1:
      return next(csv.reader([text], delimiter=form.mark, strict=True))
    return text.split(form.mark)
  except (UnicodeDecodeError, csv.Error, StopIteration):
    return None


def _of_fields(line, form, width, places) -> tuple[Any, ...] | None:
  fields = _cut(line, form)
  if fields is None or len(fields) != width:
    return None
  return _row([fields[place] for place in places])


def _row(fields) -> tuple[Any, ...] | None:
  try:
    return csv_files.checked(fields)
  except (ValueError, OverflowError):
    return None


def _of_object(line) -> tuple[Any, ...] | None:
  try:
    found = json.loads(line)
    values = [found[name] for name in _NAMES]
    if any(isinstance(x, bool) or not isinstance(x, str | int | float) for x in values):
      return None
    texts = [str(x) for x in values]
    texts[0].encode(), texts[1].encode()
  except (ValueError, KeyError, TypeError, RecursionError):
    return None
  return _row(texts)


def _keys(lines) -> set[str]:
  """The keys of the first hundred objects."""
  found: set[str] = set()
  for line in lines[:100]:
    try:
      value = json.loads(line)
    except (ValueError, RecursionError):
      continue
    found |= set(value) if isinstance(value, dict) else set()
  return found


def _of_line(number, line, words) -> Rows:
  """The rows of a line of one user; [None] if it is bad as a whole."""
  try:
    fields = line.decode().split()
  except UnicodeDecodeError:
    return [None]
  if b"\0" in line or (words[0] == "user" and not fields):
    return [None]
  user = fields.pop(0) if words[0] == "user" else str(number)
  if "count" in words and (not fields or fields.pop(0) != str(len(fields))):
    return [None]
  if words[-1] == "items":
    return [_pair(user, item) for item in fields]
  if any(":" not in field for field in fields):
    return [None]
  return [_rated(user, *field.rsplit(":", 1)) for field in fields]


def _pair(user, item):
  found = _row([user, item, "1", "1"])
  return found and found[:2]


def _rated(user, item, rating):
  found = _row([user, item, rating, "1"])
  return found and found[:3]


def _other(expected, log) -> str:
  columns = [[log.user_ids[u] for u in log.users], [log.item_ids[i] for i in log.items]]
  columns += [x.tolist() for x in (log.ratings, log.timestamps) if x is not None]
  found, wanted = collections.Counter(zip(*columns, strict=True)), collections.Counter(expected.rows)
  return "" if found == wanted else f"{(found - wanted).total()} rows too many, {(wanted - found).total()} lost"


def _table(rng, form) -> bytes:
  lines = csv_files.lines(rng, form.mark.encode(), form.header)
  lines = [b"# junk %d" % n for n in range(form.skip)] + lines
  end = [b"\n", b"\r\n", b"\r"][rng.choice(3, p=[0.8, 0.15, 0.05])]
  content = end.join(lines) + (end if rng.random() < 0.9 else b"")
  return b"\xef\xbb\xbf" + content if rng.random() < 0.1 else content


def _object(rng) -> dict[str, Any]:
  found = {"user": f"u{rng.integers(9)}", "item": int(rng.integers(99)), "rating": float(rng.integers(1, 6)),
           "time": int(rng.integers(10**9)), "more": [1]}
  if rng.random() < 0.1:
    name = _NAMES[rng.integers(4)]
    found[name] = _VALUES[rng.integers(len(_VALUES))]
  if rng.random() < 0.03:
    del found[_NAMES[rng.integers(4)]]
  return found


def _line(rng, words) -> bytes:
  rated = words[-1] == "item:rating"
  items = [f"i{n}:{rng.integers(1, 6)}" if rated else f"i{n}" for n in rng.integers(50, size=rng.integers(0, 9))]
  begin = [f"u{rng.integers(30)}"] * (words[0] == "user")
  begin += [str(len(items) + (rng.random() < 0.03))] * ("count" in words)
  odd = ("\x00", "i:", ":3", "é", "i:x", "x" * 201, "", "i:1_0", "i:nan", " ")[rng.integers(10)]
  return " ".join([*begin, *items, *([odd] * (rng.random() < 0.05))]).encode() + b"\n"
