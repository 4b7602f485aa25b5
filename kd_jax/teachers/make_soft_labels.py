"""Writes the soft labels of a teacher's run to disk."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import data, registry
from kd_jax.base import InputError
from kd_jax.data import index
from kd_jax.ranking import rank
from kd_jax.storage import run_directory
from kd_jax.teachers import loading, soft_labels
from kd_jax.teachers.fitted import Fitted
from kd_jax.training import windows


def write(teacher: str | os.PathLike | Fitted, out: str | os.PathLike, top_k: int = 500, exclude_seen: bool = True,
          data_dir: str | None = None, cache_dir: str | None = None,
          allow_code: str | os.PathLike | None = None) -> dict[str, float]:
  """Ranks all items for every user with the run `teacher`, and stores the `top_k` best in the directory `out`.

  `allow_code` is the directory of a module of yours that makes the teacher's model or data: its code is executed.
  Returns `soft_labels.truncation`. Raises InputError, and leaves no file, if a score is not finite or there are fewer
  than `top_k` items.
  """
  registry.allow_code(allow_code)
  if isinstance(teacher, Fitted):
    if teacher.workdir is None:
      raise InputError("`teacher`: soft labels are written from a run directory; fit the teacher with a `workdir`")
    teacher = teacher.workdir
  run = run_directory.read_finished(teacher)
  info = run.info
  dataset = data.load(info["data"], data_dir, cache_dir, memory=info.get("data_memory", 0.0),
                      expected=info["hashes"])
  if top_k > dataset.num_items:
    raise InputError(f"`top_k={top_k}`: the data has {dataset.num_items} items")
  if exclude_seen and "privacy" in info:
    print("privacy: the teacher is private, but these lists are not: what they leave out are training items; "
          "`exclude_seen=False` keeps them")
  provenance = {"hashes": dataset.hashes, "data": dataset.name, "model": info["model"],
                "checkpoint": run.pin.sha256, **({} if exclude_seen else loading.private(info))}
  soft_labels.write(out, _ranked(teacher, dataset, top_k, exclude_seen), num_users=dataset.num_users,
                    num_items=dataset.num_items, top_k=top_k, exclude_seen=exclude_seen, provenance=provenance)
  return soft_labels.truncation(soft_labels.read(out, dataset))


def _ranked(teacher, dataset, top_k, exclude_seen) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Yields (items [n, K], scores [n, K], tail mass [n]), once for all users, or for each part of streamed data."""
  parts: Iterable[Any]
  if dataset.stream is None:
    parts = [(dataset, *loading.network(teacher, dataset), slice(None))]
  else:
    parts = windows.parts(*loading.windowed_network(teacher, dataset), dataset)
  for part, module, variables, own in parts:
    seen = jax.tree.map(jnp.asarray, index.seen_by_users(part))
    ranked, tail = jax.tree.map(np.asarray, rank.network_soft_labels(
        module, variables, seen, k=top_k, exclude_seen=exclude_seen))
    _check_lengths(ranked.items[own], np.diff(seen.starts)[own] if exclude_seen else 0, part)
    yield ranked.items[own], ranked.scores[own], tail[own]


def _check_lengths(items, excluded, dataset) -> None:
  """Raises InputError if a list is shorter than it must be: then scores are -inf."""
  wanted = np.minimum(items.shape[1], dataset.num_items - excluded)
  if ((items >= 0).sum(axis=1) < wanted).any():
    raise InputError("`teacher`: its scores are not finite; nothing was written")
