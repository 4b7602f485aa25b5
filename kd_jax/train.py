"""Pure training functions: a run, its state, one step, one epoch.

A run is a graph: networks, and edges (learner <- teacher) along which methods distil. Without edges it
trains a teacher or a plain student: it is the same loop. Nothing here knows of devices or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kd_jax.base import KD, Array, Batch, Outputs

TEACHER, STUDENT = "teacher", "student"


class Run(NamedTuple):
  """Everything static about a run. Hashable: equal runs share one compilation."""

  networks: tuple[tuple[str, Any], ...]  # (name, Flax module), learners and live teachers
  learners: tuple[str, ...]
  edges: tuple[tuple[str, str], ...]  # (learner, teacher)
  kds: tuple[tuple[float, KD], ...]  # (weight, method)
  loss: Callable[[Outputs, Batch], Array]  # base loss
  optimizer: optax.GradientTransformation
  reduction: str  # "sum" or "mean" over the batch


class TrainState(NamedTuple):
  """What training changes."""

  step: Array  # [] int32
  params: dict  # {"networks": {learner: ...}, "adapters": {key: ...}}
  opt_state: optax.OptState


class Given(NamedTuple):
  """What training does not change; arguments, so that no table is baked into an executable."""

  params: dict  # {frozen network: params}
  constants: dict  # {network: arrays computed from the data}


class Edge(NamedTuple):
  """One method on one edge."""

  key: str
  weight: float
  kd: KD
  learner: str
  teacher: str


def edges(run: Run) -> Iterator[Edge]:
  """Every method on every edge."""
  for i, (weight, kd) in enumerate(run.kds):
    for learner, teacher in run.edges:
      yield Edge(f"{i}:{learner}<-{teacher}", weight, kd, learner, teacher)


def variables(given: Given, params: dict, name: str) -> dict:
  """The Flax variables of a network."""
  networks = given.params | params["networks"]
  return {"params": networks[name], "constants": given.constants.get(name, {})}


def init(rng: Array, run: Run, given: Given, batch: Batch) -> TrainState:
  """Initial state of the learners and of the methods' adapters."""
  networks = {}
  for i, (name, module) in enumerate(run.networks):
    if name in run.learners:
      constants = {"constants": given.constants.get(name, {})}
      networks[name] = _init(module, jax.random.fold_in(rng, i), constants, batch)
  params = {"networks": networks, "adapters": {}}
  for j, edge in enumerate(edges(run)):
    if edge.kd.adapter is not None:
      outs = [_apply(run, variables(given, params, n), n, batch) for n in (edge.learner, edge.teacher)]
      rngs = {n: jax.random.fold_in(rng, 1000 + j) for n in ("params", "noise")}
      params["adapters"][edge.key] = edge.kd.adapter.init(rngs, *outs, batch)["params"]
  return TrainState(jnp.zeros((), jnp.int32), params, run.optimizer.init(params))


def _init(module, rng, constants, batch):
  """Parameters of a module whose other collections are given."""
  _, variables = module.apply(constants, batch, rngs={"params": rng}, mutable=["params"])
  return variables.get("params", {})


def _apply(run, variables, name, batch) -> Outputs:
  return dict(run.networks)[name].apply(variables, batch)


def forward(run: Run, variables: dict, name: str, batches: dict[str, Batch]) -> dict[str, Outputs]:
  """{key: Outputs} of one network for batches of the same users. Its tables are computed once."""
  module = dict(run.networks)[name]
  tables = module.apply(variables, method="tables")
  apply = lambda batch: module.apply(variables, batch, tables)
  outs = {key: apply(b) for key, b in batches.items() if key == "base" or "items" not in b}
  listed = {key: b for key, b in batches.items() if key not in outs}
  if listed:  # Candidates lie side by side in one apply, then are cut apart.
    blocks = [b["items"] for b in listed.values()]
    out = apply(next(iter(listed.values())) | {"items": jnp.concatenate(blocks, axis=1)})
    cuts = np.cumsum([x.shape[1] for x in blocks])[:-1]
    scores = jnp.split(out.scores, cuts, axis=1)
    items = [None] * len(scores) if out.items is None else jnp.split(out.items, cuts, axis=1)
    outs |= {k: Outputs(s, out.query, i) for k, s, i in zip(listed, scores, items, strict=True)}
  return outs


def per_example_loss(params, given, batch, targets, rng, *, run):
  """([B] base losses, {edge key: [M] or [B] distillation losses}) of one batch."""
  asked = {name: {"base": batch} for name in run.learners}
  for edge in edges(run):
    target = batch
    if edge.kd.rows == "users":
      rows = {k: v[batch["kd_users"]] for k, v in targets.get(edge.key, {}).items()}
      target = {"users": batch["kd_users"], "weight": batch["kd_weight"]} | rows
    asked[edge.learner][edge.key] = target
    asked.setdefault(edge.teacher, {})[edge.key] = target
  outs = {name: forward(run, variables(given, params, name), name, batches)
          for name, batches in asked.items() if name in dict(run.networks)}

  base = sum(run.loss(outs[name]["base"], batch) for name in run.learners)
  terms = {}
  for j, edge in enumerate(edges(run)):
    student, target = outs[edge.learner][edge.key], asked[edge.learner][edge.key]
    teacher = outs[edge.teacher][edge.key] if edge.teacher in outs else Outputs(target.get("teacher"))
    if "teacher" in target:  # Scored once per epoch or read from a file; what is unused is pruned.
      teacher = teacher._replace(scores=target["teacher"])
    teacher = jax.lax.stop_gradient(teacher)
    if edge.kd.adapter is not None:
      student = edge.kd.adapter.apply({"params": params["adapters"][edge.key]}, student, teacher, target,
                                      rngs={"noise": jax.random.fold_in(rng, j)})
    terms[edge.key] = edge.kd.loss(student, teacher, target)
  return base, terms


def train_step(state: TrainState, given, targets, batch, rng, *, run: Run, axis_name=None):
  """One optimiser step; (state, mean losses). The only reduction over examples in the code base."""
  def total(params):
    base, terms = per_example_loss(params, given, batch, targets, jax.random.fold_in(rng, state.step), run=run)
    sums = {"base": jnp.sum(batch["weight"] * base)}
    for edge in edges(run):
      weight = batch["kd_weight"] if edge.kd.rows == "users" else batch["weight"]
      sums[edge.key] = jnp.sum(weight * terms[edge.key])
    return sums["base"] + sum(e.weight * sums[e.key] for e in edges(run)), sums

  grads, sums = jax.grad(total, has_aux=True)(state.params)
  size = jnp.sum(batch["weight"])
  if axis_name is not None:
    grads, sums, size = jax.lax.psum((grads, sums, size), axis_name)
  if run.reduction == "mean":
    grads = jax.tree.map(lambda g: g / size, grads)
  updates, opt_state = run.optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  return TrainState(state.step + 1, params, opt_state), {k: v / size for k, v in sums.items()}


def train_epoch(state: TrainState, given, targets, batches: Batch, rng, *, run: Run, axis_name=None):
  """Scans `train_step` over batches [S, B, ...]; (state, {loss: mean over steps})."""
  step = lambda s, b: train_step(s, given, targets, b, rng, run=run, axis_name=axis_name)
  state, losses = jax.lax.scan(step, state, batches)
  return state, jax.tree.map(jnp.mean, losses)


def make_optimizer(name: str, learning_rate: float, weight_decay: float) -> optax.GradientTransformation:
  """adam and sgd with coupled L2, decayed dense at every step as the literature's Adam does; or adamw."""
  if name == "adamw":
    return optax.adamw(learning_rate, weight_decay=weight_decay)
  optimizer = {"adam": optax.adam, "sgd": optax.sgd}[name](learning_rate)
  return optax.chain(optax.add_decayed_weights(weight_decay), optimizer) if weight_decay else optimizer
