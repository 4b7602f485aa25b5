"""The tasks of a run that can be timed: evaluation, and epochs of the methods; see `interleave`."""

from __future__ import annotations

import functools
import math
import platform
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kd_jax import __version__
from kd_jax.base import STUDENT, Dataset
from kd_jax.bench import interleave, roofline
from kd_jax.evaluation import protocols
from kd_jax.runs import epoch as epochs
from kd_jax.runs import setup
from kd_jax.runs.options import FitOptions
from kd_jax.teachers import loading
from kd_jax.training import graph, step

_PLAIN = "plain"
_WARM_SECONDS = 30


def works(dataset: Dataset, settings: interleave.Settings) -> dict[str, Callable[[], interleave.Repeat]]:
  """{name: function that sets up a task}: evaluation, then an epoch of the plain student and of every method.

  An epoch includes drawing batches and targets, and training; the time for `drawing` is also reported separately. If
  the student ranks every n epochs, a repeat is the mean over n epochs. Every method starts from the student after
  `warmup` plain epochs, and then has `warmup` epochs of its own; each warm-up is at most 30 seconds long. The teacher
  is untrained: its scores do not change the time, except for DE and HTD. Their gate selects the experts and pairs that
  are computed, and its temperature depends on the epoch. For methods on representations, `needed` is the time in
  seconds of the method's matrix products at this machine's rate for a large product; it is left out if their number is
  known only at run time.
  """
  student, teacher = (loading.build_model(m, dataset) for m in (settings.model, settings.teacher_model))
  speed = functools.cache(roofline.rate)

  @functools.cache
  def plain():
    made = _epoch(dataset, student, teacher, "", settings.batch_size)
    return made, _warmed(made.epoch, made.state, settings.warmup)

  def evaluation():
    made, state = plain()
    variables = {"params": state.params["networks"][STUDENT], "constants": made.constants}
    layout = protocols.layout(dataset, "validation")
    return lambda: protocols.measure(student, variables, layout) and {}

  def epoch(kd):
    made, state = plain()
    state = jax.tree.map(jnp.copy, state)
    if kd:
      learned = state.params["networks"][STUDENT]
      made = _epoch(dataset, student, teacher, kd, settings.batch_size)
      made.state.params["networks"][STUDENT] = learned
      state = _warmed(made.epoch, made.state, settings.warmup)
    return _repeat(made, state, {"needed": made.flops / speed()} if made.flops else {})

  epochs = {f"epoch {kd or _PLAIN}": functools.partial(epoch, kd) for kd in ("", *settings.kds)}
  return {"evaluation": functools.partial(interleave.timed, evaluation)} | epochs


def _repeat(made, state, others) -> interleave.Repeat:
  def repeat():
    nonlocal state
    start, drawing = time.perf_counter(), 0.0
    for _ in range(made.cycle):
      state, drawn = made.epoch(state)
      drawing += drawn
    return {"seconds": (time.perf_counter() - start) / made.cycle, "drawing": drawing / made.cycle, **others}

  return repeat


def _warmed(epoch, state, epochs):
  """The state after `epochs` epochs, but stops after `_WARM_SECONDS`."""
  deadline = time.perf_counter() + _WARM_SECONDS
  for _ in range(epochs):
    if time.perf_counter() < deadline:
      state, _ = epoch(state)
  return state


class _Epoch(NamedTuple):
  """The epochs of one run, for timing."""

  epoch: Callable  # state -> (state, seconds of drawing)
  state: graph.TrainState  # the initial state
  constants: dict  # of the student
  cycle: int  # number of epochs until all lists have been ranked again
  flops: int  # of the matrix products of an epoch's methods on representations


def _epoch(dataset, student, teacher, kd, batch_size) -> _Epoch:
  """The epochs of a run, as in training, but with an untrained teacher."""
  options = FitOptions(data=dataset, model=student, kd=kd, teacher=_untrained(teacher, dataset) if kd else None,
                       batch_size=batch_size, weight_decay=1e-5)
  ready = setup.prepare(options)
  draw, numbers = epochs.drawer(ready), iter(range(10**9))

  def epoch(state):
    (made,) = epochs.advance([(ready, draw, state)], [next(numbers)])
    return made.state, made.seconds["resample"]

  state, steps = epochs.initial_state(ready), len(ready.planner(dataset)(1)["weight"])
  cycle = math.lcm(*(kd.lists.every for _, kd in ready.run.kds))
  constants = ready.given.constants.get(STUDENT, {})
  return _Epoch(epoch, state, constants, cycle, steps * _needed(ready, state))


def _untrained(module, dataset) -> loading.Teacher:
  constants = loading.constants(module, dataset)
  example = {"users": jnp.zeros(1, jnp.int32), "items": jnp.zeros((1, 2), jnp.int32)}
  made = module.apply({"constants": constants}, example, rngs={"params": jax.random.key(1)}, mutable=["params"])[1]
  return loading.Teacher(module, made["params"], constants, None, None, {"untrained": True})


def _needed(ready, state) -> int:
  """FLOPs of the matrix products of the methods on representations, in one step."""
  total, draw = 0, epochs.drawer(ready)
  edges = [edge for edge in graph.edges(ready.run) if edge.kd.rows == "entities"]
  batch = jax.tree.map(lambda x: x[0], draw(state, 0, 0).batches) if edges else {}
  for edge in edges:
    outputs = step.edge_outputs(ready.run, ready.given, state.params, edge, batch)
    total += roofline.with_gradient(*_method(edge, *outputs, state.params["adapters"].get(edge.key)))
  return total


def _method(edge, student, teacher, target, adapter):
  """(loss of one method as a function, its differentiable arguments)."""
  def loss(student, adapter):
    if edge.kd.adapter is not None:
      student = edge.kd.adapter.apply({"params": adapter}, student, teacher, target, rngs={"noise": jax.random.key(0)})
    return jnp.sum(edge.kd.loss(student, teacher, target))

  return loss, (student, adapter)


def machine() -> dict[str, Any]:
  """Versions and devices of the timings."""
  return {"kd_jax": __version__, "jax": jax.__version__, "python": platform.python_version(),
          "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}", "cores": interleave.cores()}
