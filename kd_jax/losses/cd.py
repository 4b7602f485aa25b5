"""Collaborative distillation (CD)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kd_jax.base import KD, InputError, Lists
from kd_jax.losses._lists import draw_without_replacement


def cd(sampled: int = 50, depth: int = 900, temperature: float = 20.0, softness: float = 2.0, shift: float = 0.0,
       guide: str = "teacher", every: int = 5, redraw: bool = True) -> KD:
  """Collaborative distillation (CD): Lee, Choi, Lee, Shim, ICDM 2019, https://arxiv.org/abs/1911.05276.

  mean over sampled unseen items of BCE(sigmoid(student), sigmoid((teacher + shift) / softness)). An item is
  sampled by drawing two ranks r of the guide's list with p ~ exp(-r / (depth temperature)) and keeping the
  better one, until `sampled` distinct items are found.

  Args:
    sampled: items per user.
    depth: how much of the guide's list they are drawn from.
    temperature: flattens the draw; at 20 the two draws are nearly uniform over the list.
    softness: T1 of the paper, of the teacher's probability.
    shift: T2 of the paper, added to the teacher's scores.
    guide: whose list, "teacher" or "student".
    every: epochs between two rankings by the student, with guide="student".
    redraw: afresh every epoch; if not, a user's places in the list are drawn once, the same whatever the seed.

  There is no authors' code; follows the re-implementations in UnKD's and RCE-KD's repositories, and departs
  from them: depth is 3,000 there, more than small data sets have; UnKD's draws once for the whole run;
  RCE-KD's ranks with the student every epoch, draws 2 items, and sums. Their samples are meant to be
  distinct but, held by identity, are not.
  """
  if guide not in ("teacher", "student"):
    raise InputError(f"guide={guide!r}: choose from teacher, student")
  p = np.exp(-np.arange(1, depth + 1) / (depth * temperature))
  # Better of two: r itself and anything behind it, in either order. Until n are distinct: without replacement.
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
