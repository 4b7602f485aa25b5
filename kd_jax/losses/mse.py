"""Regression on the teacher's scores (MSE)."""

from __future__ import annotations

import jax.numpy as jnp

from kd_jax.base import KD
from kd_jax.losses._lists import candidate_lists

SEARCH = "weight=log(1e-4, 1); k=20|50|100"


def mse(candidates: str = "teacher", k: int = 50, exclude_seen: bool = False) -> KD:
  """Regression on the teacher's scores (MSE): Ba, Caruana, NIPS 2014, https://arxiv.org/abs/1312.6184.

  mean over the list of (student - teacher)^2, on logits (scores before any sigmoid or softmax).

  Args:
    candidates: "full" (all items), "teacher" (its top k) or "student" (its top k, ranked again every epoch).
    k: length of the list; unused with candidates="full".
    exclude_seen: leave a user's training items out of the list.

  Departs from the paper: listed items replace the classes; there is no factor 1/2 (use the weight of the method), as
  in KD-DAGFM (Tian et al., WSDM 2023), which distils click-through logits.
  """
  def loss(student, teacher, batch):
    return jnp.mean((student.scores - teacher.scores) ** 2, axis=1)

  lists, sample = candidate_lists(candidates, k, exclude_seen)
  return KD(loss, lists, sample)
