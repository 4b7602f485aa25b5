"""Rejuvenated cross-entropy for knowledge distillation (RCE-KD)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kd_jax.base import KD, InputError, Lists
from kd_jax.losses._lists import draw_without_replacement

SEARCH = "weight=log(1e-1, 1000); temperature=0.5|1|2; sampled=20|50|100; beta=log(0.5, 10)"

_MOST_COUNTED = 50  # The upper bound of c_i in the authors' code.


def rcekd(k: int = 50, sampled: int = 50, depth: int = 200, temperature: float = 1.0,
          sampling_temperature: float = 10.0, beta: float = 3.0) -> KD:
  """Rejuvenated cross-entropy for KD (RCE-KD): Zhu, Zhang, ICLR 2026.

  (1 - g) CE(softmax t, s; on Q_S) + g CE(softmax t, s; on Q_T + A), with g = exp(-beta |Q_T & A| / k).

  Q_S and Q_T are the student's and the teacher's top k. A has `sampled` items, drawn without replacement from the
  student's top `depth`. Position i has weight exp((c_i + 1) / sampling_temperature), where c_i is the number of Q_T's
  items at position i or lower in that list, at most 50. Lists may contain training items.

  Args:
    k: length of Q_S and Q_T.
    sampled: size of A.
    depth: length of the student's list from which A is drawn.
    temperature: softens teacher and student; without a factor temperature^2, as in the authors' code.
    sampling_temperature: flattens the weights of the draw.
    beta: how fast weight moves from the second term to the first as the two rankings agree more.

  Follows the authors' code in two points: an item of Q_T that is also in Q_S or A counts in Q_S or A only; the overlap
  is measured with the sampled A, not with Q_S.
  """
  if max(k, sampled) > depth:
    raise InputError(f"k={k} or sampled={sampled} is more than depth={depth}")

  def sample(rng, view):
    listed, teacher = view.student.items, view.teacher.items[:k]
    agree = jnp.isin(listed, teacher)
    below = jnp.cumsum(agree[::-1])[::-1]
    log_weights = (jnp.minimum(below, _MOST_COUNTED) + 1) / sampling_temperature
    drawn = listed[draw_without_replacement(rng, log_weights, sampled)]
    in_drawn = jnp.isin(teacher, drawn)
    return {"items": jnp.concatenate([listed[:k], drawn, teacher]),
            "fresh": ~in_drawn & ~jnp.isin(teacher, listed[:k]),
            "shared": jnp.mean(in_drawn.astype(jnp.float32))}

  def loss(student, teacher, batch):
    s, t = student.scores / temperature, teacher.scores / temperature
    # [B, sampled + k]: all items of A, and the items of Q_T that are in neither Q_S nor A.
    counted = jnp.concatenate([jnp.ones((s.shape[0], sampled), bool), batch["fresh"]], axis=1)
    g = jnp.exp(-beta * batch["shared"])
    return (1 - g) * _cross_entropy(t[:, :k], s[:, :k]) + g * _cross_entropy(t[:, k:], s[:, k:], counted)

  return KD(loss, Lists(teacher=k, student=depth, exclude_seen=False), sample)


def _cross_entropy(teacher, student, counted=True):
  p = jax.nn.softmax(teacher, where=counted)
  return -jnp.sum(p * jax.nn.log_softmax(student, where=counted), axis=1, where=counted)
