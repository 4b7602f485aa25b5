"""Distillation experts (DE)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from kd_jax.base import KD, Outputs
from kd_jax.losses._experts import ExpertsOfBothSides


class Reconstruction(nn.Module):
  """The teacher's vectors as the experts rebuild them from the student's."""

  experts: ExpertsOfBothSides

  def __call__(self, student, teacher, batch) -> Outputs:
    return Outputs(None, self.experts(student, teacher, batch)[0])


def de(experts: int = 30, start_temperature: float = 1.0, end_temperature: float = 1e-10, epochs: int = 1000,
       item_weight: float = 0.5) -> KD:
  """Distillation experts (DE): Kang, Hwang, Kweon, Yu, CIKM 2020, https://arxiv.org/abs/2012.04357.

  |t - sum_m g_m E_m(s)|^2 of every user's and item's vector. E_m are MLPs [ds, (ds + dt) // 2, dt] with
  ReLU, g = softmax((log softmax(W t + b) + Gumbel noise) / temperature); users and items have their own.

  Args:
    experts: how many on each side.
    start_temperature: at epoch 0.
    end_temperature: at epoch `epochs`, reached geometrically; at 1e-10 one expert has all the weight.
    epochs: over how many the temperature falls.
    item_weight: factor of the items' terms. A user meets two items, so the authors halve them.

  Departs from the authors' code: log softmax has no 1e-10 added; the temperature does not lag an epoch;
  the noise is one draw per entity and step; a student as wide as its teacher keeps hidden layers of that
  width, not of half. --kd_per=user sums over a batch's distinct entities, as published, except that an
  item that is both a positive and a negative there counts once, not once as each.
  """
  def loss(student, teacher, batch):
    factor = jnp.where(batch["is_user"], 1.0, item_weight)
    return factor * jnp.sum((teacher.query - student.query) ** 2, axis=1)

  adapter = Reconstruction(ExpertsOfBothSides(experts, start_temperature, end_temperature, epochs))
  return KD(loss, adapter=adapter, teacher_scores=False, rows="entities")
