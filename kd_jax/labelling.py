"""From a teacher's run to soft labels on disk."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import artifacts, checkpoint, data, ranking, runs, soft_labels, teachers
from kd_jax.base import InputError


def write(teacher: str, out: str, top_k: int, exclude_seen: bool, data_dir: str | None = None,
          cache_dir: str | None = None) -> dict[str, float]:
  """Ranks all items for every user with the run `teacher` and stores the `top_k` best.

  Returns the truncation report. Raises InputError, and leaves nothing, if a score is not finite or the
  catalogue is smaller than `top_k`.
  """
  info = runs.read_info(teacher)
  dataset = data.load(info["data"], data_dir, cache_dir)
  if top_k > dataset.num_items:
    raise InputError(f"--top_k={top_k}: the data has {dataset.num_items} items")
  module, variables = teachers.network(teacher, dataset)
  seen = jax.tree.map(jnp.asarray, ranking.seen_by_users(dataset))
  ranked, tail = jax.tree.map(np.asarray, ranking.network_soft_labels(
      module, variables, seen, k=top_k, exclude_seen=exclude_seen))
  provenance = {"hashes": dataset.hashes, "data": dataset.name, "model": info["model"],
                "checkpoint": artifacts.hash_file(checkpoint.newest_manifest(teacher))}
  soft_labels.write(out, [(ranked.items, ranked.scores, tail)], num_users=dataset.num_users,
                    num_items=dataset.num_items, top_k=top_k, exclude_seen=exclude_seen, provenance=provenance)
  return soft_labels.truncation(soft_labels.read(out, dataset))
