"""Times the kernels of a run separately, and compares them with a lower bound for this machine, see `interleave`.

The lower bound (roofline) is the larger of two times: the operations of the matrix products at the rate of the fastest
matrix product, and the minimum memory traffic at the bandwidth of a stream of the same size. Both rates are measured.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Dataset
from kd_jax.bench import interleave, roofline
from kd_jax.bench.epoch import machine as machine  # re-exported
from kd_jax.data import index
from kd_jax.evaluation import protocols
from kd_jax.objectives.bpr import bpr
from kd_jax.optimizers.adam import adam
from kd_jax.ranking import rank
from kd_jax.teachers import loading
from kd_jax.training import batches

_K = 100  # soft labels per user
_LISTED = 200  # items that a student ranks
_CANDIDATES = 300  # items per user that a teacher scores
_LAYERS, _DIM = 3, 64  # of LightGCN
_FLOAT = 4  # bytes of a float32 or an int32


class Kernel(NamedTuple):
  """A function to time, and its minimum work."""

  run: Callable[[], Any]
  flops: int  # operations of matrix products
  bytes: int  # minimum memory traffic, read and written
  held: int  # bytes of the working set


def works(dataset: Dataset, settings: interleave.Settings) -> dict[str, Callable[[], interleave.Repeat]]:
  """{name of a task: function that prepares it}. The measurements are `needed`, a lower bound in seconds, and
  `products`, the part of it for matrix products. Models are untrained, since times do not depend on training."""
  student, teacher = (_built(model, dataset) for model in (settings.model, settings.teacher_model))
  seen = jax.tree.map(jnp.asarray, index.seen_by_users(dataset))
  rate, bandwidth = functools.cache(roofline.rate), functools.cache(roofline.bandwidth)
  kernels = {
      f"negatives of {len(dataset.train.users):,} interactions": lambda: _negatives(dataset, seen),
      "gradient of BPR, an epoch's": lambda: _gradients(dataset, student, settings.batch_size),
      "Adam, an epoch's": lambda: _adam(dataset, student, settings.batch_size),
      "ranks of held-out items": lambda: _ranks(dataset, student),
      f"the student's best {_LISTED} of every user": lambda: _listed(dataset, student, seen),
      f"soft labels: the teacher's best {_K}": lambda: _soft_labels(dataset, teacher, seen),
      f"the teacher's scores of {_CANDIDATES} a user": lambda: _scores(dataset, teacher),
      f"LightGCN's {_LAYERS} layers of {_DIM}, a step's": lambda: _propagation(dataset)}

  def prepare(make):
    kernel = make()
    products = kernel.flops / rate()
    needed = {"needed": max(products, kernel.bytes / bandwidth(kernel.held)), "products": products}

    def once():
      jax.block_until_ready(kernel.run())
      return needed

    return once

  return {name: functools.partial(interleave.timed, functools.partial(prepare, make)) for name, make in kernels.items()}


def _built(model, dataset):
  """An untrained model: (module, variables)."""
  module = loading.build_model(model, dataset)
  constants = {"constants": jax.tree.map(jnp.asarray, loading.constants(module, dataset))}
  example = {"users": jnp.zeros(1, jnp.int32), "items": jnp.zeros((1, 2), jnp.int32)}
  params = module.apply(constants, example, rngs={"params": jax.random.key(0)}, mutable=["params"])[1]["params"]
  return module, {"params": params, **constants}


def _size(tree) -> int:
  return sum(x.nbytes for x in jax.tree.leaves(tree))


def _all_scores(dataset, variables, times) -> tuple[int, int, int]:
  """(operations, bytes, working set) to score all items for all users, and then to read the scores `times` times."""
  query = variables["params"]["item"]
  count = dataset.num_users * dataset.num_items
  return 2 * count * query.shape[1], _FLOAT * count * (1 + times), _FLOAT * index.BLOCK * dataset.num_items


def _steps(dataset, batch_size) -> int:
  return -(-len(dataset.train.users) // batch_size)


def _negatives(dataset, seen) -> Kernel:
  users, items = batches.to_device(dataset.train, dataset.num_users, dataset.num_items)
  plan = batches.plan(0, 1, dataset.train, len(users), "user", ())
  draw = functools.partial(batches.draw, plan=plan, users=users, items=items, seen=seen, negatives=1,
                           num_items=dataset.num_items)
  moved = _FLOAT * len(users) * 9  # rows, users, positives, two row offsets, four fields of the batch
  return Kernel(lambda: draw(jax.random.key(0)), 0, moved, moved)


def _gradients(dataset, student, batch_size) -> Kernel:
  module, variables = student
  rng = np.random.default_rng(0)
  rows = (_steps(dataset, batch_size), batch_size)
  batch = {"users": jnp.asarray(rng.integers(dataset.num_users, size=rows)),
           "items": jnp.asarray(rng.integers(dataset.num_items, size=(*rows, 2)))}

  def loss(params, batch):
    return jnp.sum(bpr().loss(module.apply({"params": params}, batch), batch, None))

  def step(params, batch):
    # Adds the gradient to the table, so that all of the gradient is computed and read.
    return jax.tree.map(lambda p, g: p - 1e-6 * g, params, jax.grad(loss)(params, batch)), None

  run = jax.jit(lambda params, batch: jax.lax.scan(step, params, batch)[0])
  tables, gathered = _size(variables["params"]), 3 * batch_size * _FLOAT * variables["params"]["item"].shape[1]
  # Traffic: the table is read and written, its gradient cleared and read; gathered rows are read and written.
  return Kernel(lambda: run(variables["params"], batch), 0, rows[0] * (4 * tables + 4 * gathered), 2 * tables)


def _adam(dataset, student, batch_size) -> Kernel:
  _, variables = student
  optimizer, steps = adam(1e-3, 1e-5, None), _steps(dataset, batch_size)
  params = jax.tree.map(lambda x: x.reshape(-1), variables["params"])
  state = optimizer.init(params)

  def step(x, _):
    updates, state = optimizer.update(x[0], x[1], x[0])
    return (jax.tree.map(jnp.add, x[0], updates), state), None

  run = jax.jit(lambda *x: jax.lax.scan(step, x, None, length=steps)[0])
  # Parameters and both moments are read and written. Here the parameters also serve as the gradient.
  return Kernel(lambda: run(params, state), 0, steps * 6 * _size(params), 3 * _size(params))


def _ranks(dataset, student) -> Kernel:
  module, variables = student
  layout = protocols.layout(dataset, "validation").layout
  count, blocks = layout.items.shape[1] * dataset.num_items, layout.counts.size
  operations = 2 * blocks * count * variables["params"]["item"].shape[1]
  return Kernel(lambda: rank.network_ranks(module, variables, layout), operations,
                _FLOAT * count * (blocks + len(layout.items)), _FLOAT * count)


def _listed(dataset, student, seen) -> Kernel:
  return Kernel(lambda: rank.network_top_k(*student, seen, k=_LISTED, exclude_seen=True),
                *_all_scores(dataset, student[1], 1))


def _soft_labels(dataset, teacher, seen) -> Kernel:
  return Kernel(lambda: rank.network_soft_labels(*teacher, seen, k=_K, exclude_seen=True),
                *_all_scores(dataset, teacher[1], 2))  # once for the top k, once for the probability of the rest


def _scores(dataset, teacher) -> Kernel:
  module, variables = teacher
  rng = np.random.default_rng(0)
  items = jnp.asarray(rng.integers(dataset.num_items, size=(dataset.num_users, _CANDIDATES)))
  users, held = jnp.arange(dataset.num_users), _size(variables["params"]["item"])

  @jax.jit
  def run(variables, users, items):
    score = rank.scorer(module, variables)
    return jax.lax.map(lambda x: score(x[0][None], x[1][None])[0], (users, items), batch_size=index.BLOCK)

  moved = items.size * variables["params"]["item"].shape[1]
  return Kernel(lambda: run(variables, users, items), 2 * moved, _FLOAT * moved, held)


def _propagation(dataset) -> Kernel:
  module, variables = _built(f"lightgcn(dim={_DIM}, layers={_LAYERS})", dataset)
  cotangent = tuple(jnp.ones_like(variables["params"][name]) for name in ("user", "item"))

  @jax.jit
  def run(variables, cotangent):
    def tables(params):
      return module.apply(variables | {"params": params}, method="tables")

    out, gradient = jax.vjp(tables, variables["params"])
    return out, gradient(cotangent)

  nodes = _size(variables["params"])
  gathered = 2 * len(dataset.train.users) * _FLOAT * (_DIM + 2)  # rows in both directions, their indices and weights
  return Kernel(lambda: run(variables, cotangent), 0, 2 * _LAYERS * (gathered + nodes), 2 * nodes)
