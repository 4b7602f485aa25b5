"""Compiles an epoch for the devices at hand. Nothing else knows of devices."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kd_jax import train
from kd_jax.base import InputError

_AXIS = "data"


@functools.cache
def compile_epoch(run: train.Run, parallel: str, batch_size: int) -> Callable:
  """`train.train_epoch` of `run` as (state, given, targets, batches, rng) -> (state, losses).

  Batches [S, B, ...] are split over all devices along B, everything else is replicated: one program
  over a mesh ("jit") or one per device with explicit sums ("pmap"). Both give one device's result, but for
  dropout of rows with pmap: every device draws the same mask for its rows.
  """
  check(batch_size)
  devices = jax.device_count()
  if parallel == "pmap":
    return _pmap(run, devices)
  epoch = functools.partial(train.train_epoch, run=run)
  if devices == 1:
    return jax.jit(epoch, donate_argnums=0)
  whole, rows = _sharding(), _sharding(None, _AXIS)
  return jax.jit(epoch, in_shardings=(whole, whole, whole, rows, whole), out_shardings=whole, donate_argnums=0)


def _sharding(*axes) -> NamedSharding:
  return NamedSharding(Mesh(np.array(jax.devices()), (_AXIS,)), PartitionSpec(*axes))


def replicate(tree: Any) -> Any:
  """A copy on every device: where an epoch leaves its state, so that the second one compiles nothing."""
  return tree if jax.device_count() == 1 else jax.device_put(tree, _sharding())


def check(batch_size: int) -> None:
  """Raises InputError if a batch cannot be split over the devices."""
  if batch_size % jax.device_count():
    raise InputError(f"--batch_size={batch_size}: not divisible by the {jax.device_count()} devices")


def _pmap(run, devices):
  step = functools.partial(train.train_epoch, run=run, axis_name=_AXIS)
  compiled = jax.pmap(step, axis_name=_AXIS, in_axes=(None, None, None, 1, None), out_axes=None)

  def epoch(state, given, targets, batches, rng):
    by_device = lambda x: x.reshape(x.shape[0], devices, -1, *x.shape[2:])  # [S, devices, B / devices, ...]
    return compiled(state, given, targets, jax.tree.map(by_device, batches), rng)

  return epoch


def check_together(number: int, parallel: str) -> None:
  """Raises InputError if so many runs cannot be trained at once."""
  if number > 1 and parallel == "pmap":
    raise InputError("--parallel=pmap: one run at a time; several at once need --parallel=jit")


def each(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
  """[function(x) for x in items]; side by side on the cores of a CPU, since XLA runs most loops on one core."""
  if len(items) < 2 or not _on_cores():
    return [function(x) for x in items]
  with futures.ThreadPoolExecutor(os.cpu_count()) as threads:
    return list(threads.map(lambda x: jax.block_until_ready(function(x)), items))


def _on_cores() -> bool:
  return jax.default_backend() == "cpu" and jax.device_count() == 1


def epochs(several: Sequence[tuple[train.Run, tuple]], parallel: str, batch_size: int) -> list[tuple]:
  """An epoch of several runs at once: (run, arguments of its `compile_epoch`) -> its (state, losses).

  On a CPU the same program as for one run, on all cores, with the same bits. On other devices equal runs, as those of
  several seeds are, are one program with an axis of runs; what is one array in all of them stays one.
  """
  if len(several) == 1 or _on_cores():
    return jax.block_until_ready(each(lambda x: compile_epoch(x[0], parallel, batch_size)(*x[1]), several))
  check(batch_size)
  results = {}
  for run in dict.fromkeys(run for run, _ in several):
    places = [place for place, (other, _) in enumerate(several) if other == run]
    if len(places) == 1:
      results[places[0]] = compile_epoch(run, parallel, batch_size)(*several[places[0]][1])
      continue
    leaves, structure = zip(*(jax.tree.flatten(several[place][1]) for place in places), strict=True)
    columns = list(zip(*leaves, strict=True))
    shared = tuple(all(x is column[0] for x in column) for column in columns)
    stacked = [column[0] if one else _stack(column) for one, column in zip(shared, columns, strict=True)]
    made = _compile_together(run, structure[0], shared)(*stacked)
    results |= {place: jax.tree.map(lambda x, n=n: x[n], made) for n, place in enumerate(places)}
  return jax.block_until_ready([results[place] for place in range(len(several))])


def _stack(column):
  """[runs, ...]; a batch with fewer distinct users is padded with users of weight 0, as it is anyway."""
  width = [max(sizes) for sizes in zip(*(x.shape for x in column), strict=True)]
  return jnp.stack([jnp.pad(x, [(0, w - n) for w, n in zip(width, x.shape, strict=True)])
                    if list(x.shape) != width else x for x in column])


@functools.cache
def _compile_together(run, structure, shared):
  """Leaves of (state, given, targets, batches, rng), stacked unless `shared`, -> (state, losses) [runs, ...]."""
  epoch = lambda *leaves: train.train_epoch(*structure.unflatten(leaves), run=run)
  vmapped = jax.vmap(epoch, in_axes=tuple(None if one else 0 for one in shared))
  if jax.device_count() == 1:
    return jax.jit(vmapped)
  whole, batches = _sharding(), 3
  of_batches = [n == batches for n, part in enumerate(structure.children()) for _ in range(part.num_leaves)]
  where = [whole if not rows else _sharding(None, _AXIS) if one else _sharding(None, None, _AXIS)
           for rows, one in zip(of_batches, shared, strict=True)]
  return jax.jit(vmapped, in_shardings=where, out_shardings=whole)
