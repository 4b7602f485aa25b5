"""Exports the model of a run as a program."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import data, registry
from kd_jax.base import InputError
from kd_jax.data import index
from kd_jax.ranking import rank
from kd_jax.serving import program
from kd_jax.storage import run_directory, sealed
from kd_jax.teachers import loading


def export_run(run: str, out: str, top_k: int, exclude_seen: bool, data_dir: str | None = None,
               cache_dir: str | None = None, allow_code: str | None = None) -> Iterator[str]:
  """Exports the best epoch of a run. Yields lines of text about the files and the latency.

  Raises InputError if there is no such run, or `top_k` is larger than the number of items.
  """
  registry.allow_code(allow_code)
  finished = run_directory.read_finished(run)
  info = finished.info
  dataset = data.load(info["data"], data_dir, cache_dir, expected=info["hashes"])
  if top_k > dataset.num_items:
    raise InputError(f"`top_k={top_k}`: the data has {dataset.num_items} items")
  recommend = _recommender(*loading.network(run, dataset), dataset, top_k, exclude_seen)
  metadata = {"model": info["model"], "data": info["data"], "synthetic": info["synthetic"],
              "hashes": dataset.hashes, "exclude_seen": exclude_seen,
              "checkpoint": finished.pin.sha256}
  program.write(out, recommend, user_ids=dataset.user_ids, item_ids=dataset.item_ids, top_k=top_k, metadata=metadata)
  size = sum(f["bytes"] for f in sealed.manifest(out, program.KIND)["files"].values())
  yield f"{out}: {info['model']}, {size:,} bytes"
  load, _ = program.load(out)
  for batch, (median, slow) in program.latency(lambda u: load(dataset.user_ids[u]), dataset.num_users).items():
    yield f"{batch} user{'s' * (batch > 1)}: {median:.3f} ms (95 %: {slow:.3f} ms), ids in, ids out"


def _recommender(module, variables, dataset, top_k, exclude_seen):
  """users [b] -> (items [b, top_k], scores [b, top_k]); weights and training items are constants of the function."""
  fixed = jax.tree.map(np.asarray, (variables, module.apply(variables, method="tables")))
  history, priority = _history(dataset), index.priority(dataset.item_ids)

  def recommend(users):
    own, tables = jax.tree.map(jnp.asarray, fixed)
    scores = module.apply(own, {"users": users}, tables).scores
    if exclude_seen:
      rows = jnp.arange(users.shape[0])[:, None]
      scores = scores.at[rows, jnp.asarray(history)[users]].set(-jnp.inf, mode="drop")
    return tuple(rank.top_k(scores, priority, top_k))

  return recommend


def _history(dataset) -> np.ndarray:
  """Training items [U, H] of all users, padded with the number of items I."""
  seen = index.seen_by_users(dataset)
  degrees = np.diff(seen.starts)
  history = np.full((dataset.num_users, max(1, degrees.max())), dataset.num_items, np.int32)
  column = np.arange(len(seen.items)) - np.repeat(seen.starts[:-1], degrees)
  history[np.repeat(np.arange(dataset.num_users), degrees), column] = seen.items
  return history
