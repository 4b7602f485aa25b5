"""Distillation of an LLM's ranked lists (DLLM2Rec)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kd_jax.base import KD, Lists


def dllm2rec(k: int = 10, position: float = 0.3, confidence: float = 0.5, consistency: float = 0.1,
             decay: float = 1.0) -> KD:
  """DLLM2Rec, its ranking part: Cui et al., RecSys 2024, https://arxiv.org/abs/2405.00338.

  - sum_i w_i log sigmoid(student of the teacher's i-th item) - log sigmoid(-student of an unseen item), with
  w_i ~ position p_i + confidence c_i + consistency o_i, of sum 1: p_i ~ exp(-i / decay) falls with the rank,
  c = softmax of the teacher's scores, o_i = 1 if the item is in the student's top k too.

  Args:
    k: length of the lists. The teacher may be a file, --teacher=file:PATH, of ranked lists with confidences.
    position: weight of the teacher's order.
    confidence: weight of the teacher's confidence.
    consistency: weight of agreement with the student.
    decay: how fast p falls.

  Departs from the authors' code: confidence there is exp(-distance) between a generated description and the
  item, so a file for it holds -distance; the negative's term there is -log sigmoid(1 - s), and its
  item the one of the base loss; the student's list is of every step, here of every epoch, without training
  items. The distributionally robust term and the distillation of text embeddings are not part of it.
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
