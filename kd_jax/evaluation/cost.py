"""What a model costs to keep and to ask: bytes, operations of a request, and its latency on this machine.

A request ranks all items for users and returns the best ones without training items. A compressed run is asked with its
unpacked parameters, so that only its bytes differ from those of the run that it was made from.
"""

from __future__ import annotations

import io
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Dataset, InputError
from kd_jax.data import index
from kd_jax.evaluation import call_times
from kd_jax.ranking.top_k import top_k
from kd_jax.teachers import warm_start

_TOP = 10
_REPEATS = {1: 200, 256: 50}  # {number of users: requests}


def measure(info: dict[str, Any], module: nn.Module, variables: dict, dataset: Dataset) -> dict[str, Any]:
  """The cost of a run, as JSON values:

    bytes_on_disk    of its parameters: of the packed form, if the run is compressed; else as arrays in one file
    bytes_in_memory  the same in memory
    flops            floating-point operations of a request of one user, as XLA counts them
    request_bytes    memory of a request of 256 users: arguments, results and temporary arrays, as XLA plans them
    latency_ms       {"1": {"p50", "p95", "p99"}, "256": ...} of requests of 1 and 256 random users

  Raises InputError if the data is streamed.
  """
  if dataset.stream is not None:
    raise InputError("`cost`: the data is streamed; a request needs all training items in memory")
  request, arguments = _request(module, variables, dataset)
  compiled = {count: request.lower(jnp.zeros(count, jnp.int32), *arguments).compile() for count in _REPEATS}
  analysis = compiled[1].cost_analysis()
  analysis = analysis[0] if isinstance(analysis, list) else analysis
  return {"bytes_on_disk": _on_disk(info, variables["params"]), "bytes_in_memory": info["bytes"],
          "flops": float(analysis["flops"]), "request_bytes": _planned(compiled[max(_REPEATS)].memory_analysis()),
          "latency_ms": {str(count): _latency(compiled[count], arguments, count, repeats, dataset.num_users)
                         for count, repeats in _REPEATS.items()}}


def _request(module, variables, dataset):
  """(compiled function of users [b] and the arguments, arguments): the best items [b, k]. Tables are computed once."""
  tables, priority = module.apply(variables, method="tables"), jnp.asarray(index.priority(dataset.item_ids))
  seen, best = jnp.asarray(_training_items(dataset)), min(_TOP, dataset.num_items)

  @jax.jit
  def request(users, variables, tables, seen, priority):
    scores = module.apply(variables, {"users": users}, tables).scores
    scores = scores.at[jnp.arange(users.shape[0])[:, None], seen[users]].set(-jnp.inf, mode="drop")
    return top_k(scores, priority, best).items

  return request, (variables, tables, seen, priority)


def _training_items(dataset) -> np.ndarray:
  """[U, H] training items of each user, padded with the number of items; none of labelled data."""
  if dataset.contexts is not None:
    return np.zeros((dataset.num_users, 0), np.int32)
  seen = index.seen_by_users(dataset)
  degrees = np.diff(seen.starts)
  found = np.full((dataset.num_users, degrees.max(initial=0)), dataset.num_items, np.int32)
  found[np.arange(found.shape[1]) < degrees[:, None]] = seen.items[: degrees.sum()]
  return found


def _on_disk(info, params) -> int:
  if "compression" in info:
    return info["compression"]["bytes_on_disk"]
  file = io.BytesIO()
  np.savez(file, **{name: np.asarray(x) for name, x in warm_start.named(params).items()})
  return file.getbuffer().nbytes


def _planned(memory) -> int:
  return int(memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes)


def _latency(compiled, arguments, count, repeats, num_users) -> dict[str, float]:
  """Percentiles in milliseconds, from users in NumPy to items in NumPy."""
  found = call_times.measure(lambda users: np.asarray(compiled(users, *arguments)), num_users, count, repeats)
  return {name: found[name] for name in (f"p{p}" for p in call_times.PERCENTILES)}
