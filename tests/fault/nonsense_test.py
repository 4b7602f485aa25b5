"""The nonsense that scripts and readers are given covers what it should, and the own reader of tables is right."""

import collections

import numpy as np
import pytest

from kd_jax import registry
from kd_jax.fault import csv_files, nonsense

HEAD = b"user,item,rating,time\n"
TABLES = {
    b"u,i,1,5\n": [("u", "i", 1.0, 5)], b"u,i,1,5": [("u", "i", 1.0, 5)], b"u,i,1,5\r\n001,i,.5,-1\r\n": [
        ("u", "i", 1.0, 5), ("001", "i", 0.5, -1)], b'"a,b","c""d",1,1.9\n': [("a,b", 'c"d', 1.0, 1)],
    b" 1,NA,1e3,0\n": [(" 1", "NA", 1000.0, 0)], b"9007199254740993,i,1,9223372036854775807\n": [
        ("9007199254740993", "i", 1.0, 9223372036854775807)],
    b"": None, b"u,i,1\n": None, b"u,i,1,5,6\n": None, b"\n": None, b"u,,1,5\n": None, b" ,i,1,5\n": None,
    b"u,i,nan,5\n": None, b"u,i,1e39,5\n": None, b"u,i,1_0,5\n": None, b"u,i,1,9223372036854775808\n": None,
    b"u,i,1,inf\n": None, b"\xff,i,1,5\n": None, b"a\0,i,1,5\n": None, b'"a,i,1,5\n': None, b'a"b"c,i,1,5\n': [
        ('a"b"c', "i", 1.0, 5)], b"u" * 201 + b",i,1,5\n": None, "u,i,٣,5\n".encode(): None}


@pytest.mark.parametrize("rows", TABLES)
def test_the_own_reader_of_tables(rows):
  assert csv_files.read(HEAD + rows) == TABLES[rows]


def test_columns_are_found_by_their_names():
  assert csv_files.read(b"time,x,item,rating,user\n3,y,i,2,u\n") == [("u", "i", 2.0, 3)]
  for header in (b"user,item,rating\n", b"user,user,item,rating,time\n", b"a,b,c,d\n", b""):
    assert csv_files.read(header + b"u,i,1,5\n") is None


def test_half_of_the_tables_are_right_and_many_are_not():
  found = [csv_files.read(csv_files.table(np.random.default_rng(seed))) for seed in range(300)]
  assert 100 < sum(x is not None for x in found) < 250


def test_calls_are_mostly_of_known_parts_and_often_well_formed():
  well = collections.Counter()
  for seed in range(400):
    text = nonsense.call(np.random.default_rng(seed), "losses")
    try:
      registry.parse("losses", text, "kd")
    except ValueError as error:  # InputError
      well["\n" not in str(error) or "\n" in text] += 1
    else:
      well["parsed"] += 1
  assert well["parsed"] > 40 and well[True] > 100
