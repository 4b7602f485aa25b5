"""List-wise top-one cross-entropy (ListNet)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kd_jax.base import KD
from kd_jax.losses._lists import candidate_lists


def listnet(temperature: float = 1.0, candidates: str = "teacher", k: int = 50, exclude_seen: bool = False) -> KD:
  """List-wise top-one cross-entropy (ListNet): Cao, Qin, Liu, Tsai, Li, ICML 2007.

  - sum over the list of softmax(teacher / temperature) log softmax(student / temperature): the cross-entropy
  of the probabilities that an item is the first of the list. Named KD in the code of RCE-KD (ICLR 2026).

  Args:
    temperature: softens both distributions.
    candidates: "full" (all items), "teacher" or "student" (its top k, the student's afresh every epoch).
    k: length of the list, unless full.
    exclude_seen: leave a user's training items out of the list. The public recommender code keeps them.

  Departs from the paper: the teacher's scores stand for relevance judgements. Its gradient is that of
  kl() / temperature^2; the two differ by the teacher's entropy.
  """
  def loss(student, teacher, batch):
    p = jax.nn.softmax(teacher.scores / temperature)
    return -jnp.sum(p * jax.nn.log_softmax(student.scores / temperature), axis=1)

  lists, sample = candidate_lists(candidates, k, exclude_seen)
  return KD(loss, lists, sample)
