"""Soft labels times true labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from kd_jax.base import KD, InputError
from kd_jax.losses._lists import candidate_lists

SEARCH = "weight=log(1e-2, 10); temperature=0.5|1|2|5"


def masked_soft_labels(temperature: float = 1.0, activation: str = "softmax", candidates: str = "full",
                       k: int = 10) -> KD:
  """Soft labels times true labels: the target is the teacher's probability if the label is true, else 0.

  mean over the candidates of BCE(sigmoid(student), label * p), p = softmax or sigmoid of teacher / temperature.
  Folklore; the unmasked targets are from Hinton et al., NIPS Workshop 2015.

  The mask loses information. The products are not a distribution: they sum to the teacher's probability of all true
  labels. The teacher's probabilities of wrong labels, which are most of the information in soft labels, are lost.
  With several true labels, their softmax probabilities sum to at most 1. Most of their targets are then below 1/2, and
  the student learns probabilities below 1/2 for them. kl(candidates='full') and bce(candidates='full') use the unmasked
  targets.

  Args:
    temperature: softens the teacher's probabilities only, so no factor temperature^2 is needed.
    activation: "softmax" or "sigmoid": how the teacher's scores become probabilities.
    candidates: "full" (all labels), "teacher" (its top k) or "student" (its top k, ranked again every epoch).
    k: length of the list; unused with candidates="full".
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
