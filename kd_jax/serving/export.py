"""Exports the model of a run as one directory."""

from __future__ import annotations

import datetime
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import data, registry
from kd_jax.base import Dataset, InputError
from kd_jax.compression import quantise
from kd_jax.data import index
from kd_jax.evaluation import protocols, sealed_report
from kd_jax.ranking import rank
from kd_jax.serving import approximate, as_onnx, as_stablehlo, card, layout, loading, network, new_items
from kd_jax.serving.network import Network
from kd_jax.storage import run_directory, sealed
from kd_jax.teachers import loading as runs

HISTORIES = ("train+validation", "train")
_GOLDEN, _LISTED = 16, 10  # users whose answers are stored, and the length of their lists
_COMPARED = 1000  # users for whom lists of int8, or of an index, are compared with exact ones


class _Made(NamedTuple):
  """What is exported: the data as the model reads it when it is served, the network, and answers of the training code.
  """

  dataset: Dataset
  network: Network
  weights: dict[str, np.ndarray]  # as they are stored
  golden: dict[str, np.ndarray]
  measured: dict[str, float]  # of compression
  model: tuple[Any, dict[str, Any]]  # module and variables


def export_run(run: str | os.PathLike, out: str | os.PathLike, *, formats: str = "stablehlo",
               history: str = HISTORIES[0], exclude_seen: bool = True, compress: str = "", approximately: str = "",
               titles: str | os.PathLike | None = None, data_dir: str | os.PathLike | None = None,
               cache_dir: str | os.PathLike | None = None,
               allow_code: str | os.PathLike | None = None) -> Iterator[str]:
  """Exports the best epoch of a run to the directory `out`. Yields lines of text about the files.

  `formats` are names from `layout.FORMATS`, separated by commas. `history` says what is known of a user: it is read by
  models of sequences and sets, and with `exclude_seen` it is excluded from the lists. `compress` is "int8()" or "";
  `approximately` is "hnsw" or "": an index of the item vectors. `titles` is a CSV file with columns item, title.

  Raises InputError if there is no such run, an option is wrong, or the model cannot be written in a format.
  """
  registry.allow_code(allow_code)
  chosen = _options(formats, history, compress, approximately)
  names = {} if titles is None else card.read_titles(titles)
  finished = run_directory.read_finished(run)
  info = finished.info
  dataset = protocols.with_history(data.load(info["data"], data_dir, cache_dir, expected=info["hashes"]), history)
  made = _make(run, dataset, chosen, exclude_seen, compress, approximately)
  metadata = _metadata(finished, made, chosen) | {
      "history": history, "exclude_seen": exclude_seen, "compress": compress}
  with sealed.writing(out, layout.KIND, metadata) as folder:
    metadata |= _write(folder, made, chosen, approximately, {x: names[x] for x in dataset.item_ids if x in names})
    card.write(folder, metadata, finished, sealed_report.read(run, "test"))
  for name in chosen:
    loading.load(out, name, trial=False)
  size = sum(file["bytes"] for file in sealed.manifest(out, layout.KIND)["files"].values())
  yield (f"{out}: {info['model']} as {', '.join(chosen)}, {size:,} bytes; {len(made.golden['users'])} stored answers "
         "agree")


def _options(formats, history, compress, approximately) -> list[str]:
  chosen = [name.strip() for name in formats.split(",")]
  for name in chosen:
    if name not in layout.FORMATS or chosen.count(name) > 1:
      raise InputError(f"`format={formats}`: choose from {', '.join(layout.FORMATS)}, each at most once")
  for name, value, known in (("history", history, HISTORIES), ("compress", compress, ("", "int8()")),
                             ("index", approximately, ("", "hnsw"))):
    if value not in known:
      raise InputError(f"`{name}={value}`: choose from {', '.join(filter(None, known))}")
  return chosen


def _make(run, dataset, formats, exclude_seen, compress, approximately) -> _Made:
  module, variables = runs.network(run, dataset)
  made = network.of(module, variables, dataset.num_users)
  if made.inputs != layout.QUERY:
    for name, value in (("format", next((x for x in formats if x != "stablehlo"), "")), ("compress", compress),
                        ("index", approximately)):
      if value:
        raise InputError(f"`{name}={value}`: only for models whose scores are inner products of a user's and an item's "
                         f"vector, and {type(module).__name__} has no vectors of users")
  golden = _golden(rank.scorer(module, variables), dataset, exclude_seen)
  if not compress:
    return _Made(dataset, made, made.weights, golden, {}, (module, variables))
  small = _in_int8(made.weights)
  user, item = (layout.table(small, name) for name in ("user", "item"))
  overlap = _overlap((made.weights["user"], made.weights["item"]), (user, item), min(_LISTED, dataset.num_items))
  made = made._replace(score=lambda weights, query: query @ layout.table(weights, "item").T)
  golden = _golden(lambda users: jnp.asarray(user[users] @ item.T), dataset, exclude_seen)
  return _Made(dataset, made, small, golden, {f"overlap@{_LISTED}": overlap}, (module, variables))


def _in_int8(tables) -> dict[str, np.ndarray]:
  """Tables of vectors as `layout.table` reads them, with the numbers of scripts/compress.py."""
  packed = quantise.int8().pack(tables, {})
  return {name: parts["codes"] for name, parts in packed.items()} | {
      f"{name}_scale": quantise.from_bfloat16(parts["scales"]) for name, parts in packed.items()}


def _golden(scorer, dataset, exclude_seen) -> dict[str, np.ndarray]:
  """Lists by the training code for some users who have a history, if there are any."""
  known, length = index.seen_in(dataset), min(_LISTED, dataset.num_items)
  users = np.unique(known.users) if len(known.users) else np.arange(dataset.num_users)
  users = users[np.unique(np.linspace(0, len(users) - 1, _GOLDEN).astype(np.int32))].astype(np.int32)
  scores = np.array(scorer(users))
  if exclude_seen:
    for row, user in enumerate(users):
      scores[row, known.items[known.users == user]] = -np.inf
  found = rank.top_k(jnp.asarray(scores), index.priority(dataset.item_ids), length)
  return dict(zip(layout.GOLDEN, (users, *map(np.asarray, found)), strict=True))


def _overlap(exact, other, k) -> float:
  """The mean share of the `k` best items [k] of some users that two pairs of tables of users and items share."""
  users = np.unique(np.linspace(0, len(exact[0]) - 1, _COMPARED).astype(np.int32))
  shares = []
  for user in users:
    one, two = (np.argpartition(-(table @ query[user]), k - 1)[:k] for query, table in (exact, other))
    shares.append(len(np.intersect1d(one, two)) / k)
  return float(np.mean(shares))


def _metadata(finished, made, formats) -> dict[str, Any]:
  info, dataset = finished.info, made.dataset
  return {"version": layout.VERSION, "formats": formats, "inputs": made.network.inputs, "length": made.network.length,
          "model": info["model"], "parameters": info["parameters"],
          "data": run_directory.without_directories(info["data"]), "synthetic": info["synthetic"],
          "hashes": dataset.hashes, "checkpoint": finished.pin.sha256, "epoch": finished.result["best_epoch"],
          "users": dataset.num_users, "items": dataset.num_items,
          "interactions": len(index.seen_in(dataset).users), "written": datetime.date.today().isoformat(),
          "kd_jax": run_directory.version("kd_jax"), "jax": jax.__version__, "measured": made.measured,
          **runs.private(info)}


def _write(folder: pathlib.Path, made: _Made, formats, approximately, titles) -> dict[str, Any]:
  """Writes everything but the card. Returns what the manifest says of it."""
  dataset, weights, program = made.dataset, made.weights, []
  if "stablehlo" in formats:
    read = as_stablehlo.write(folder / layout.PROGRAMS["stablehlo"], made.network.score, weights, made.network.shapes)
    weights, program = weights if made.network.inputs == layout.QUERY else read, list(read)
  tower = new_items.write(folder / layout.TOWER, *made.model)
  weights = weights | (tower["weights"] if tower else {})
  layout.write_ids(folder, dataset.user_ids.tolist(), dataset.item_ids.tolist(), titles)
  layout.write_arrays(folder, weights, _histories(dataset) | {
      "popularity": dataset.item_popularity(), "priority": index.priority(dataset.item_ids)}, made.golden)
  if "onnx" in formats:
    as_onnx.write(folder, weights)
  same = (name for name, x in weights.items() if made.network.vectors is not None and (
      name == "item" or np.array_equal(x, made.network.vectors)))
  return {"weights": list(weights), "program": program, "vectors": next(same, None),
          "index": _index(folder, made) if approximately else None,
          "tower": tower and tower | {"weights": list(tower["weights"])}}


def _index(folder, made) -> dict[str, float]:
  user, item = (layout.table(made.weights, name) for name in ("user", "item"))
  made_index = approximate.build(item, folder / layout.INDEX)
  queries = user[np.unique(np.linspace(0, len(user) - 1, _COMPARED).astype(np.int32))]
  k = min(_LISTED, len(item))
  return {f"recall@{k}": approximate.recall(made_index, queries, item, k)}


def _histories(dataset) -> dict[str, np.ndarray]:
  """The known items of all users in compressed sparse rows: in the order of time, if the data has times."""
  known = index.seen_in(dataset)
  order = np.argsort(known.users, kind="stable") if known.timestamps is None else np.lexsort(
      (known.timestamps, known.users))
  starts = np.searchsorted(known.users[order], np.arange(dataset.num_users + 1))
  return {"history_starts": starts, "history_items": known.items[order]}
