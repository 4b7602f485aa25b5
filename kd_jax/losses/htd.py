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

SEARCH = "weight=log(1e-5, 1); alpha=uniform(0.1, 0.9); groups=10|20|30|40"

GROUP_TOPOLOGIES = ("entities", "prototypes")


class Grouped(NamedTuple):
  """For every entity: the student's vector, the experts' reconstruction of the teacher's vector, the group."""

  query: Array  # [E, ds]
  hint: Array  # [E, dt]
  group: Array  # [E] int32


class Grouping(nn.Module):
  """Adaptive group assignment: the gate of the experts assigns every entity to a group."""

  experts: ExpertsOfBothSides

  def __call__(self, student, teacher, batch) -> Grouped:
    return Grouped(student.query, *self.experts(student, teacher, batch))


def _pairs(positive_only, s, t, s_other, t_other, weight):
  """[P, R] sums over the C other entities of a row's group, for P pairs of blocks.

  Rows are [P, R, .], others are [P, C, .] with weights [P, C].
  """
  cosine = jnp.einsum("prd,pcd->prc", t, t_other)
  counted = weight[:, None] * (cosine > 0) if positive_only else weight[:, None]
  return jnp.sum(counted * (jnp.einsum("prd,pcd->prc", s, s_other) - cosine) ** 2, axis=2)


def _places(where, i):
  """Pairs every block of a group with every block of the same group."""
  group, number = _blocks.of_turn(i, where.blocks**2)
  across = jnp.maximum(where.blocks[jnp.minimum(group, where.blocks.size - 1)], 1)
  row, other = (_blocks.entities(where, group, n) for n in (number // across, number % across))
  return row, row, row, other, other, other


def htd(alpha: float = 0.5, groups: int = 30, group_topology: str = "entities", positive_only: bool = True,
        detach: bool = True, start_temperature: float = 1.0, end_temperature: float = 1e-10,
        epochs: int = 100) -> KD:
  """Hierarchical topology distillation (HTD): Kang, Hwang, Kweon, Yu, KDD 2021,
  https://arxiv.org/abs/2106.08700.

  alpha * TD + (1 - alpha) * GA. GA is the loss of distillation experts, |t - sum_m g_m E_m(s)|^2. The group of an
  entity is the arg-max of their gate without noise; users and items have separate groups. TD is the sum of
  (cosine of the student - cosine of the teacher)^2 over two kinds of ordered pairs: two entities of one group; and a
  group's prototype (the mean of its members in the batch) with every entity, (P, e), or with every prototype, (P, P).

  Args:
    alpha: weight of TD; GA has weight 1 - alpha.
    groups: number of groups, and so of experts, for users, and for items.
    group_topology: "entities" for (P, e), "prototypes" for (P, P).
    positive_only: of the pairs in one group, use only those with a positive teacher cosine. The authors' code does
      so; the paper does not mention it.
    detach: no gradient flows through prototypes, as in the authors' code. There, (P, P) therefore trains nothing.
    start_temperature: temperature of the gate at epoch 0.
    end_temperature: temperature at epoch `epochs`, reached geometrically.
    epochs: number of epochs in which the temperature falls.

  Departs from the authors' code: no 1e-10 is added in log softmax; the temperature does not lag one epoch behind (in
  the code, epochs 0 and 1 both have the start temperature); noise is drawn once per entity and step. `kd_per=user`
  uses distinct entities, as published; otherwise entities that occur several times count several times, also in
  prototypes.
  """
  if group_topology not in GROUP_TOPOLOGIES:
    raise InputError(f"group_topology={group_topology!r}: choose from {', '.join(GROUP_TOPOLOGIES)}")

  def loss(student, teacher, batch):
    weight = batch["weight"]
    s, t = unit(student.query), unit(teacher.query)

    members = weight[:, None] * jax.nn.one_hot(student.group, 2 * groups)  # [E, G]
    size = jnp.sum(members, axis=0)

    def prototype(x):
      return unit(members.T @ x / jnp.maximum(size, 1e-9)[:, None])

    p_s, p_t = prototype(student.query), prototype(teacher.query)
    if detach:  # Part of the published method.
      p_s = jax.lax.stop_gradient(p_s)
    if group_topology == "entities":
      between = jnp.sum((s @ p_s.T - t @ p_t.T) ** 2, axis=1, where=size > 0)
    else:  # The sum of a prototype is divided among its members.
      between = jnp.sum((p_s @ p_s.T - p_t @ p_t.T) ** 2, axis=1, where=size > 0)
      between = (between / jnp.maximum(size, 1e-9))[student.group] * (weight > 0)
    where = _blocks.groups(student.group[:, None] == jnp.arange(2 * groups))
    pairs = functools.partial(_pairs, positive_only)
    within = _blocks.summed(pairs, _places, len(s), where, _blocks.turns(where.blocks**2), s, t, s, t, weight)
    topology = within + between
    return alpha * topology + (1 - alpha) * jnp.sum((teacher.query - student.hint) ** 2, axis=1)

  adapter = Grouping(ExpertsOfBothSides(groups, start_temperature, end_temperature, epochs))
  return KD(loss, adapter=adapter, teacher_scores=False, rows="entities", in_batch=True)
