"""Distillation from several teachers; a gate computes the teachers' weights for every sample."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from kd_jax.base import KD
from kd_jax.losses._lists import candidate_lists

SEARCH = "weight=log(1e-3, 10); temperature=0.5|1|2|5; k=20|50|100"


class _Gate(nn.Module):
  """Returns the student's outputs and the teachers' weights [E, B, C]."""

  @nn.compact
  def __call__(self, student, teacher, batch):
    shape = (teacher.scores.shape[0], 1, 1)
    slope = self.param("slope", nn.initializers.zeros, shape)
    bias = self.param("bias", nn.initializers.zeros, shape)
    return student, jax.nn.softmax(slope * teacher.scores + bias, axis=0)


def gated(temperature: float = 1.0, candidates: str = "teacher", k: int = 50, exclude_seen: bool = False) -> KD:
  """Gated distillation from several teachers: Zhu et al., CIKM 2020, https://arxiv.org/abs/2011.04106.

  mean over the list of BCE(sigmoid(student / temperature), sum_m g_m sigmoid(teacher_m / temperature)). The gate
  g = softmax over teachers of w_m teacher_m + b_m computes the teachers' weights from their scores, for every user and
  item. w and b are learned with the student; at first, all teachers have the same weight.

  Args:
    temperature: softens all probabilities. There is no factor temperature^2: for large T, gradients fall as 1 / T^2.
    candidates: "full" (all items), "teacher" (the union of the top k of all teachers) or "student" (its top k,
      ranked again every epoch).
    k: length of the lists; unused with candidates="full".
    exclude_seen: leave a user's training items out of the lists.

  Departs from the paper: listed items replace logged impressions; the regression on hidden layers and the early
  stopping by the distillation loss are left out. With one teacher, the method is the same as bce().
  """
  def loss(student, teacher, batch):
    student, gate = student
    target = jnp.sum(gate * jax.nn.sigmoid(teacher.scores / temperature), axis=0)
    found = optax.sigmoid_binary_cross_entropy(student.scores / temperature, target)
    return jnp.mean(found, axis=1, where=batch.get("counted"))

  lists, sample = candidate_lists(candidates, k, exclude_seen, all_teachers=True)
  return KD(loss, lists, sample, adapter=_Gate(), all_teachers=True)
