"""Distillation from the mean of several teachers."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kd_jax.base import KD
from kd_jax.losses._lists import candidate_lists

SEARCH = "weight=log(1e-3, 10); temperature=0.5|1|2|5; k=20|50|100"


def ensemble(temperature: float = 1.0, candidates: str = "teacher", k: int = 50, exclude_seen: bool = False) -> KD:
  """Distillation from the mean of several teachers: You, Xu, Xu, Tao, KDD 2017,
  https://doi.org/10.1145/3097983.3098135.

  temperature^2 * KL(mean over teachers of softmax(teacher / temperature) || softmax(student / temperature)).

  Args:
    temperature: softens all distributions; the factor temperature^2 keeps the scale of gradients independent of it.
    candidates: "full" (all items), "teacher" (the union of the top k of all teachers) or "student" (its top k,
      ranked again every epoch).
    k: length of the lists; unused with candidates="full".
    exclude_seen: leave a user's training items out of the lists.

  Departs from the paper: listed items replace the classes; KL replaces the cross-entropy (the gradient is the same);
  the paper's second loss, on triplets of intermediate representations, is left out.
  """
  def loss(student, teacher, batch):
    counted = batch.get("counted", True)
    each = jax.nn.log_softmax(teacher.scores / temperature, where=counted)  # [E, B, C]
    log_p = jax.nn.logsumexp(each, axis=0) - jnp.log(each.shape[0])
    log_q = jax.nn.log_softmax(student.scores / temperature, where=counted)
    return temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=1, where=counted)

  lists, sample = candidate_lists(candidates, k, exclude_seen, all_teachers=True)
  return KD(loss, lists, sample, all_teachers=True)
