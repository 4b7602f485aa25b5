"""Soft labels times true labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from kd_jax.base import KD, InputError
from kd_jax.losses._lists import candidate_lists


def masked_soft_labels(temperature: float = 1.0, activation: str = "softmax", candidates: str = "full",
                       k: int = 10) -> KD:
  """Soft labels times true labels: the teacher's probability where the label is true, else 0.

  mean over the candidates of BCE(sigmoid(student), label * p), p = softmax or sigmoid of teacher / temperature.
  Folklore; the unmasked targets are those of Hinton et al., NIPS Workshop 2015.

  What the mask loses: the products are no distribution, since they sum to what the teacher gives to the true
  labels; and what a teacher says of wrong labels, which is most of what soft labels carry, is gone. Where softmax
  shares its one unit among several true labels, targets of true labels fall below 1/2, and so does what the
  student learns to say of them. kl(candidates='full') and bce(candidates='full') keep both.

  Args:
    temperature: softens the teacher's probabilities.
    activation: "softmax" or "sigmoid": how the teacher's scores become probabilities.
    candidates: "full" (all labels), "teacher" or "student" (its top k, the student's afresh every epoch).
    k: length of the list, unless full.
  """
  probabilities = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}
  if activation not in probabilities:
    raise InputError(f"activation={activation!r}: choose from {', '.join(probabilities)}")
  probability = probabilities[activation]

  def loss(student, teacher, batch):
    target = batch["labels"] * probability(teacher.scores / temperature)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(student.scores, target), axis=1)

  lists, sample = candidate_lists(candidates, k, False)
  return KD(loss, lists, sample, labels=True)
