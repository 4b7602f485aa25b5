"""Distillation from heterogeneous models with a curriculum (HetComp)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kd_jax.base import KD, ROWS, Array, Lists
from kd_jax.losses._lists import first_met, plackett_luce_terms

SEARCH = "weight=log(1e-4, 1); k=50|100; unseen=50|100|200; threshold=uniform(1.01, 1.1)"

_LEAST = -1e9  # Score of padding: it ranks behind all others and adds nothing to a sum of exponentials.


def hetcomp(k: int = 100, unseen: int = 50, observed: int = 10, period: int = 10, threshold: float = 1.05,
            decay: float = 0.995, cutoff: int = 0, first: bool = False, together: bool = False) -> KD:
  """HetComp: Kang, Kweon, Lee, Lian, Xie, Yu, WWW 2023, https://arxiv.org/abs/2303.01130.

  `teacher="a,b,c"` gives a curriculum, the easiest teacher first: checkpoints of one teacher. Every user is at a stage
  of the curriculum and learns the ranking of the stage's teacher. Every `period` epochs, the discrepancy
  d = 1 - NDCG@cutoff between the student's list and the next stage's list is measured. d_0 is the discrepancy that was
  measured when the user came to its stage. The user moves to the next stage if d_0 / d is greater than
  threshold decay^(epoch // period), or less than 1.

  Before the last stage, a user learns the set of listed and observed items, without an order:
  -2 sum_i [s_i - log(e^s_i + sum of e^s over unseen items not in the list)]. At the last stage, it learns the order.
  That loss is the sum of two parts: the list-wise likelihood of the observed items, each before the list's lower half
  and all unseen items; and the mean of the list-wise likelihoods of the list's top half and of its top tenth.

  Args:
    k: length of the lists.
    unseen: number of random items that represent the unseen items outside the lists of all stages.
    observed: number of training items per user; fewer if a user has fewer.
    period: epochs between two measurements of the discrepancy; the first only initialises d_0.
    threshold: the ratio d_0 / d above which a user moves on, at first.
    decay: factor of the threshold at each measurement.
    cutoff: how many items of the lists NDCG compares; 0: k / 2.
    first: the observed items are the user's first training interactions, in the order of the data. If False, they are
      sampled again every epoch, and the teacher of the user's stage orders them.
    together: all users change to the loss with order in the same epoch, when the mean stage of all users, rounded to
      two digits, is the last one; then no user moves any more. If False, each user does so at its last stage.

  hetcomp(k=50, cutoff=50, observed=4, first=True, together=True), with a base loss of weight 1, is the method in the
  public code of RCE-KD; there, `observed` is the smallest number of training items of a user, which is 4 for CiteULike.
  The authors' own code has together=True as well, and no base loss: `loss_weight=0`.

  Departs from both codes: there is one curriculum, not one for each of six models (RCE-KD's code has one too); the sum
  over unseen items outside the lists is estimated from a sample; scores are not clamped to [-40, 40]. The authors
  observe the ten training items that the teachers rank highest. Follows both codes in the gain 2^exp(-i / 10) - 1 of
  the i-th item of the student's list if the item is in the teacher's list, and in the factor 2 (in the authors' code,
  the ratio of its two weights, 0.01 and 0.005).
  """
  def sample(rng, view):
    stage, distance, ordered = _advance(view, cutoff or k // 2, period, threshold, decay, together)
    lists = view.teacher.items
    own, elsewhere = lists[stage], jnp.roll(lists, -stage, axis=0)[1:].reshape(-1)
    counted = first_met(jnp.concatenate([own, elsewhere]))[k:]
    # A user's training items are not subtracted: they are few compared with all items.
    left = view.popularity.shape[0] - k - jnp.sum(counted)
    others = jnp.where(left > 0, jnp.log(jnp.maximum(left, 1) / unseen), _LEAST)
    items = jnp.concatenate([own, view.unseen, jnp.maximum(view.seen, 0), elsewhere])
    return {"items": items, "observed": view.seen >= 0, "counted": counted, "log_weight": others.astype(jnp.float32),
            "ordered": ordered, "stage": stage, "distance": distance,
            **({} if first else {"priority": view.priority[view.seen]})}

  def loss(student, teacher, batch):
    top, drawn, seen, elsewhere = jnp.split(student.scores, [k, k + unseen, k + unseen + observed], axis=1)
    drawn += batch["log_weight"][:, None]
    others = jnp.concatenate([drawn, jnp.where(batch["counted"], elsewhere, _LEAST)], axis=1)
    rest = jax.nn.logsumexp(others, axis=1, keepdims=True)

    def not_in_set(s, **where):
      return jnp.sum(jnp.logaddexp(s, rest) - s, axis=1, **where)

    as_set = 2 * (not_in_set(top) + not_in_set(seen, where=batch["observed"]))
    choices = plackett_luce_terms(top, others)
    in_order = (jnp.sum(choices[:, : k // 2], axis=1) + jnp.sum(choices[:, : max(k // 10, 1)], axis=1)) / 2
    behind = jnp.concatenate([top[:, k // 2 :], others], axis=1)
    there = batch["observed"]
    if not first:
      of_seen = teacher.scores[:, :, k + unseen : k + unseen + observed]
      seen, there = _by_teacher(of_seen, batch["stage"], batch["priority"], seen, there)
    of_seen = jnp.sum(plackett_luce_terms(jnp.where(there, seen, _LEAST), behind), axis=1, where=there)
    return jnp.where(batch["ordered"], in_order + of_seen, as_set)

  lists = Lists(teacher=k, student=k, unseen=unseen, seen=observed, first=first, every=period)
  return KD(loss, lists, sample, teacher_scores=not first, all_teachers=True, remember=("stage", "distance"))


def _advance(view, cutoff, period, threshold, decay, together):
  """(stage, d_0: the discrepancy from the next stage when it was first measured, whether the order is learned)."""
  last, epoch = view.teacher.items.shape[0] - 1, view.epoch
  stage, before = view.previous["stage"].astype(jnp.int32), view.previous["distance"]

  def to(v):
    return 1 - overlap(view.student.items[:cutoff], view.teacher.items[jnp.minimum(v, last), :cutoff])

  def arrived(stage):
    if not together:
      return stage == last
    mean = jax.lax.psum(view.weight * stage, ROWS) / jax.lax.psum(view.weight, ROWS)
    return jnp.round(100 * mean) >= 100 * last

  now = to(stage + 1)
  due = (epoch % period == 0) & (epoch >= period)
  wanted = threshold * decay ** (epoch // period)
  moves = due & (epoch > period) & (stage < last) & ~arrived(stage) & ((before > wanted * now) | (before < now))
  distance = jnp.where(moves, to(stage + 2), jnp.where(epoch == period, now, before))
  stage += moves.astype(jnp.int32)
  return stage, distance, arrived(stage)


def _by_teacher(teacher: Array, stage: Array, priority: Array, student: Array, there: Array) -> tuple[Array, Array]:
  """`student` and `there` [B, n] in the order of the scores [E, B, n] of the teacher of each row's stage; items of
  equal score are in the order of `priority` [B, n]."""
  of_stage = jnp.take_along_axis(teacher, stage[None, :, None], axis=0)[0]
  order = jnp.lexsort((priority, jnp.where(there, -of_stage, jnp.inf)), axis=1)
  return jnp.take_along_axis(student, order, axis=1), jnp.take_along_axis(there, order, axis=1)


def overlap(student: Array, teacher: Array) -> Array:
  """NDCG of the student's list [k]; an item is relevant if it is in the teacher's list."""
  i = jnp.arange(student.shape[0])
  gain = (2 ** jnp.exp(-i / 10) - 1) / jnp.log2(i + 2)
  return jnp.sum(gain * jnp.isin(student, teacher)) / jnp.sum(gain)
