"""Distillation from heterogeneous models with a curriculum (HetComp)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kd_jax.base import KD, Array, Lists
from kd_jax.losses._lists import plackett_luce_terms

_LEAST = -1e9  # Score of padding in the observed items: it ranks behind all others.


def hetcomp(k: int = 100, unseen: int = 50, observed: int = 10, period: int = 10, threshold: float = 1.05,
            decay: float = 0.995) -> KD:
  """HetComp: Kang, Kweon, Lee, Lian, Xie, Yu, WWW 2023, https://arxiv.org/abs/2303.01130.

  `teacher="a,b,c"` gives a curriculum, the easiest teacher first: checkpoints of one teacher. Every user is at a stage
  of the curriculum and learns the ranking of the stage's teacher. Every `period` epochs, the discrepancy
  d = 1 - NDCG@(k / 2) between the student's list and the next stage's list is measured. d_0 is the discrepancy that was
  measured when the user came to its stage. The user moves to the next stage if d_0 / d is greater than
  threshold decay^(epoch // period), or less than 1.

  Before the last stage, a user learns the set of listed and observed items, without an order:
  -2 sum_i [s_i - log(e^s_i + sum of e^s over unseen items not in the list)]. At the last stage, it learns the order.
  That loss is the sum of two parts: the list-wise likelihood of the observed items, each before the list's lower half
  and all unseen items; and the mean of the list-wise likelihoods of the list's top half and of its top tenth.

  Args:
    k: length of the lists.
    unseen: number of random items that represent all unseen items; their terms have weight (items - k) / unseen.
    observed: number of training items per user, ordered by the teacher of the user's stage; fewer if a user has fewer.
    period: epochs between two measurements of the discrepancy; the first only initialises d_0.
    threshold: the ratio d_0 / d above which a user moves on, at first.
    decay: factor of the threshold at each measurement.

  Departs from the authors' code: there is one curriculum, not one for each of six models; observed items are sampled
  again every epoch, they are not the ten that the teachers rank highest; the loss changes for each user at its last
  stage, not when the mean stage of all users is the last one; sums over unseen items are estimated from a sample that
  excludes the lists of all teachers; scores are not clamped; there is a base loss (the code has none: use
  `loss_weight=0).` Follows the code in the gain 2^exp(-i / 10) - 1 of the i-th item of the student's list if the item
  is in the teacher's list, and in the factor 2, the ratio of the code's two weights, 0.01 and 0.005.
  """
  def sample(rng, view):
    stage, distance = _advance(view, k, period, threshold, decay)
    # A user's training items are not subtracted: they are few compared with all items.
    others = jnp.log((view.popularity.shape[0] - k) / unseen)
    items = jnp.concatenate([view.teacher.items[stage], view.unseen, jnp.maximum(view.seen, 0)])
    return {"items": items, "observed": view.seen >= 0, "log_weight": jnp.float32(others),
            "ordered": stage == view.teacher.items.shape[0] - 1, "stage": stage, "distance": distance}

  def loss(student, teacher, batch):
    top, others, seen = jnp.split(student.scores, [k, k + unseen], axis=1)
    others += batch["log_weight"][:, None]
    rest = jax.nn.logsumexp(others, axis=1, keepdims=True)

    def not_in_set(s, **where):
      return jnp.sum(jnp.logaddexp(s, rest) - s, axis=1, **where)

    as_set = 2 * (not_in_set(top) + not_in_set(seen, where=batch["observed"]))
    choices = plackett_luce_terms(top, others)
    in_order = (jnp.sum(choices[:, : k // 2], axis=1) + jnp.sum(choices[:, : max(k // 10, 1)], axis=1)) / 2
    of_stage = jnp.take_along_axis(teacher.scores, batch["stage"][None, :, None], axis=0)[0, :, k + unseen :]
    behind = jnp.concatenate([top[:, k // 2 :], others], axis=1)
    return jnp.where(batch["ordered"], in_order + _in_order_of(of_stage, seen, batch["observed"], behind), as_set)

  lists = Lists(teacher=k, student=k, unseen=unseen, seen=observed, every=period)
  return KD(loss, lists, sample, all_teachers=True, remember=("stage", "distance"))


def _advance(view, k, period, threshold, decay):
  """(stage, d_0: the discrepancy from the next stage when it was first measured)."""
  last, epoch = view.teacher.items.shape[0] - 1, view.epoch
  stage, before = view.previous["stage"].astype(jnp.int32), view.previous["distance"]

  def to(v):
    return 1 - overlap(view.student.items[: k // 2], view.teacher.items[jnp.minimum(v, last), : k // 2])

  now = to(stage + 1)
  due = (epoch % period == 0) & (epoch >= period)
  wanted = threshold * decay ** (epoch // period)
  moves = due & (epoch > period) & (stage < last) & ((before > wanted * now) | (before < now))
  distance = jnp.where(moves, to(stage + 2), jnp.where(epoch == period, now, before))
  return stage + moves.astype(jnp.int32), distance


def _in_order_of(teacher: Array, student: Array, there: Array, behind: Array) -> Array:
  """-log p [B] that the items marked in `there` rank in the teacher's order and before all of `behind`."""
  order = jnp.argsort(jnp.where(there, -teacher, jnp.inf), axis=1)
  student, there = (jnp.take_along_axis(x, order, axis=1) for x in (student, there))
  return jnp.sum(plackett_luce_terms(jnp.where(there, student, _LEAST), behind), axis=1, where=there)


def overlap(student: Array, teacher: Array) -> Array:
  """NDCG of the student's list [k]; an item is relevant if it is in the teacher's list."""
  i = jnp.arange(student.shape[0])
  gain = (2 ** jnp.exp(-i / 10) - 1) / jnp.log2(i + 2)
  return jnp.sum(gain * jnp.isin(student, teacher)) / jnp.sum(gain)
