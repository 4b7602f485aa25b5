"""Recommends to all users of an export, in parts that are Parquet files; a part that is there is not made again."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Iterator

from kd_jax.base import InputError
from kd_jax.serving import loading
from kd_jax.serving.recommender import Recommender
from kd_jax.serving.requests import Request
from kd_jax.serving.timing import peak_memory
from kd_jax.storage import sealed

_ABOUT = "about.json"
_BATCH = 256  # users whose scores are in memory


def write(export: str | os.PathLike, out: str | os.PathLike, *, k: int = 10, part: int = 65_536,
          format: str | None = None, index: bool = False) -> Iterator[str]:
  """Writes `k` items for every user to OUT/part-NNNNN.parquet, `part` users in a file: user, items, scores, source.

  Yields a line of text for each part, and one with the rate and the peak memory of this process. The same call
  continues after an interruption. Raises InputError: the export is refused, pyarrow is not installed, or OUT holds
  parts of another export or with other options.
  """
  try:
    import pyarrow  # noqa: F401
  except ImportError:
    raise InputError("`out`: writing Parquet needs pyarrow: pip install pyarrow") from None
  recommender, folder = loading.load(export, format, index=index), pathlib.Path(out)
  users = recommender.contents.user_ids
  about = {"export": recommender.contents.sha256, "k": k, "part": part, "users": len(users), "index": index}
  with sealed.reporting(folder):
    folder.mkdir(parents=True, exist_ok=True)
    with sealed.lock(folder):
      _claim(folder, about)
      made, begun = 0, time.perf_counter()
      for number, start in enumerate(range(0, len(users), part)):
        path = folder / f"part-{number:05d}.parquet"
        done = path.exists()
        if not done:
          _write_part(path, recommender, users[start : start + part], k)
          made += len(users[start : start + part])
        yield f"{path}: {'was there' if done else f'{min(part, len(users) - start):,} users'}"
      seconds = time.perf_counter() - begun
      yield (f"{made:,} users in {seconds:.1f} s, {made / seconds:,.0f} a second; peak memory "
             f"{1024 * peak_memory() / 1e9:.2f} GB")


def _claim(folder, about):
  """Checks that the parts in the folder are of the same call, or notes that they will be."""
  path = folder / _ABOUT
  if not path.exists():
    if [x for x in folder.iterdir() if not x.name.startswith(".")]:
      raise InputError(f"`out={folder}`: not empty, and {_ABOUT} is missing")
    sealed.write_json_atomic(path, about)
    return
  try:
    before = sealed.from_json(path.read_bytes())
  except (ValueError, RecursionError) as error:
    raise InputError(f"{path}: not JSON: {error}") from None
  if before != about:
    raise InputError(f"`out={folder}`: holds the lists of another export, or with other options; choose another one")


def _write_part(path: pathlib.Path, recommender: Recommender, users: list[str], k: int) -> None:
  """Streams the lists of these users to a file, which has its name when it is whole."""
  import pyarrow
  from pyarrow import parquet

  schema = pyarrow.schema([("user", pyarrow.string()), ("items", pyarrow.list_(pyarrow.string())),
                           ("scores", pyarrow.list_(pyarrow.float32())), ("source", pyarrow.string())])
  temporary = path.with_name(f".{path.name}.tmp")
  with parquet.ParquetWriter(temporary, schema) as writer:
    for start in range(0, len(users), _BATCH):
      batch = users[start : start + _BATCH]
      found = recommender.recommend_many([Request(user, k=k) for user in batch])
      writer.write_table(pyarrow.table([batch, *([getattr(x, name) for x in found] for name in (
          "items", "scores", "source"))], schema=schema), row_group_size=_BATCH)
  os.replace(temporary, path)
