"""Tables of interactions with mistakes, and an own reader that says what a strict reading of each must give."""

from __future__ import annotations

import csv
import math

import numpy as np

Random = np.random.Generator
Rows = list[tuple[str, str, float, int]]
_HEADER = b"user,item,rating,time"
_IDS = (b"a", b"001", b"1", b"1.0", b" 1", b"1 ", b"NA", b"null", b"nan", b"\\N", b"\xc3\xbc", b'"a,b"', b'"a""b"',
        b"'", b"-1", b"1e5", b"9007199254740993", b"x" * 200, b"\xe2\x80\xae", b"=1+1")
_BAD = (b"", b" ", b"x" * 201, b"\xff\xfe", b"a\0b", b'"open', b'a"b"c', b'"a"b')
_NUMBERS = (b"1", b"5", b"0", b"-3", b"2.5", b"1e3", b" 4", b"4 ", b"+1", b".5", b"5.")
_NO_NUMBERS = (b"", b"nan", b"inf", b"-inf", b"1e400", b"1_0", b"\xd9\xa3", b"x", b"1,5", b"0x1", b"--1", b"1e39")
_TIMES = (b"1000000000", b"0", b"-5", b"1.9", b"9223372036854775807", b"1e9")
_NO_TIMES = (b"9223372036854775808", b"nan", b"", b"t", b"1e30", b"9" * 400)


def table(rng: Random) -> bytes:
  """A file of 2 to 40 rows; each field, line end and row may be odd."""
  end = [b"\n", b"\r\n"][rng.integers(2)] if rng.random() < 0.3 else b"\n"
  content = end.join(lines(rng)) + (end if rng.random() < 0.9 else b"")
  content = b"\xef\xbb\xbf" + content if rng.random() < 0.1 else content
  return mutated(rng, content) if rng.random() < 0.3 else content


def lines(rng: Random, mark: bytes = b",", header: bool = True) -> list[bytes]:
  """The lines of a table with this separator."""
  worst = rng.random()  # many files are right, many have one mistake
  head = _HEADER if rng.random() < 0.97 else [b"", b"user,item", b"item,user,time,rating", b"user,user,rating,time",
                                             b"a,b,c,d", b'"user","item","rating","time"'][rng.integers(6)]
  made = [head.replace(b",", mark)] if header else []
  for number in range(int(rng.integers(2, 40))):
    odd = worst < 0.6 and rng.random() < 0.05
    fields = [_pick(rng, _IDS, _BAD, odd), b"i%d" % number if rng.random() < 0.8 else _pick(rng, _IDS, _BAD, odd),
              _pick(rng, _NUMBERS, _NO_NUMBERS, odd), _pick(rng, _TIMES, _NO_TIMES, odd)]
    made.append(mark.join(fields) if not odd or rng.random() < 0.7 else _broken(rng, fields))
  return made


def _pick(rng, good, bad, odd):
  chosen = bad if odd and rng.random() < 0.5 else good
  return chosen[rng.integers(len(chosen))]


def _broken(rng, fields) -> bytes:
  """A line with too few or too many fields, or none."""
  return [b",".join(fields[:-1]), b",".join([*fields, b"x"]), b"", b",,,", b",".join(fields)[: rng.integers(1, 20)],
          b"\t".join(fields), b"# " + b",".join(fields)][rng.integers(7)]


def mutated(rng: Random, content: bytes) -> bytes:
  """The content with one to three random bytes, pieces or cuts changed."""
  data = bytearray(content)
  for _ in range(rng.integers(1, 4)):
    place = int(rng.integers(len(data) + 1))
    kind = rng.integers(5)
    if kind == 0 and place < len(data):
      data[place] = int(rng.integers(256))
    elif kind == 1:
      data[place:place] = rng.bytes(int(rng.integers(1, 6)))
    elif kind == 2:
      del data[place : place + int(rng.integers(1, 30))]
    elif kind == 3:
      data[place:place] = data[place : place + int(rng.integers(1, 60))]
    elif rng.random() < 0.3:
      del data[place:]
  return bytes(data)


def read(content: bytes) -> Rows | None:
  """The rows (user, item, rating, seconds) of a file, in order; None if anything in it is not as it must be."""
  lines = [line[:-1] if line.endswith(b"\r") else line for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
  if lines and not lines[-1]:
    lines.pop()
  rows = [_fields(line) for line in lines]
  if not rows or None in rows or sorted({"user", "item", "rating", "time"} & set(rows[0])) != sorted(
      x for x in rows[0] if x in ("user", "item", "rating", "time")) or len(set(rows[0]) & {
          "user", "item", "rating", "time"}) < 4:
    return None
  places = [rows[0].index(name) for name in ("user", "item", "rating", "time")]
  try:
    return [checked([row[place] for place in places]) for row in rows[1:] if _as_wide(row, rows[0])] or None
  except (ValueError, OverflowError):
    return None


def _fields(line) -> list[str] | None:
  try:
    text = line.decode()
    if "\0" in text or not text:
      return None
    return next(csv.reader([text], strict=True)) if '"' in text else text.split(",")
  except (UnicodeDecodeError, csv.Error, StopIteration):
    return None


def _as_wide(row, header) -> bool:
  if len(row) != len(header):
    raise ValueError
  return True


def checked(fields: list[str]) -> tuple[str, str, float, int]:
  """(user, item, rating, seconds) from four texts. Raises ValueError or OverflowError: one of them is none."""
  for name in fields[:2]:
    if not name.strip() or len(name) > 200:
      raise ValueError
  rating = _number(fields[2])
  if not abs(rating) < float(np.finfo(np.float32).max):
    raise ValueError
  whole = fields[3].removeprefix("-")
  seconds = int(fields[3]) if whole.isascii() and whole.isdecimal() else math.floor(_number(fields[3]))
  if not -(2**63) <= seconds < 2**63:
    raise ValueError
  return fields[0], fields[1], float(np.float32(rating)), seconds


def _number(text) -> float:
  if "_" in text or not text.isascii():
    raise ValueError
  return float(text)
