"""Recognises the layout of a file from its beginning, and answers with the arguments that read it.

Where two readings are possible, it raises InputError with the arguments of each, and nothing is read.
"""

from __future__ import annotations

import collections
import datetime
import itertools
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from kd_jax.base import InputError
from kd_jax.data.formats import delimited, json_lines, parquet, parts, raw
from kd_jax.data.formats.delimited import DELIMITERS, Style

Arguments = dict[str, Any]
_SAMPLE = 1000  # lines that are looked at
_MOST = 0.9  # share of the lines that must agree
_SEPARATORS = ("::", "\t", ",", ";", "|", " ")
_COMMENTS = (b"#", b"%", b"//")
_JUNK = 20  # lines before the first row, at most
# Names of columns, in lower case without anything but letters and digits.
_NAMES = {
    "user": ("user", "userid", "uid", "users", "reviewerid", "customer", "customerid", "memberid", "visitorid",
             "buyerid"),
    "item": ("item", "itemid", "iid", "items", "movie", "movieid", "product", "productid", "asin", "parentasin", "isbn",
             "bookid", "artistid", "songid", "trackid", "businessid", "sku", "articleid", "venueid", "locationid",
             "gameid"),
    "rating": ("rating", "ratings", "score", "stars", "overall", "bookrating", "weight", "playcount", "plays"),
    "timestamp": ("timestamp", "timestamps", "time", "ts", "unixreviewtime", "date", "datetime", "createdat")}
_TIME = 10**8  # numbers from here on are time stamps: seconds since 1973
_RATING = (-10, 100)  # the values of a rating
_GRADES = 21  # distinct values of a rating, at most
UNITS = {"seconds": 10**11, "milliseconds": 10**14, "microseconds": 10**17}  # {unit: its time stamps are below}


def complete(path: pathlib.Path, given: Arguments) -> Arguments:
  """The arguments of `interactions` that `path` decides and that `given` leaves open; {} if nothing is open.

  Columns that are named in the header have precedence. Raises InputError if it is not clear what is meant.
  """
  if path.is_dir():
    return _folder(path, given)
  if given["header"] is False:
    _check_no_header(path, given)
  if given["layout"] or given["header"] is False:
    return {}
  suffix = raw.unpacked(path).suffix.lower()
  if suffix == parquet.SUFFIX:
    return _with_unit(path, given, _named(path, parquet.names(path), given), parquet.sample)
  if suffix in json_lines.SUFFIXES:
    return _with_unit(path, given, _named(path, json_lines.names(path, given["skip"]), given), json_lines.sample)
  lines = raw.head(path)
  if not lines:
    return {}
  return _text(path, lines[given["skip"] :], suffix, given)


def _dates(given, lines, style, names) -> Arguments:
  """The unit of a column of time stamps that is given, if it has dates."""
  if given["unit"] or given["timestamp"] is None:
    return {}
  rows = (delimited.cut(line, style, len(names))[0] for line in lines[1:_SAMPLE])
  texts = [row[names.index(given["timestamp"])] for row in rows if row is not None]
  return {"unit": "iso8601"} if texts and all(map(_is_date, texts)) else {}


def _with_unit(path, given, found, sample) -> Arguments:
  """What is found, and the unit of the time stamps. Numbers in a column that was given stay as they are."""
  column = (given | found)["timestamp"]
  if given["unit"] or not isinstance(column, str):
    return found
  try:
    unit = unit_of(sample(path, column))
  except ValueError as error:
    if "timestamp" not in found:  # the audit warns of it
      return found
    raise InputError(f"`data`: {path}: column {column!r}: {error}") from None
  return found | ({"unit": unit} if unit and (unit == "iso8601" or "timestamp" in found) else {})


def unit_of(texts: Sequence[str]) -> str | None:
  """The unit of time stamps: a name of UNITS, "iso8601", or None if they are neither. Raises ValueError: mixed."""
  try:
    numbers = [abs(float(text)) for text in texts]
  except ValueError:
    return "iso8601" if texts and all(map(_is_date, texts)) else None
  found = {next((name for name, end in UNITS.items() if number < end), None) for number in numbers if number >= _TIME}
  if len(found) > 1:
    raise ValueError(f"time stamps of several units: {', '.join(map(str, sorted(map(str, found))))}")
  return found.pop() if found else "seconds" if numbers else None


def _is_date(text) -> bool:
  try:
    datetime.datetime.fromisoformat(text.strip())
  except ValueError:
    return False
  return not text.strip().isdecimal()


def _folder(path, given) -> Arguments:
  """One file of a folder, its published splits, or its parts."""
  files = sorted(x for x in path.iterdir() if x.is_file() and not x.name.startswith((".", "_")))
  data = [x for x in files if raw.unpacked(x).suffix.lower() in _READ]
  by_part = parts.of_names(data)
  if "train" in by_part and len(by_part) > 1:
    more = {"path": str(by_part.pop("train")), "split": "given", **{name: str(x) for name, x in by_part.items()}}
    more |= _tables(files)
    return more | complete(pathlib.Path(more["path"]), given | more)
  if data and all(x.suffix == parquet.SUFFIX for x in data):
    return _named(path, parquet.names(path), given)
  log = [x for x in data if raw.unpacked(x).suffix == ".inter"] or data
  if len(log) == 1:
    more = {"path": str(log[0]), **_tables(files)}
    return more | complete(log[0], given | more)
  names = ", ".join(x.name for x in files[:20]) or "nothing"
  raise InputError(f"`data`: {path}: is a directory with {names}; name a file of it, or train, validation and test "
                   "files with path='...', validation='...', test='...', split='given'")


def _tables(files) -> Arguments:
  """RecBole's tables of users and items, in a folder with one of each."""
  found = {f"{side}_table": [x for x in files if raw.unpacked(x).suffix == f".{side}"] for side in ("user", "item")}
  return {name: str(paths[0]) for name, paths in found.items() if len(paths) == 1}


_READ = (*json_lines.SUFFIXES, parquet.SUFFIX, ".dat", ".data", ".base", "",
         *(x for x in DELIMITERS if x not in (".user", ".item")))


def _named(path, names, given) -> Arguments:
  """The columns by their usual names, if those that are given are not there."""
  wanted = [given[x] for x in ("user", "item", "rating", "timestamp", "split_column") if given[x] is not None]
  if any(isinstance(x, int) for x in wanted) or all(x in names for x in wanted):
    return {}
  if (given["user"], given["item"]) != ("user", "item"):
    return {}  # reading says which is missing
  found = {role: [name for name in names if _bare(name) in known] for role, known in _NAMES.items()}
  if len(found["user"]) == len(found["item"]) == 1:
    return {role: name[0] for role, name in found.items() if len(name) == 1 and given[role] in (None, role)}
  perhaps = found["user"] + found["item"]
  raise InputError(f"`data`: {path}: no columns 'user' and 'item'; it has {_shown(names)}: give user='...', item='...'"
                   + (f" (perhaps {_shown(perhaps)})" if perhaps else ""))


def _bare(name: str) -> str:
  return re.sub(r"[^a-z0-9]", "", name.lower())


def _shown(names) -> str:
  return ", ".join(repr(name[:40]) for name in names[:50])


def _text(path, lines, suffix, given) -> Arguments:
  by_number = isinstance(given["user"], int) or isinstance(given["item"], int)
  if by_number and given["header"] is not None:
    return {}
  delimiter = given["delimiter"] or DELIMITERS.get(suffix)
  if delimiter and not by_number and (found := _header_names(lines, Style(delimiter, quoting=given["quoting"]))):
    named = _header_is_meant(path, found, given)
    if named is not None:
      return named | _dates(given, lines, Style(delimiter, quoting=given["quoting"]), found)
  if (given["user"], given["item"]) != ("user", "item") and not by_number:
    return {}  # reading says which is missing
  return _unknown(path, lines, suffix, given)


def _header_names(lines, style) -> list[str] | None:
  fields, _ = delimited.cut(lines[0] if lines else b"", style, None)
  return delimited.plain_names(fields) if fields else None


def _check_no_header(path, given) -> None:
  """Raises InputError if the first line has usual names of columns: as a row, it would add a user and an item."""
  suffix = raw.unpacked(path).suffix.lower()
  delimiter = given["delimiter"] or DELIMITERS.get(suffix)
  lines = raw.head(path)[given["skip"] :] if delimiter and suffix != parquet.SUFFIX else []
  names = _header_names(lines, Style(delimiter or ",", quoting=given["quoting"])) or []
  if _has_usual_names(names):
    raise InputError(f"`data`: {path}: its first line, {_shown(names)}, looks like a header, not like a row: give "
                     f"header=True, or skip={given['skip'] + 1} to leave it out")


def _has_usual_names(names) -> bool:
  bare = {_bare(name) for name in names}
  return all(bare & set(_NAMES[role]) for role in ("user", "item"))


def _header_is_meant(path, names, given) -> Arguments | None:
  """Nothing to add, if the header has all columns that are given. Raises InputError if it is no header."""
  wanted = [given[x] for x in ("user", "item", "rating", "timestamp", "split_column") if given[x] is not None]
  if not all(x in names for x in wanted):
    return None
  if given["header"] is None and all(_is_number(x) for x in (given["user"], given["item"])):
    places = {x: names.index(given[x]) for x in ("user", "item")}
    raise InputError(f"`data`: {path}: its first line, {_shown(names)}, looks like a row, which would be lost: give "
                     f"columns by number, user={places['user']}, item={places['item']}, header=False; or header=True")
  return {}


def _unknown(path, lines, suffix, given) -> Arguments:
  """The layout of lines of text, from their fields alone."""
  comments = next((n for n, line in enumerate(lines) if not line.startswith(_COMMENTS)), len(lines))
  texts = [line.decode("utf-8", "replace") for line in lines[comments : comments + _SAMPLE]]
  skip = {"skip": given["skip"] + comments} if comments else {}
  separators = [given["delimiter"]] if given["delimiter"] else _SEPARATORS
  widths = {mark: _common_width(texts, Style(mark, quoting=given["quoting"])) for mark in separators}
  rows = {mark: width for mark, width in widths.items() if width[0] >= 2}
  if len(rows) > 1 and " " in rows:
    del rows[" "]
  usual = DELIMITERS.get(suffix)
  if len(rows) > 1 and usual in rows:
    rows = {usual: rows[usual]}
  if len(rows) > 1:
    _two(path, given, [{"delimiter": mark, "skip": given["skip"] + comments} for mark in rows])
  if not rows:
    return skip | _per_user(path, texts, given)
  mark, (width, junk) = rows.popitem()
  skip = {"skip": given["skip"] + comments + junk} if comments + junk else {}
  return skip | _rows(path, texts[junk:], mark, width, given)


def _common_width(texts, style) -> tuple[int, int]:
  """(number of fields of nearly all lines, or 0; number of other lines before the first of them)."""
  fields = [delimited.cut(text.encode(), style, None)[0] for text in texts if text]
  counts = collections.Counter(len(row) for row in fields if row is not None)
  width, times = counts.most_common(1)[0] if counts else (0, 0)
  junk = next((n for n, row in enumerate(fields) if row is not None and len(row) == width), 0)
  agreed = junk <= _JUNK and times >= _MOST * max(1, len(fields) - junk)
  return (width, junk) if agreed else (0, 0)


def _rows(path, texts, mark, width, given) -> Arguments:
  """One interaction per line."""
  style = Style(mark, quoting=given["quoting"])
  cut = [row for text in texts if (row := delimited.cut(text.encode(), style, width)[0]) is not None]
  header = given["header"]
  if header is None:
    header = _is_header(cut)
  suffix = raw.unpacked(path).suffix.lower()
  found: Arguments = {"delimiter": mark} if given["delimiter"] is None and DELIMITERS.get(suffix) != mark else {}
  if header is None:
    _two(path, given, [found | {"user": 0, "item": 1, "header": yes} for yes in (True, False)])
  found |= {"header": header} if not header or isinstance(given["user"], int) else {}
  if isinstance(given["user"], int) or isinstance(given["item"], int):
    return found | _unit(path, given, cut[header:])
  if header:
    names = delimited.plain_names(cut[0])
    named = _named(path, names, given)
    return found | named | _unit(path, given | named, cut[1:], names)
  if mark == " " and width > 2 and not _is_grade_or_time(cut, 2):
    _two(path, given, [{"layout": "user items"}, found | {"user": 0, "item": 1, "rating": 2}])
  found |= _roles(path, cut, found, given)
  return found | _unit(path, given | found, cut)


def _is_header(rows) -> bool | None:
  """Whether the first row is a header; None if that cannot be seen."""
  first, rest = rows[0], rows[1:]
  if _has_usual_names(delimited.plain_names(first)):
    return True
  numeric = [column for column in range(len(first)) if rest and sum(
      _is_number(row[column]) for row in rest) >= _MOST * len(rest)]
  if not numeric:
    return None
  return not all(_is_number(first[column]) for column in numeric)


def _roles(path, rows, found, given) -> Arguments:
  """The columns by number: user, item, and what looks like ratings and time stamps."""
  width, roles = len(rows[0]), {"user": 0, "item": 1}
  for column in range(2, width):
    role = "timestamp" if _is_time(rows, column) else "rating" if _is_grade_or_time(rows, column) else None
    if role is None or role in roles or width > 4:
      raise InputError(f"`data`: {path}: no header, and column {column} of {_shown(rows[0])} may be anything: "
                       f"give columns by number, such as {_said(found | roles | {'rating': 2})}; a column that is not "
                       "named is not read")
    roles[role] = column
  if width > 2 and "timestamp" not in roles and (_is_time(rows, 0) or _is_time(rows, 1)):
    raise InputError(f"`data`: {path}: no header, and a time stamp may come first in {_shown(rows[0])}: give columns "
                     f"by number, such as {_said(found | {'timestamp': 0, 'user': 1, 'item': 2})}")
  return {role: column for role, column in roles.items() if given[role] in (None, role)}


def _is_time(rows, column) -> bool:
  values = [row[column] for row in rows]
  if all(_is_number(x) for x in values):
    return all(abs(float(x)) >= _TIME for x in values)
  return all(map(_is_date, values))


def _is_grade_or_time(rows, column) -> bool:
  values = {row[column] for row in rows}
  if not all(_is_number(x) for x in values):
    return all(map(_is_date, values))
  numbers = {float(x) for x in values}
  least, most = _RATING
  return min(numbers) >= _TIME or (len(numbers) <= _GRADES and least <= min(numbers) and max(numbers) <= most)


def _unit(path, given, rows, names=()) -> Arguments:
  """The unit of the column of time stamps. Raises InputError if they have several."""
  column = given["timestamp"]
  if column is None or given["unit"] or not rows or not _is_there(column, names, rows):
    return {}
  place = names.index(column) if isinstance(column, str) else column
  try:
    unit = unit_of([row[place] for row in rows])
  except ValueError as error:
    raise InputError(f"`data`: {path}: column {column!r}: {error}") from None
  return {"unit": unit} if unit else {}


def _is_there(column, names, rows) -> bool:
  """Whether the rows have this column; if not, reading says so."""
  return column in names if isinstance(column, str) else column < len(rows[0])


def _per_user(path, texts, given) -> Arguments:
  """One line per user."""
  mark, fields = next(((mark, cut) for mark in ([given["delimiter"]] if given["delimiter"] else (None, ",", ";"))
                       if (cut := _tokens(texts, mark))), (None, None))
  if fields is None:
    raise InputError(f"`data`: {path}: not recognised: its lines, such as {texts[0][:80] if texts else ''!r}, have no "
                     "common number of fields: give delimiter='...', or for one line per user, layout='user items'")
  found: Arguments = {"delimiter": mark} if mark and not given["delimiter"] else {}
  if given["validation"] or given["test"] or parts.of_name(path.name):
    begins = ["user "]  # without users, the lines of several files would not be of the same users
  else:
    begins = _beginnings(fields)
  layouts = [{"layout": f"{begin}{'item:rating' if _rated(fields, begin) else 'items'}"} for begin in begins]
  if len(layouts) > 1:
    _two(path, given, [found | layout for layout in layouts])
  return found | layouts[0]


def _tokens(texts, mark) -> list[list[str]] | None:
  """The fields of all lines, if none has a space or a separator inside."""
  fields = [text.split(mark) for text in texts if text.strip()]
  fields = [[x.strip() for x in row] for row in fields]
  inner = re.compile(r"[\s,;|]")
  return fields if fields and not any(not x or inner.search(x) for row in fields for x in row) else None


def _beginnings(fields) -> list[str]:
  """What may stand before the items: one possibility if it is clear."""
  for words, place in (("count ", 0), ("user count ", 1)):
    if len(fields) > 2 and all(len(row) > place and row[place] == str(len(row) - 1 - place) for row in fields):
      return [words]
  first = [row[0] for row in fields]
  numbers = [int(x) for x in first if x.isascii() and x.isdecimal()]
  ascending = len(numbers) == len(first) > 1 and all(b - a == 1 for a, b in itertools.pairwise(numbers))
  rated = ":" in fields[0][-1] and ":" not in fields[0][0]
  if ascending or rated or len(set(first)) == len(first) >= 20:
    return ["user "]
  return ["user ", ""]


def _rated(fields, begin) -> bool:
  before = len(begin.split())
  return all(re.fullmatch(r".+:[-+.\deE]+", x) for row in fields for x in row[before:])


def _is_number(text) -> bool:
  try:
    return "_" not in text and abs(float(text)) < float("inf")
  except ValueError:
    return False


def _said(arguments: Arguments) -> str:
  return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _two(path, given, readings: list[Arguments]):
  """Raises InputError with the arguments of each reading."""
  calls = " or ".join(_said({name: value for name, value in reading.items() if value != 0 or name != "skip"})
                      for reading in readings)
  raise InputError(f"`data`: {path}: {len(readings)} readings are possible, so nothing is read: give {calls}")
