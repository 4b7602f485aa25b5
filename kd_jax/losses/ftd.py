"""Full topology distillation (FTD)."""

from __future__ import annotations

import jax.numpy as jnp

from kd_jax.base import KD
from kd_jax.losses._experts import unit

SEARCH = "weight=log(1e-5, 1)"


def ftd() -> KD:
  """Full topology distillation (FTD): Kang, Hwang, Kweon, Yu, KDD 2021, https://arxiv.org/abs/2106.08700.

  The sum of (cos(s_i, s_j) - cos(t_i, t_j))^2 over all ordered pairs (i, j) of the entities of a batch, which are its
  users and items together. The loss of row i is the sum over j.

  Args: none.

  With `kd_per=user`, which uses distinct entities, the loss does not depart from the authors' code; otherwise entities
  that occur several times count several times. No matrix of pairs is built: with unit rows S and T and weights W, the
  sum over j is s (S'WS) s' - 2 s (S'WT) t' + t (T'WT) t'. Its rounding error in float32 is about 1e-7 times the sum of
  squared cosines.
  """
  def loss(student, teacher, batch):
    s, t = unit(student.query), unit(teacher.query)
    ws, wt = (batch["weight"][:, None] * x for x in (s, t))

    def form(x, middle, y):
      return jnp.sum((x @ middle) * y, axis=1)

    return form(s, ws.T @ s, s) - 2 * form(s, ws.T @ t, t) + form(t, wt.T @ t, t)

  return KD(loss, teacher_scores=False, rows="entities", in_batch=True)
