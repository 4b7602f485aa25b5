"""The TFDS builder for every data set. Columns are stored as array_record blocks, and read without TensorFlow."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from kd_jax.base import InputError

SPLITS = ("train", "validation", "test", "users", "items",  # "users" and "items" hold the ids of the source
          "user_features", "item_features")  # only if the data set has features
COLUMNS = {"users": np.int32, "items": np.int32, "ratings": np.float32, "timestamps": np.int64,
           "ids": np.str_, "contexts": np.int32}
TABLES = {"categories": np.int32, "vectors": np.float32}  # 2-D columns
BLOCK = 8192  # rows per example; with one row per example, writing is 50 times slower and reading 1,000 times
_NAME, _VERSION = "recommender_log", "1.0.0"
_CLASSES = {f"{x.__module__}.{x.__name__}" for x in (tfds.features.FeaturesDict, tfds.features.Tensor)}

Columns = dict[str, np.ndarray]  # an absent column of COLUMNS or TABLES is stored empty


class RecommenderLog(tfds.core.GeneratorBasedBuilder):
  """Blocks of interactions, ids and features, in order. Set `contents` before preparing."""

  VERSION = tfds.core.Version(_VERSION)
  BUILDER_CONFIGS = []  # noqa: RUF012 - tfds reads it as a class attribute
  contents: dict[str, Columns]

  def _info(self):
    # As bytes: as numbers of a protocol buffer, they are converted one by one. Texts cannot be bytes.
    columns = {name: tfds.features.Tensor(shape=(None,), dtype=dtype, encoding=tfds.features.Encoding.NONE if
                                          dtype is np.str_ else tfds.features.Encoding.BYTES)
               for name, dtype in COLUMNS.items()}
    columns |= {name: tfds.features.Tensor(shape=(None, None), dtype=dtype, encoding=tfds.features.Encoding.ZLIB)
                for name, dtype in TABLES.items()}
    features = tfds.features.FeaturesDict(columns)
    info = tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)
    info.initialize_from_bucket = lambda: None  # the original looks for a copy online and leaves an empty folder
    return info

  def _split_generators(self, dl_manager):
    del dl_manager  # its archive readers need TensorFlow; sources.py finds the files instead
    return {split: self._generate_examples(columns) for split, columns in self.contents.items()}

  def _generate_examples(self, columns):
    length = max(map(len, columns.values()))
    for start in range(0, max(1, length), BLOCK):  # an empty split has one empty block
      block = {name: np.zeros(0, object if dtype is np.str_ else dtype) for name, dtype in COLUMNS.items()}
      block |= {name: np.zeros((0, 0), dtype) for name, dtype in TABLES.items()}
      yield start, block | {name: column[start : start + BLOCK] for name, column in columns.items()}


def write_splits(folder: pathlib.Path, name: str, contents: dict[str, Columns]) -> None:
  """Prepares the data set in `folder`, as the TFDS configuration `name`. Raises InputError or OSError: a full disk."""
  try:
    with _quiet():
      config = tfds.core.BuilderConfig(name=name, version=_VERSION)
      builder = RecommenderLog(config=config, data_dir=folder)
      builder.contents = contents
      builder.download_and_prepare(file_format="array_record")  # the default, tfrecord, needs TensorFlow
  except RuntimeError as error:  # of array_record, for example if the disk is full
    raise InputError(f"`cache_dir`: cannot write {folder}: {' '.join(str(error).split())}") from error


def read_split(folder: pathlib.Path, name: str, split: str) -> Columns:
  """The columns of one split; files of other splits are not opened. Ids are str, absent columns are empty.

  Folders that an earlier version prepared may lack newer columns.
  """
  blocks = list(read_blocks(folder, name, split))
  empty = {name: np.zeros(0, dtype) for name, dtype in COLUMNS.items()}
  columns = empty | {column: np.concatenate([block[column] for block in blocks]) for column in blocks[0]}
  return columns | {"ids": np.array([i.decode() for i in columns["ids"]], np.str_)}


def read_blocks(folder: pathlib.Path, name: str, split: str) -> Iterator[Columns]:
  """Yields the columns of one split, at most BLOCK rows at a time. Call `check_classes` before."""
  yield from tfds.builder_from_directory(folder / below(name)).as_data_source(split=split)


def below(name: str) -> str:
  """The path of all files of the data set in its folder."""
  return f"{_NAME}/{name}/{_VERSION}/"


def check_classes(folder: pathlib.Path, name: str) -> None:
  """Raises InputError if features.json names a class that `RecommenderLog` does not use: tfds would import it."""
  path = folder / below(name) / "features.json"
  try:
    named = set(_classes(json.loads(path.read_bytes())))
  except (OSError, ValueError, RecursionError) as error:
    raise InputError(f"{path}: not a description of features: {' '.join(str(error).split())[:160]}") from None
  if foreign := sorted(map(str, named - _CLASSES)):
    raise InputError(f"{path}: names {foreign[0][:100]!r}, which kd_jax does not write; it is not imported")


def _classes(value: Any) -> Iterator[str]:
  """The names of all classes in the content of features.json: in the current form of tfds and in its older one."""
  if isinstance(value, dict):
    yield from (str(value[key]) for key in ("pythonClassName", "python_class_name", "type") if key in value)
    value = list(value.values())
  for part in value if isinstance(value, list) else ():
    yield from _classes(part)


def split_of(path: str) -> str | None:
  """The split that a file of the data set belongs to; None for metadata files."""
  return next((split for split in SPLITS if f"/{_NAME}-{split}." in f"/{path}"), None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Hides the progress bars and log messages of tfds."""
  logger = logging.getLogger("absl")
  level = logger.level
  logger.setLevel(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logger.setLevel(level)
