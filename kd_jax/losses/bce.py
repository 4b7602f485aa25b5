"""Soft binary targets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from kd_jax.base import KD
from kd_jax.losses._lists import candidate_lists

SEARCH = "weight=log(1e-3, 10); temperature=0.5|1|2|5"


def bce(temperature: float = 1.0, candidates: str = "teacher", k: int = 50, exclude_seen: bool = False) -> KD:
  """Soft binary targets: the teacher's sigmoid is the probability that the user likes the item.

  mean over the list of BCE(sigmoid(student / temperature), sigmoid(teacher / temperature)). Folklore; it is the
  point-wise form of Hinton et al. 2015 and is used for click models, e.g. by Zhu et al., CIKM 2020.

  Args:
    temperature: softens both probabilities. There is no factor temperature^2: for large T, gradients fall as 1 / T^2.
    candidates: "full" (all items), "teacher" (its top k) or "student" (its top k, ranked again every epoch).
    k: length of the list; unused with candidates="full".
    exclude_seen: leave a user's training items out of the list.
  """
  def loss(student, teacher, batch):
    target = jax.nn.sigmoid(teacher.scores / temperature)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(student.scores / temperature, target), axis=1)

  lists, sample = candidate_lists(candidates, k, exclude_seen)
  return KD(loss, lists, sample)
