"""Ranking distillation (RD)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kd_jax.base import KD, Lists


def rd(k: int = 10, decay: float = 1.0, sharpness: float = 0.1, dynamic_samples: int = 100, start_epoch: int = 10,
       renormalize: bool = True) -> KD:
  """Ranking distillation (RD): Tang, Wang, KDD 2018, https://arxiv.org/abs/1809.07428.

  - sum_r w_r log sigmoid(student of the teacher's r-th item), r = 1..k. Up to `start_epoch`, w_r is
  a_r ~ exp(-r / decay), of sum 1; from then on, w_r ~ a_r b_r with b_r = tanh(max(sharpness (e_r - r), 0)),
  e_r = floor((I - 1) f) + 1 the estimated rank by the student, f the share of random items that it prefers.

  Args:
    k: length of the teacher's list.
    decay: lambda of the paper: how fast the weight of a position falls.
    sharpness: mu of the paper: how fast the weight of a discrepancy saturates.
    dynamic_samples: random items by which the student's rank is estimated.
    start_epoch: epochs before discrepancies count.
    renormalize: divide a_r b_r by their sum, as in the paper; the authors' code has False.

  Departs from the paper: the random items are a systematic sample of what is neither seen nor in the
  teacher's list, drawn afresh every epoch. Departs from the authors' code: that has floor(I f) - (r - 1) for
  the discrepancy e_r - r. Their average over the batch is --reduction=mean here.
  """
  def sample(rng, view):
    return {"items": jnp.concatenate([view.teacher.items, view.unseen]),
            "num_items": jnp.float32(view.popularity.shape[0])}

  def loss(student, teacher, batch):
    listed, others = student.scores[:, :k], student.scores[:, k:]
    rank = jnp.arange(1, k + 1, dtype=jnp.float32)
    position = jax.nn.softmax(-rank / decay)
    # Comparisons carry no gradient: the weights are constants without being told so.
    share = jnp.mean((others[:, None] > listed[:, :, None]).astype(jnp.float32), axis=2)
    estimated = jnp.floor((batch["num_items"][:, None] - 1) * share) + 1
    hybrid = position * jnp.tanh(jnp.maximum(sharpness * (estimated - rank), 0))
    if renormalize:
      hybrid /= jnp.maximum(jnp.sum(hybrid, axis=1, keepdims=True), 1e-12)
    weight = jnp.where(batch["epoch"] < start_epoch, position, hybrid)
    return -jnp.sum(weight * jax.nn.log_sigmoid(listed), axis=1)

  return KD(loss, Lists(teacher=k, unseen=dynamic_samples), sample, teacher_scores=False)
