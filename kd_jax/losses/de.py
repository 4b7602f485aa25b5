"""Distillation experts (DE)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from kd_jax.base import KD, Outputs
from kd_jax.losses._experts import ExpertsOfBothSides

SEARCH = "weight=log(1e-4, 10); experts=10|20|30; item_weight=uniform(0.1, 0.9)"


class Reconstruction(nn.Module):
  """The experts' reconstruction of the teacher's vectors from the student's vectors."""

  experts: ExpertsOfBothSides

  def __call__(self, student, teacher, batch) -> Outputs:
    return Outputs(None, self.experts(student, teacher, batch)[0])


def de(experts: int = 30, start_temperature: float = 1.0, end_temperature: float = 1e-10, epochs: int = 1000,
       item_weight: float = 0.5) -> KD:
  """Distillation experts (DE): Kang, Hwang, Kweon, Yu, CIKM 2020, https://arxiv.org/abs/2012.04357.

  |t - sum_m g_m E_m(s)|^2 for the vectors s (student) and t (teacher) of every user and item. The experts E_m are
  MLPs [ds, (ds + dt) // 2, dt] with ReLU. The gate is g = softmax((log softmax(W t + b) + Gumbel noise) / temperature).
  Users and items have separate experts and gates.

  Args:
    experts: number of experts for users, and for items.
    start_temperature: temperature of the gate at epoch 0.
    end_temperature: temperature at epoch `epochs`, reached geometrically; at 1e-10, one expert has all the weight.
    epochs: number of epochs in which the temperature falls.
    item_weight: factor of the items' terms. The authors use 1/2, since a user comes with two items (a positive
      and a negative).

  Departs from the authors' code: no 1e-10 is added in log softmax; the temperature does not lag one epoch behind;
  noise is drawn once per entity and step; if the student is as wide as its teacher, hidden layers have that width,
  not half of it. With `kd_per=user`, the loss is the sum over the distinct entities of a batch, as published, except
  that an item that is both a positive and a negative counts once, not twice.
  """
  def loss(student, teacher, batch):
    factor = jnp.where(batch["is_user"], 1.0, item_weight)
    return factor * jnp.sum((teacher.query - student.query) ** 2, axis=1)

  adapter = Reconstruction(ExpertsOfBothSides(experts, start_temperature, end_temperature, epochs))
  return KD(loss, adapter=adapter, teacher_scores=False, rows="entities")
