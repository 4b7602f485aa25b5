"""The names of the parts of a published split: train, valid, Test ..."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable

_WORDS = {"train": "train", "training": "train", "tr": "train", "validation": "validation", "valid": "validation",
          "val": "validation", "vali": "validation", "vad": "validation", "dev": "validation", "test": "test",
          "testing": "test", "te": "test"}
NAMES = ("train", "validation", "test")


def of_word(word: str) -> str | None:
  """The part that a word means, in any case; None if it is none."""
  return _WORDS.get(word.strip().lower())


def of_name(name: str) -> str | None:
  """The part in the name of a file, such as ml.train.inter or Valid_data.tsv; None if there is none, or several."""
  found = {part for word in re.split(r"[^A-Za-z]+", name) if (part := of_word(word))}
  return found.pop() if len(found) == 1 else None


def of_names(paths: Iterable[pathlib.Path]) -> dict[str, pathlib.Path]:
  """{part: file} of the files whose names have a part; {} if two files have the same."""
  found = [(part, path) for path in paths if (part := of_name(path.name))]
  return dict(found) if len(dict(found)) == len(found) else {}
