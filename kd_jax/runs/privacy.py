"""Whether a run is differentially private: by its own mechanism, or because it reads nothing but private teachers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax import registry
from kd_jax.base import KD, STUDENT, Array, Ranked, View
from kd_jax.evaluation import metric_names
from kd_jax.runs.options import text_of
from kd_jax.runs.setup import Setup


def statement(ready: Setup) -> dict[str, Any] | None:
  """What run.json says of the privacy of a run's parameters; None if nothing can be said.

  The statement of a student is that of its only teacher, by post-processing: see `reads_the_data`.
  """
  module = dict(ready.run.networks)[STUDENT]
  if hasattr(module, "privacy"):
    return module.privacy()
  found = [teacher.provenance.get("privacy") for teacher in ready.teachers]
  if not any(found):
    return None
  reasons = list(reads_the_data(ready))
  if reasons:
    print(f"privacy: of a private teacher, but the run is not private: {'; '.join(reasons)}")
    return None
  return found[0]


def reads_the_data(ready: Setup) -> Iterator[str]:
  """The reasons why a run's parameters depend on training or validation interactions otherwise than through a private
  teacher. Who has a training interaction at all counts as known: these users are in every batch."""
  options, module = ready.options, dict(ready.run.networks)[STUDENT]
  if len(ready.teachers) != 1 or options.peer:
    yield "it has several teachers, whose epsilons add up, or a peer"
  if any(hasattr(module, name) for name in ("constants", "fit")) or getattr(module, "reads_sequences", False) or not (
      isinstance(options.model, str)) or registry.accepts("models", options.model, "user_features"):
    yield f"`model={text_of(options.model)}` reads interactions or features, or may do so"
  if options.init_from:
    yield "`init_from` is read"
  if options.loss_weight or options.embedding_l2:
    yield "the base loss reads interactions; `loss_weight=0` leaves it out"
  if options.reduction != "sum":
    yield f"`reduction={options.reduction}` divides by the number of interactions"
  if options.kd_per != "user" or ready.dataset.stream is not None or options.train_share < 1 or (
      options.batch_size < len(ready.dataset.train.users)):
    yield (f"batches follow the interactions; `kd_per=user` and `batch_size` of at least "
           f"{len(ready.dataset.train.users)} put all users in one")
  if ready.monitor.names != (metric_names.LAST,) or options.patience:
    yield f"validation chooses the epoch; `monitor={metric_names.LAST}` and `patience=0` do not"
  if not all(_reads_lists_only(kd) for _, kd in ready.run.kds):
    yield "a method of `kd` reads training items, draws items outside them, or counts popularity"


def _reads_lists_only(kd: KD) -> bool:
  """Whether the targets of a method depend on lists with all items and scores only."""
  lists = kd.lists
  if kd.rows != "users" or kd.neighbours or lists.seen or lists.unseen:
    return False
  return kd.sample is None or (not lists.exclude_seen and not _counts(kd))


def _counts(kd: KD) -> bool:
  """Whether a sampler reads the number of interactions of items."""
  def ranked(k):
    return Ranked(jnp.zeros(k, jnp.int32), jnp.zeros(k)) if k else None

  def sample(popularity: Array) -> Any:
    view = View(jnp.int32(0), ranked(kd.lists.teacher), ranked(kd.lists.student), None, jnp.int32(0),
                {name: jnp.zeros(()) for name in kd.remember}, popularity, priority=jnp.arange(popularity.shape[0]))
    return kd.sample and kd.sample(jax.random.key(0), view)

  traced = jax.make_jaxpr(sample)(jnp.ones(max(kd.lists.teacher, kd.lists.student) + 1, jnp.int32)).jaxpr
  read = {id(x) for equation in traced.eqns for x in equation.invars} | {id(x) for x in traced.outvars}
  return id(traced.invars[0]) in read
