"""Regression on the teacher's scores (MSE)."""

from __future__ import annotations

import jax.numpy as jnp

from kd_jax.base import KD
from kd_jax.losses._lists import candidate_lists


def mse(candidates: str = "teacher", k: int = 50, exclude_seen: bool = False) -> KD:
  """Regression on the teacher's scores (MSE): Ba, Caruana, NIPS 2014, https://arxiv.org/abs/1312.6184.

  mean over the list of (student - teacher)^2, on scores, before any sigmoid or softmax.

  Args:
    candidates: "full" (all items), "teacher" or "student" (its top k, the student's afresh every epoch).
    k: length of the list, unless full.
    exclude_seen: leave a user's training items out of the list.

  Departs from the paper: a list of items stands for its classes, and its factor 1/2 is left to the weight,
  as in KD-DAGFM (Tian et al., WSDM 2023), which distils click-through logits.
  """
  def loss(student, teacher, batch):
    return jnp.mean((student.scores - teacher.scores) ** 2, axis=1)

  lists, sample = candidate_lists(candidates, k, exclude_seen)
  return KD(loss, lists, sample)
