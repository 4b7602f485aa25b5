"""Columns of text become codes and numbers as Python's own dictionary, int and float make them."""

import itertools
import pathlib

import numpy as np
import pyarrow as pa
import pytest

from kd_jax.base import InputError
from kd_jax.data import parsing
from kd_jax.data.formats import checked, raw
from kd_jax.data.formats.checked import Block

WORDS = (["7", "0", "12", "7", "999999999999999999"], ["07", "7", "0", "00"], ["-1", "1", "-1"], ["1.0", "1", "1.0"],
         ["9223372036854775808", "1"], ["", "1", ""], ["٣", "3", "x"], ["1", None, "1"], [], ["1/2", "12"])


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("cuts", [(), (1,), (2, 2)])
def test_equal_texts_have_one_code_in_the_order_of_their_first_rows(words, cuts):
  bounds = [0, *cuts, len(words)] if max(cuts, default=0) <= len(words) else [0, len(words)]
  parts = [words[a:b] for a, b in itertools.pairwise(bounds)]
  known = {}
  expected = [known.setdefault(word or "", len(known)) for word in words]
  for kind in (pa.string(), pa.large_string()):
    whole = pa.array(["x", *words, "y"], kind)[1:-1]  # a slice: its texts do not begin at byte 0
    for column in (whole, pa.chunked_array([pa.array(part, kind) for part in parts], kind)):
      codes, texts = checked.encoded(column)
      assert codes.tolist() == expected and texts.to_pylist() == list(known)


def test_blocks_with_and_without_padded_ids_are_joined():
  blocks = [["1", "2", "1"], ["01", "2", "a"], ["3", "1", "01"]]
  halves = pa.array(["0.5"] * 3)
  found = checked.collect(pathlib.Path("x"), [Block(np.arange(3), [pa.array(x), halves]) for x in blocks],
                          [parsing.KINDS["users"], parsing.KINDS["ratings"]])
  codes, texts = found.columns["users"]
  assert codes.dtype == np.int32 and [texts[code] for code in codes] == [*itertools.chain(*blocks)]
  assert len(set(texts)) == len(texts) == 5
  assert found.columns["ratings"].tolist() == [0.5] * 9


@pytest.mark.parametrize("name, text", [(name, text) for name in ("ratings", "timestamps") for text in (
    "1", "-0", "007", "1.", ".5", "-.25", "4.999999999", "1e3", "0.1", "-", ".", "", "--1", "1-2", "1/2", "1.2.3", " 1",
    "9223372036854775807", "9223372036854775808", "1.5", "nan")])
def test_a_number_in_a_column_is_that_of_its_own(name, text):
  kind = parsing.KINDS[name]
  blocks = [Block(np.arange(1, 3), [pa.array(["u", "v"]), pa.array(["3", text])])]
  try:
    value = kind.read(text)
  except ValueError:
    with pytest.raises(InputError, match="x:2"):
      checked.collect(pathlib.Path("x"), blocks, [parsing.KINDS["users"], kind])
    return
  found = checked.collect(pathlib.Path("x"), blocks, [parsing.KINDS["users"], kind]).columns[name]
  assert found.dtype == kind.dtype and found.tolist() == [3, kind.dtype(value)]


@pytest.mark.parametrize("before", [0, 1, raw.LONGEST // 2 - 1, raw.LONGEST // 2, raw.LONGEST - 7])
def test_a_line_is_too_long_wherever_it_begins(tmp_path, before):
  path = tmp_path / "x.csv"
  for length, good in ((raw.LONGEST - 2, True), (raw.LONGEST - 1, False)):  # with its end, one byte more
    path.write_bytes(b"a" * before + b"\n" + b"b" * length + b"\nc\n")
    if good:
      assert b"".join(piece for _, piece in raw.pieces(path)) == path.read_bytes()
    else:
      with pytest.raises(InputError, match=r"x\.csv:2: the line is longer than"):
        list(raw.pieces(path))
