"""Collaborative distillation (CD)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kd_jax.base import KD, InputError, Lists
from kd_jax.losses._lists import draw_without_replacement

SEARCH = "weight=log(1e-2, 10); temperature=log(1, 100); sampled=20|50|100"


def cd(sampled: int = 50, depth: int = 900, temperature: float = 20.0, softness: float = 2.0, shift: float = 0.0,
       guide: str = "teacher", every: int = 5, redraw: bool = True) -> KD:
  """Collaborative distillation (CD): Lee, Choi, Lee, Shim, ICDM 2019, https://arxiv.org/abs/1911.05276.

  mean over sampled unseen items of BCE(sigmoid(student), sigmoid((teacher + shift) / softness)). To sample an item,
  two ranks r of the guide's list are drawn with p ~ exp(-r / (depth temperature)), and the better rank is kept.
  This is repeated until there are `sampled` distinct items.

  Args:
    sampled: items per user.
    depth: length of the guide's list from which items are sampled.
    temperature: flattens the sampling distribution; at 20, both draws are nearly uniform over the list.
    softness: T1 of the paper; softens the teacher's probability only, so no factor T1^2 is needed.
    shift: T2 of the paper; added to the teacher's scores.
    guide: the network whose list is used, "teacher" or "student".
    every: with guide="student", epochs between two rankings by the student.
    redraw: sample again every epoch. If False, a user's positions in the list are drawn once, and they do not
      depend on the seed.

  The authors' code is not available. Follows the re-implementations in the repositories of UnKD and RCE-KD, and
  departs from them: their depth is 3,000, which is more than small data sets have; UnKD's code samples once for the
  whole run; RCE-KD's code ranks with the student every epoch, samples 2 items, and sums. Both codes try to sample
  distinct items, but they compare tensors by identity, so items repeat.
  """
  if guide not in ("teacher", "student"):
    raise InputError(f"guide={guide!r}: choose from teacher, student")
  p = np.exp(-np.arange(1, depth + 1) / (depth * temperature))
  # The better of two draws is r if one draw is r and the other is r or a worse rank, in either order. Drawing until
  # n ranks are distinct is the same as sampling without replacement.
  log_weights = np.log(p) + np.log(p + 2 * (p.sum() - np.cumsum(p)).clip(0))

  def sample(rng, view):
    if not redraw:
      rng = jax.random.fold_in(jax.random.key(0), view.user)
    drawn = draw_without_replacement(rng, jnp.asarray(log_weights, jnp.float32), sampled)
    if guide == "student":
      return {"items": view.student.items[drawn]}
    return {"items": view.teacher.items[drawn], "teacher": view.teacher.scores[drawn]}

  def loss(student, teacher, batch):
    target = jax.nn.sigmoid((teacher.scores + shift) / softness)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(student.scores, target), axis=1)

  lists = Lists(teacher=depth) if guide == "teacher" else Lists(student=depth, every=every)
  return KD(loss, lists, sample)
