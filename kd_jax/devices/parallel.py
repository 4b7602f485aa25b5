"""Compiles an epoch for the available devices. The other modules of training do not depend on the devices."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from kd_jax.base import InputError
from kd_jax.devices import table_sharding
from kd_jax.devices.table_sharding import AXIS, over_mesh
from kd_jax.training import graph, step


@functools.cache
def compile_epoch(run: graph.Run, parallel: str, batch_size: int) -> Callable:
  """Compiles `step.train_epoch` of `run` to (state, given, targets, batches, rng) -> (state, losses).

  Batches [S, B, ...] are split over all devices along B, and everything else is replicated. Every device processes its
  rows, and gradients are summed once per step. It is one program over a mesh ("jit") or one program per device
  ("pmap"). Both give the result of a single device, except for dropout, where every device draws its own masks. Tables
  of a run from `table_sharding.split` stay split, and XLA inserts the collectives.
  """
  check(batch_size)
  devices = jax.device_count()
  if parallel == "pmap":
    return _pmap(run, devices)
  epoch = functools.partial(step.train_epoch, run=run)
  if devices == 1:
    return jax.jit(epoch, donate_argnums=0)
  if table_sharding.is_split(run):
    return _split(epoch)
  whole, rows = over_mesh(), over_mesh(None, AXIS)
  return _compile(functools.partial(epoch, axis_name=AXIS), (whole, whole, whole, rows, whole), donate_argnums=0)


def _compile(function, shardings, **options):
  """Compiles one program for the devices of all processes. Each process passes full arguments and gets full results.

  `function` gets the share of one device and calls the collectives itself. If XLA inserted them, they could also be
  inside loops and branches, where devices could deadlock: trip counts differ per device.
  """
  specs = tuple(where.spec for where in shardings)
  shares = jax.shard_map(function, mesh=shardings[0].mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
  compiled = jax.jit(shares, in_shardings=shardings, out_shardings=over_mesh(), **options)
  if jax.process_count() == 1:
    return compiled

  def among_processes(*arguments):
    placed = [jax.tree.map(lambda x, s=s: _everywhere(x, s), x) for x, s in zip(arguments, shardings, strict=True)]
    return jax.tree.map(lambda x: x.addressable_data(0), compiled(*placed))

  return among_processes


def _split(epoch):
  """Compiles `epoch` so that parameters and targets stay split by rows."""

  @functools.partial(jax.jit, donate_argnums=0)
  def compiled(*arguments):
    state, losses = epoch(*arguments, whole=lambda tree: jax.lax.with_sharding_constraint(tree, over_mesh()))
    return jax.lax.with_sharding_constraint(state, table_sharding.by_rows(state)), losses

  return lambda state, given, targets, batches, rng: compiled(
      state, given, table_sharding.place_rows(targets), jax.device_put(batches, over_mesh(None, AXIS)), rng)


def _everywhere(x, where):
  """Turns an array that every process holds in full into a global array with the sharding `where`."""
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    return jax.random.wrap_key_data(_everywhere(jax.random.key_data(x), where))
  values = np.asarray(x)
  return jax.make_array_from_callback(values.shape, where, lambda index: values[index])


def place(tree: Any, run: graph.Run) -> Any:
  """Places `tree` as an epoch of `run` returns its state (replicated or split), so that it is not compiled twice."""
  if jax.device_count() == 1 or jax.process_count() > 1:
    return jax.tree.map(jnp.asarray, tree)
  return jax.device_put(tree, table_sharding.by_rows(tree) if table_sharding.is_split(run) else over_mesh())


def check(batch_size: int, parallel: str = "jit", split: bool = False) -> None:
  """Raises InputError if batches or tables cannot be split over the devices, or not in this mode."""
  if parallel != "jit" and jax.process_count() > 1:
    raise InputError(f"`parallel={parallel}`: several processes train with `parallel=jit`")
  if split and parallel != "jit":
    raise InputError(f"`parallel={parallel}`: `shard_tables` needs `parallel=jit`")
  if split and jax.process_count() > 1:
    raise InputError("`shard_tables`: splits tables over the devices of one process, not of several")
  if batch_size % jax.device_count():
    raise InputError(f"`batch_size={batch_size}`: not divisible by the {jax.device_count()} devices")


def _pmap(run, devices):
  epoch_of_device = functools.partial(step.train_epoch, run=run, axis_name=AXIS)
  compiled = jax.pmap(epoch_of_device, axis_name=AXIS, in_axes=(None, None, None, 1, None), out_axes=None)

  def epoch(state, given, targets, batches, rng):
    def by_device(x):
      return x.reshape(x.shape[0], devices, -1, *x.shape[2:])  # [S, devices, B / devices, ...]

    return compiled(state, given, targets, jax.tree.map(by_device, batches), rng)

  return epoch


def check_together(modes: Sequence[str]) -> None:
  """Raises InputError if runs with these modes of `parallel` cannot be trained together."""
  if len(modes) > 1 and "pmap" in modes:
    raise InputError("`parallel=pmap`: one run at a time; several at once need `parallel=jit`")


def each(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
  """[function(x) for x in items]; on a CPU in parallel threads, since XLA runs most loops on one core."""
  if len(items) < 2 or not _on_cores():
    return [function(x) for x in items]
  with futures.ThreadPoolExecutor(os.cpu_count()) as threads:
    return list(threads.map(lambda x: jax.block_until_ready(function(x)), items))


def _on_cores() -> bool:
  return jax.default_backend() == "cpu" and jax.device_count() == 1


def epochs(several: Sequence[tuple[graph.Run, tuple]], parallel: str, batch_size: int) -> list[tuple]:
  """Trains several runs for an epoch: [(run, arguments of its `compile_epoch`)] -> [(state, losses)].

  On a CPU, runs use the program of a single run, in parallel on all cores, with bitwise equal results. On other
  devices, equal runs (for example several seeds) share one program with an axis of runs (vmap); arrays that all of
  these runs share are not copied.
  """
  if len(several) == 1 or _on_cores() or any(table_sharding.is_split(run) for run, _ in several):
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
  """Stacks to [runs, ...]. Batches with fewer distinct users are padded with users of weight 0."""
  width = [max(sizes) for sizes in zip(*(x.shape for x in column), strict=True)]
  return jnp.stack([jnp.pad(x, [(0, w - n) for w, n in zip(width, x.shape, strict=True)])
                    if list(x.shape) != width else x for x in column])


@functools.cache
def _compile_together(run, structure, shared):
  """Leaves of (state, given, targets, batches, rng), stacked unless `shared`, -> (state, losses) [runs, ...]."""
  axis_name = AXIS if jax.device_count() > 1 else None

  def epoch(*leaves):
    return step.train_epoch(*structure.unflatten(leaves), run=run, axis_name=axis_name)

  vmapped = jax.vmap(epoch, in_axes=tuple(None if one else 0 for one in shared))
  if axis_name is None:
    return jax.jit(vmapped)
  whole, batches = over_mesh(), 3
  of_batches = [n == batches for n, part in enumerate(structure.children()) for _ in range(part.num_leaves)]
  where = [whole if not rows else over_mesh(None, AXIS) if one else over_mesh(None, None, AXIS)
           for rows, one in zip(of_batches, shared, strict=True)]
  return _compile(vmapped, where)
