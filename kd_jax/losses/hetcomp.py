"""Distillation from heterogeneous models by a curriculum (HetComp)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kd_jax.base import KD, Array, Lists
from kd_jax.losses._lists import plackett_luce_terms

_LEAST = -1e9  # Score of an observed item that is not there: behind all others.


def hetcomp(k: int = 100, unseen: int = 50, observed: int = 10, period: int = 10, threshold: float = 1.05,
            decay: float = 0.995) -> KD:
  """HetComp: Kang, Kweon, Lee, Lian, Xie, Yu, WWW 2023, https://arxiv.org/abs/2303.01130.

  --teacher=a,b,c names a curriculum, easy first: a teacher's checkpoints. Every user is at a stage of it and
  learns the ranking of that stage's teacher. Every `period` epochs the discrepancy 1 - NDCG@(k / 2) between
  the student's list and the next stage's is measured; a user moves on when the discrepancy measured as it came
  to its stage, divided by the present one, exceeds threshold decay^(epoch // period) or is below 1.

  Before its last stage a user learns the set of the list and of observed items: -2 sum_i [s_i - log(e^s_i +
  sum of e^s over unseen items not in the list)]; at the last, the order: the list-wise likelihood of observed
  items, each also before all unseen ones behind the list's top half, and the mean of the likelihoods of the
  list's top half and of its top tenth.

  Args:
    k: length of the lists.
    unseen: random items that stand for all unseen ones; theirs are weighted by (items - k) / unseen.
    observed: training items of a user, ordered by the teacher of its stage; fewer where it has fewer.
    period: epochs between two looks at the student's list; the first only measures.
    threshold: by how much the discrepancy has to shrink, at first.
    decay: of the threshold, per look.

  Departs from the authors' code: one curriculum instead of one for each of six models; observed items are
  drawn afresh every epoch, not the ten that the teachers rank highest; the loss changes for each user at its
  last stage, not when the mean stage is the last one; sums over unseen items are estimated from a sample,
  which leaves out all teachers' lists; scores are not clamped; there is a base loss, unless --loss_weight=0
  as there. Follows it in the gain 2^exp(-i / 10) - 1 of the i-th item of the student's list if it is in the
  teacher's, and in the factor 2, the ratio of its two weights, 0.01 and 0.005.
  """
  def sample(rng, view):
    stage, distance = _advance(view, k, period, threshold, decay)
    # A user's training items are few beside all items, and not subtracted.
    others = jnp.log((view.popularity.shape[0] - k) / unseen)
    items = jnp.concatenate([view.teacher.items[stage], view.unseen, jnp.maximum(view.seen, 0)])
    return {"items": items, "observed": view.seen >= 0, "log_weight": jnp.float32(others),
            "ordered": stage == view.teacher.items.shape[0] - 1, "stage": stage, "distance": distance}

  def loss(student, teacher, batch):
    top, others, seen = jnp.split(student.scores, [k, k + unseen], axis=1)
    others += batch["log_weight"][:, None]
    rest = jax.nn.logsumexp(others, axis=1, keepdims=True)
    not_in_set = lambda s, **where: jnp.sum(jnp.logaddexp(s, rest) - s, axis=1, **where)
    as_set = 2 * (not_in_set(top) + not_in_set(seen, where=batch["observed"]))
    choices = plackett_luce_terms(top, others)
    in_order = (jnp.sum(choices[:, : k // 2], axis=1) + jnp.sum(choices[:, : max(k // 10, 1)], axis=1)) / 2
    of_stage = jnp.take_along_axis(teacher.scores, batch["stage"][None, :, None], axis=0)[0, :, k + unseen :]
    behind = jnp.concatenate([top[:, k // 2 :], others], axis=1)
    return jnp.where(batch["ordered"], in_order + _in_order_of(of_stage, seen, batch["observed"], behind), as_set)

  lists = Lists(teacher=k, student=k, unseen=unseen, seen=observed, every=period)
  return KD(loss, lists, sample, all_teachers=True, remember=("stage", "distance"))


def _advance(view, k, period, threshold, decay):
  """(stage, discrepancy from the next stage as it was first measured)."""
  last, epoch = view.teacher.items.shape[0] - 1, view.epoch
  stage, before = view.previous["stage"].astype(jnp.int32), view.previous["distance"]
  to = lambda v: 1 - overlap(view.student.items[: k // 2], view.teacher.items[jnp.minimum(v, last), : k // 2])
  now = to(stage + 1)
  due = (epoch % period == 0) & (epoch >= period)
  wanted = threshold * decay ** (epoch // period)
  moves = due & (epoch > period) & (stage < last) & ((before > wanted * now) | (before < now))
  distance = jnp.where(moves, to(stage + 2), jnp.where(epoch == period, now, before))
  return stage + moves.astype(jnp.int32), distance


def _in_order_of(teacher: Array, student: Array, there: Array, behind: Array) -> Array:
  """-log p [B] that the items which are `there` come in the teacher's order, each before all of `behind`."""
  order = jnp.argsort(jnp.where(there, -teacher, jnp.inf), axis=1)
  student, there = (jnp.take_along_axis(x, order, axis=1) for x in (student, there))
  return jnp.sum(plackett_luce_terms(jnp.where(there, student, _LEAST), behind), axis=1, where=there)


def overlap(student: Array, teacher: Array) -> Array:
  """NDCG of the student's list [k], an item being relevant if it is in the teacher's list."""
  i = jnp.arange(student.shape[0])
  gain = (2 ** jnp.exp(-i / 10) - 1) / jnp.log2(i + 2)
  return jnp.sum(gain * jnp.isin(student, teacher)) / jnp.sum(gain)
