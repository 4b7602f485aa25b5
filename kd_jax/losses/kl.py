"""Soft targets (KD)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kd_jax.base import KD
from kd_jax.losses._lists import candidate_lists

SEARCH = "weight=log(1e-2, 10); temperature=0.5|1|2|5; k=20|50|100"


def kl(temperature: float = 1.0, candidates: str = "teacher", k: int = 50, exclude_seen: bool = False) -> KD:
  """Soft targets (KD): Hinton, Vinyals, Dean, NIPS Workshop 2015, https://arxiv.org/abs/1503.02531.

  temperature^2 * KL(softmax(teacher / temperature) || softmax(student / temperature)) over a list.

  Args:
    temperature: softens both distributions; the factor temperature^2 keeps the scale of gradients independent of it.
    candidates: "full" (all items), "teacher" (its top k) or "student" (its top k, ranked again every epoch).
    k: length of the list; unused with candidates="full".
    exclude_seen: leave a user's training items out of the list. Public recommender code keeps them.
  """
  def loss(student, teacher, batch):
    log_p = jax.nn.log_softmax(teacher.scores / temperature)
    log_q = jax.nn.log_softmax(student.scores / temperature)
    return temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=1)

  lists, sample = candidate_lists(candidates, k, exclude_seen)
  return KD(loss, lists, sample)
