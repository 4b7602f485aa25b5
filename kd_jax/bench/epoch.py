"""The parts of a run as pieces of work that can be timed, see `sides`."""

from __future__ import annotations

import functools
import math
import platform
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kd_jax import __version__, registry
from kd_jax.base import STUDENT, TEACHER, Dataset
from kd_jax.bench import interleave, roofline
from kd_jax.data import neighbours
from kd_jax.devices import parallel
from kd_jax.evaluation import protocols
from kd_jax.objectives import tasks
from kd_jax.runs import setup
from kd_jax.teachers import loading
from kd_jax.training import batches, graph, kd_targets, optimizers, step

_PLAIN = "plain"
_WARM_SECONDS = 30


def works(dataset: Dataset, settings: interleave.Settings) -> dict[str, Callable[[], interleave.Repeat]]:
  """{work: what prepares it}: evaluation, then an epoch of the plain student and of every method.

  An epoch is drawing batches and targets plus training; the seconds of `drawing` are given as well. Where the student
  ranks every n epochs, a repeat is the mean of n. Every method starts from the student after `warmup` plain epochs
  and has as many of its own first; half a minute is enough of either. The teacher is untrained: what it says does
  not change the time, but for DE and HTD, whose gate, by then at the temperature of that epoch, says which experts and
  pairs are computed at all. For methods on representations `needed` is what the matrix products of the method itself
  would take at this machine's speed; not given where how many there are is known only at run time.
  """
  student, teacher = (loading.build_module(m, dataset) for m in (settings.model, settings.teacher_model))
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
  """The state after so many epochs, or `_WARM_SECONDS` of them."""
  deadline = time.perf_counter() + _WARM_SECONDS
  for _ in range(epochs):
    if time.perf_counter() < deadline:
      state, _ = epoch(state)
  return state


class _Epoch(NamedTuple):
  """What is timed."""

  epoch: Callable  # state -> (state, seconds of drawing)
  state: graph.TrainState  # at the begin
  constants: dict  # of the student
  cycle: int  # epochs until every list has been ranked afresh
  flops: int  # of the matrix products of an epoch's methods on representations


def _epoch(dataset, student, teacher, kd, batch_size) -> _Epoch:
  kds = tuple((w, registry.build("losses", call)) for w, call in registry.parse_sum("losses", kd, "kd"))
  networks = ((STUDENT, student), (TEACHER, teacher))[: 1 + bool(kds)]
  edges = ((STUDENT, TEACHER),) if kds else ()
  run = graph.Run(networks, (STUDENT,), edges, kds, tasks.bpr, optimizers.make("adam", 1e-3, 1e-5), "sum")
  constants = {name: jax.tree.map(jnp.asarray, loading.constants(module, dataset)) for name, module in networks}
  example = {"users": jnp.zeros(1, jnp.int32), "items": jnp.zeros((1, 2), jnp.int32)}
  params = {}
  if kds:
    own = {"constants": constants[TEACHER]}
    made = teacher.apply(own, example, rngs={"params": jax.random.key(1)}, mutable=["params"])[1]
    params[TEACHER] = made["params"]
  given = graph.Given(params, constants, jax.tree.map(jnp.asarray, neighbours.tables(run.kds, dataset)))
  kd_targets.check(run, dataset)
  sources = kd_targets.prepare(run, dataset, given)
  users, items = batches.to_device(dataset.train, dataset.num_users, dataset.num_items)
  plan = setup.planner([student], dataset, seed=0, batch_size=batch_size, kd_per="interaction", kds=kds)
  compiled = parallel.compile_epoch(run, "jit", batch_size)
  numbers, lists = iter(range(10**9)), None

  def draw_batches(number):
    return batches.draw(jax.random.key(number), plan(number), users, items, sources.seen["users"], negatives=1,
                        num_items=dataset.num_items)

  def draw(state, number):
    nonlocal lists
    batch = draw_batches(number)
    lists = kd_targets.learner_lists(run, state.params, given, sources, number, lists)
    return batch, kd_targets.targets(jax.random.key(number), state.params, given, sources, lists, state.memory,
                                   jnp.int32(number), run=run)

  def epoch(state):
    number, start = next(numbers), time.perf_counter()
    batch, targets = jax.block_until_ready(draw(state, number))
    drawn = time.perf_counter() - start
    return jax.block_until_ready(compiled(state, given, targets, batch, jax.random.key(number))[0]), drawn

  drawn = draw_batches(0)
  first, steps = jax.tree.map(lambda x: x[0], drawn), len(drawn["weight"])
  state = step.init(jax.random.key(0), run, given, first)._replace(memory=kd_targets.initial_memory(run, dataset))
  cycle = math.lcm(*(kd.lists.every for _, kd in kds))
  return _Epoch(epoch, state, constants[STUDENT], cycle, steps * _needed(run, given, state, first))


def _needed(run, given, state, batch) -> int:
  """FLOPs of the matrix products of the methods on representations, of one step."""
  total = 0
  for edge in graph.edges(run):
    if edge.kd.rows == "entities":
      spoken = step.edge_outputs(run, given, state.params, edge, batch)
      total += roofline.with_gradient(*_method(edge, *spoken, state.params["adapters"].get(edge.key)))
  return total


def _method(edge, student, teacher, target, adapter):
  """(function, arguments to which it has a gradient) of a method alone."""
  def loss(student, adapter):
    if edge.kd.adapter is not None:
      student = edge.kd.adapter.apply({"params": adapter}, student, teacher, target, rngs={"noise": jax.random.key(0)})
    return jnp.sum(edge.kd.loss(student, teacher, target))

  return loss, (student, adapter)


def machine() -> dict[str, Any]:
  """What the timings were taken on."""
  return {"kd_jax": __version__, "jax": jax.__version__, "python": platform.python_version(),
          "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}", "cores": interleave.cores()}
