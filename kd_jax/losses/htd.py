"""Hierarchical topology distillation (HTD)."""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.base import KD, Array, InputError
from kd_jax.losses import _blocks
from kd_jax.losses._experts import ExpertsOfBothSides, unit

GROUP_TOPOLOGIES = ("entities", "prototypes")


class Grouped(NamedTuple):
  """Of every entity: the student's vector, the teacher's as experts rebuild it, its group."""

  query: Array  # [E, ds]
  hint: Array  # [E, dt]
  group: Array  # [E] int32


class Grouping(nn.Module):
  """Adaptive group assignment: the gate of the experts says who is in which group."""

  experts: ExpertsOfBothSides

  def __call__(self, student, teacher, batch) -> Grouped:
    return Grouped(student.query, *self.experts(student, teacher, batch))


def _pairs(positive_only, s, t, s_other, t_other, weight):
  """[P, R] sums over the C others of a row's group: rows [P, R, .], others [P, C, .], their weight [P, C]."""
  cosine = jnp.einsum("prd,pcd->prc", t, t_other)
  counted = weight[:, None] * (cosine > 0) if positive_only else weight[:, None]
  return jnp.sum(counted * (jnp.einsum("prd,pcd->prc", s, s_other) - cosine) ** 2, axis=2)


def _places(where, i):
  """Every block of a group meets every block of it."""
  group, number = _blocks.of_turn(i, where.blocks**2)
  across = jnp.maximum(where.blocks[jnp.minimum(group, where.blocks.size - 1)], 1)
  row, other = (_blocks.entities(where, group, n) for n in (number // across, number % across))
  return row, row, row, other, other, other


def htd(alpha: float = 0.5, groups: int = 30, group_topology: str = "entities", positive_only: bool = True,
        detach: bool = True, start_temperature: float = 1.0, end_temperature: float = 1e-10,
        epochs: int = 100) -> KD:
  """Hierarchical topology distillation (HTD): Kang, Hwang, Kweon, Yu, KDD 2021,
  https://arxiv.org/abs/2106.08700.

  alpha * TD + (1 - alpha) * GA. GA is the loss of distillation experts, |t - sum_m g_m E_m(s)|^2; an
  entity's group is the arg-max of their gate without noise, users and items apart. TD sums, of cosines,
  (student - teacher)^2 over ordered pairs of one group and over pairs of a group's prototype (the mean of
  its members in the batch) with every entity, (P, e), or with every prototype, (P, P).

  Args:
    alpha: weight of TD; GA has the rest.
    groups: groups, and so experts, on each side.
    group_topology: "entities" for (P, e), "prototypes" for (P, P).
    positive_only: of pairs of one group, only those of positive teacher cosine. The authors' code selects
      so, though the paper says nothing of it.
    detach: no gradient through prototypes, as in the authors' code, where (P, P) therefore trains nothing.
    start_temperature: of the gate at epoch 0.
    end_temperature: at epoch `epochs`, reached geometrically.
    epochs: over how many the temperature falls.

  Departs from the authors' code: log softmax has no 1e-10 added; the temperature does not lag an epoch
  (there, epochs 0 and 1 have the start's); the noise is one draw per entity and step. --kd_per=user takes
  distinct entities, as published; otherwise one counts as often as it is met, in prototypes too.
  """
  if group_topology not in GROUP_TOPOLOGIES:
    raise InputError(f"group_topology={group_topology!r}: choose from {', '.join(GROUP_TOPOLOGIES)}")

  def loss(student, teacher, batch):
    weight = batch["weight"]
    s, t = unit(student.query), unit(teacher.query)

    members = weight[:, None] * jax.nn.one_hot(student.group, 2 * groups)  # [E, G]
    size = jnp.sum(members, axis=0)
    prototype = lambda x: unit(members.T @ x / jnp.maximum(size, 1e-9)[:, None])
    p_s, p_t = prototype(student.query), prototype(teacher.query)
    if detach:  # Part of the published method.
      p_s = jax.lax.stop_gradient(p_s)
    if group_topology == "entities":
      between = jnp.sum((s @ p_s.T - t @ p_t.T) ** 2, axis=1, where=size > 0)
    else:  # A prototype's sum is shared out among its members.
      between = jnp.sum((p_s @ p_s.T - p_t @ p_t.T) ** 2, axis=1, where=size > 0)
      between = (between / jnp.maximum(size, 1e-9))[student.group] * (weight > 0)
    where = _blocks.groups(student.group[:, None] == jnp.arange(2 * groups))
    pairs = functools.partial(_pairs, positive_only)
    within = _blocks.summed(pairs, _places, len(s), where, _blocks.turns(where.blocks**2), s, t, s, t, weight)
    topology = within + between
    return alpha * topology + (1 - alpha) * jnp.sum((teacher.query - student.hint) ** 2, axis=1)

  adapter = Grouping(ExpertsOfBothSides(groups, start_temperature, end_temperature, epochs))
  return KD(loss, adapter=adapter, teacher_scores=False, rows="entities", in_batch=True)
