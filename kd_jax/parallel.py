"""Compiles an epoch for the devices at hand. Nothing else knows of devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kd_jax import train
from kd_jax.base import InputError

_AXIS = "data"


@functools.cache
def compile_epoch(run: train.Run, parallel: str, batch_size: int) -> Callable:
  """`train.train_epoch` of `run` as (state, given, targets, batches, rng) -> (state, losses).

  Batches [S, B, ...] are split over all devices along B, everything else is replicated: one program
  over a mesh ("jit") or one per device with explicit sums ("pmap"). Both give one device's result.
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
