"""Mutated small files in every layout: a clear line, or exactly the rows of an own reader, and no row is lost."""

import collections
import pathlib

import numpy as np
import pytest

from kd_jax.base import InputError
from kd_jax.fault import layouts

CASES = 800  # scripts/torture.py --cases=files=200000 runs 52,000


def test_mutated_files_give_the_reference_rows_or_a_clear_line(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  ended, forms = collections.Counter(), collections.Counter()
  for number in range(CASES):
    form, content, name = layouts.drawn(np.random.default_rng([1, number]))
    path = layouts.write(name, content)
    try:
      wrong = layouts.judged(path, form, content)
      ended["right"] += 1
    except InputError as error:
      wrong = "" if "\n" not in str(error) and (name in str(error) or "`data`" in str(error)) else str(error)
      ended["refused"] += 1
    assert not wrong, (number, form, name, content, wrong)
    forms[form.layout, form.mark, form.header] += 1
  assert min(ended.values()) > CASES / 4 and len(forms) > 18  # both ends, and every layout and separator


FORM = layouts.Form
KNOWN = [
    (FORM(""), b"user,item,rating,time\nu,i,1,5\nx\n", [("u", "i", 1.0, 5)], 1),
    (FORM("", "::", False), b"u::i::1::5\n", [("u", "i", 1.0, 5)], 0),
    (FORM("", ",", False, 1), b"x\nu,i,1,5\nu,i,1\n", [("u", "i", 1.0, 5)], 1),
    (FORM("", ",", False, 0, False), b'"u,i,1,5\n', [('"u', "i", 1.0, 5)], 0),
    (FORM("json"), b'{"user":1,"item":"a","rating":2,"time":3}\n{}\n[', [("1", "a", 2.0, 3)], 2),
    (FORM("user items"), b"u 1 2\n\nv\n", [("u", "1"), ("u", "2")], 1),
    (FORM("count items"), b"2 1 2\n3 1\n0\n1 9", [("0", "1"), ("0", "2"), ("3", "9")], 1),
    (FORM("user item:rating"), b"u 1:2 2:x\nv 3\n", [("u", "1", 2.0)], 2)]


@pytest.mark.parametrize(("form", "content", "rows", "bad"), KNOWN)
def test_the_own_reader(form, content, rows, bad):
  assert layouts.reference(content, form) == layouts.Reference(rows, bad)


def test_a_wrong_reading_is_noticed(tmp_path, monkeypatch):
  """What the test above would say if a row were lost, added or changed."""
  path = tmp_path / "x.csv"
  path.write_bytes(b"user,item,rating,time\nu,i,1,5\nv,i,2,6\n")
  assert layouts.judged(path, FORM(""), path.read_bytes()) == ""
  for other in (b"u,i,1,5\nv,i,2,7\n", b"u,i,1,5\n", b"u,i,1,5\nv,i,2,6\nw,i,2,6\n", b"u,i,1,5\nv,i,2,6\nx\n"):
    assert layouts.judged(path, FORM(""), b"user,item,rating,time\n" + other) != ""
  assert pathlib.Path(path).exists()
