"""Distillation of an LLM's ranked lists (DLLM2Rec)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kd_jax.base import KD, Lists

SEARCH = ("weight=log(1e-3, 10); k=10|20|50; position=uniform(0.0, 1.0); confidence=uniform(0.0, 1.0); "
          "consistency=uniform(0.0, 1.0)")


def dllm2rec(k: int = 10, position: float = 0.3, confidence: float = 0.5, consistency: float = 0.1,
             decay: float = 1.0) -> KD:
  """DLLM2Rec, the ranking part: Cui et al., RecSys 2024, https://arxiv.org/abs/2405.00338.

  - sum_i w_i log sigmoid(s_i) - log sigmoid(-s_0): s_i is the student's score of the teacher's i-th item, s_0 its
  score of a random unseen item. The weights w_i ~ position p_i + confidence c_i + consistency o_i sum to 1, where
  p_i ~ exp(-i / decay) falls with the rank, c = softmax of the teacher's scores, and o_i = 1 if the item is also in
  the student's top k, else 0.

  Args:
    k: length of the lists. The teacher may be a file of ranked lists with confidences, `teacher=file`:PATH.
    position: weight of the teacher's order (p).
    confidence: weight of the teacher's confidence (c).
    consistency: weight of the agreement with the student (o).
    decay: how fast p falls with the rank.

  Departs from the authors' code: the code computes confidence as exp(-distance) between a generated description and
  the item, so a teacher file for it must have -distance as confidence; the code has -log sigmoid(1 - s) as the term
  of the negative, and uses the negative of the base loss; the code updates the student's list every step, here it is
  updated every epoch and excludes training items. The distributionally robust loss and the distillation of text
  embeddings are left out.
  """
  def sample(rng, view):
    p = jax.nn.softmax(-jnp.arange(1, k + 1) / decay)
    c = jax.nn.softmax(view.teacher.scores)
    weight = position * p + confidence * c + consistency * jnp.isin(view.teacher.items, view.student.items)
    return {"items": jnp.concatenate([view.teacher.items, view.unseen]), "importance": weight / jnp.sum(weight)}

  def loss(student, teacher, batch):
    liked, other = student.scores[:, :k], student.scores[:, k]
    return -jnp.sum(batch["importance"] * jax.nn.log_sigmoid(liked), axis=1) - jax.nn.log_sigmoid(-other)

  return KD(loss, Lists(teacher=k, student=k, unseen=1), sample, teacher_scores=False)
