"""Distillation from heterogeneous models by a curriculum (HetComp)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kd_jax.base import KD, Array, Lists
from kd_jax.losses.lists import plackett_luce_terms


def hetcomp(k: int = 100, unseen: int = 50, period: int = 10, threshold: float = 1.05, decay: float = 0.995) -> KD:
  """HetComp: Kang, Kweon, Lee, Lian, Xie, Yu, WWW 2023, https://arxiv.org/abs/2303.01130.

  --teacher=a,b,c names a curriculum, easy first: a teacher's checkpoints. Every user is at a stage of it and
  learns the ranking of that stage's teacher. Every `period` epochs the discrepancy 1 - NDCG@k between the
  student's list and the next stage's is measured; a user moves on when the discrepancy measured as it came
  to its stage, divided by the present one, exceeds threshold decay^(epoch // period) or is below 1.

  Before its last stage a user learns the set: -2 sum_i [s_i - log(e^s_i + sum of e^s over unseen items not
  in it)]; at the last, the order: the mean of the list-wise likelihoods of the top half and of the top tenth.

  Args:
    k: length of the lists.
    unseen: random items that stand for all unseen ones; theirs are weighted by (items - k) / unseen.
    period: epochs between two looks at the student's list; the first only measures.
    threshold: by how much the discrepancy has to shrink, at first.
    decay: of the threshold, per look.

  Departs from the paper and its public code: one curriculum instead of one for each of six models; observed
  items are left to the base loss, which the code has not; the loss changes for each user at its last stage,
  not when the mean stage is the last one; sums over unseen items are estimated from a sample, which
  leaves out all teachers' lists. Follows the code of RCE-KD in NDCG, with gain 2^exp(-i / 10) - 1 for
  the i-th item of the student's list if it is in the teacher's.
  """
  def sample(rng, view):
    stage, distance = _advance(view)
    # A user's training items are few beside all items, and not subtracted.
    others = jnp.log((view.popularity.shape[0] - k) / unseen)
    return {"items": jnp.concatenate([view.teacher.items[stage], view.unseen]), "log_weight": jnp.float32(others),
            "ordered": stage == view.teacher.items.shape[0] - 1, "stage": stage, "distance": distance}

  def _advance(view):
    """(stage, discrepancy from the next stage as it was first measured)."""
    last, epoch = view.teacher.items.shape[0] - 1, view.epoch
    stage, before = view.previous["stage"].astype(jnp.int32), view.previous["distance"]
    to = lambda v: 1 - overlap(view.student.items, view.teacher.items[jnp.minimum(v, last)])
    now = to(stage + 1)
    due = (epoch % period == 0) & (epoch >= period)
    wanted = threshold * decay ** (epoch // period)
    moves = due & (epoch > period) & (stage < last) & ((before > wanted * now) | (before < now))
    distance = jnp.where(moves, to(stage + 2), jnp.where(epoch == period, now, before))
    return stage + moves.astype(jnp.int32), distance

  def loss(student, teacher, batch):
    top, others = student.scores[:, :k], student.scores[:, k:] + batch["log_weight"][:, None]
    rest = jax.nn.logsumexp(others, axis=1, keepdims=True)
    as_set = 2 * jnp.sum(jnp.logaddexp(top, rest) - top, axis=1)
    choices = plackett_luce_terms(top, others)
    in_order = (jnp.sum(choices[:, : k // 2], axis=1) + jnp.sum(choices[:, : max(k // 10, 1)], axis=1)) / 2
    return jnp.where(batch["ordered"], in_order, as_set)

  return KD(loss, Lists(teacher=k, student=k, unseen=unseen, every=period), sample, teacher_scores=False,
            all_teachers=True, remember=("stage", "distance"))


def overlap(student: Array, teacher: Array) -> Array:
  """NDCG of the student's list [k], an item being relevant if it is in the teacher's list."""
  i = jnp.arange(student.shape[0])
  gain = (2 ** jnp.exp(-i / 10) - 1) / jnp.log2(i + 2)
  return jnp.sum(gain * jnp.isin(student, teacher)) / jnp.sum(gain)
