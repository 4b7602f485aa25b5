"""List-wise top-one cross-entropy (ListNet)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kd_jax.base import KD
from kd_jax.losses._lists import candidate_lists

SEARCH = "weight=log(1e-2, 10); temperature=0.5|1|2|5; k=20|50|100"


def listnet(temperature: float = 1.0, candidates: str = "teacher", k: int = 50, exclude_seen: bool = False) -> KD:
  """List-wise top-one cross-entropy (ListNet): Cao, Qin, Liu, Tsai, Li, ICML 2007.

  - sum over the list of softmax(teacher / temperature) log softmax(student / temperature): the cross-entropy of
  top-one probabilities, i.e. that an item is the first of the list. The code of RCE-KD (ICLR 2026) calls it KD.

  Args:
    temperature: softens both distributions; without a factor temperature^2.
    candidates: "full" (all items), "teacher" (its top k) or "student" (its top k, ranked again every epoch).
    k: length of the list; unused with candidates="full".
    exclude_seen: leave a user's training items out of the list. Public recommender code keeps them.

  Departs from the paper: the teacher's scores replace relevance judgements. The gradient is the same as for
  kl() / temperature^2; the two losses differ by the teacher's entropy.
  """
  def loss(student, teacher, batch):
    p = jax.nn.softmax(teacher.scores / temperature)
    return -jnp.sum(p * jax.nn.log_softmax(student.scores / temperature), axis=1)

  lists, sample = candidate_lists(candidates, k, exclude_seen)
  return KD(loss, lists, sample)
