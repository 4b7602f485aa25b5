"""Ranking distillation (RD)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kd_jax.base import KD, Lists

SEARCH = "weight=log(1e-2, 10); k=10|20|30; sharpness=log(1e-2, 1); start_epoch=0|10|50"


def rd(k: int = 10, decay: float = 1.0, sharpness: float = 0.1, dynamic_samples: int = 100, start_epoch: int = 10,
       renormalize: bool = True) -> KD:
  """Ranking distillation (RD): Tang, Wang, KDD 2018, https://arxiv.org/abs/1809.07428.

  - sum_r w_r log sigmoid(s_r), r = 1..k, where s_r is the student's score of the teacher's r-th item. Before
  `start_epoch`, w_r = a_r ~ exp(-r / decay), with sum 1. From then on, w_r ~ a_r b_r with
  b_r = tanh(max(sharpness (e_r - r), 0)). e_r = floor((I - 1) f) + 1 is the student's estimated rank of the item
  among I items, where f is the share of random items that the student scores higher.

  Args:
    k: length of the teacher's list.
    decay: lambda of the paper: how fast the weight of a position falls.
    sharpness: mu of the paper: how fast b_r saturates with the discrepancy e_r - r.
    dynamic_samples: number of random items that estimate the student's rank.
    start_epoch: number of epochs before discrepancies are used.
    renormalize: divide a_r b_r by their sum, as in the paper; False in the authors' code.

  Departs from the paper: the random items are a systematic sample of the items that are neither seen nor in the
  teacher's list, drawn again every epoch. Departs from the authors' code: the code counts a padding item as an item, so
  the discrepancy e_r - r is floor(I f) - (r - 1) there; it averages the loss over the batch; use `reduction=mean` for
  that. The codes of UnKD and RCE-KD count r from 0 in the discrepancy only: it is greater by 1. UnKD's code takes the
  mean over the list, which is weight 1 / k on the sum here, uses discrepancies from its 100th epoch on
  (`start_epoch=99`, as epochs count from 0 here), and has (1 - weight) times the base loss and L2.
  """
  def sample(rng, view):
    return {"items": jnp.concatenate([view.teacher.items, view.unseen]),
            "num_items": jnp.float32(view.popularity.shape[0])}

  def loss(student, teacher, batch):
    listed, others = student.scores[:, :k], student.scores[:, k:]
    rank = jnp.arange(1, k + 1, dtype=jnp.float32)
    position = jax.nn.softmax(-rank / decay)
    # Comparisons have no gradient, so the weights need no stop_gradient.
    share = jnp.mean((others[:, None] > listed[:, :, None]).astype(jnp.float32), axis=2)
    estimated = jnp.floor((batch["num_items"][:, None] - 1) * share) + 1
    hybrid = position * jnp.tanh(jnp.maximum(sharpness * (estimated - rank), 0))
    if renormalize:
      hybrid /= jnp.maximum(jnp.sum(hybrid, axis=1, keepdims=True), 1e-12)
    weight = jnp.where(batch["epoch"] < start_epoch, position, hybrid)
    return -jnp.sum(weight * jax.nn.log_sigmoid(listed), axis=1)

  return KD(loss, Lists(teacher=k, unseen=dynamic_samples), sample, teacher_scores=False)
