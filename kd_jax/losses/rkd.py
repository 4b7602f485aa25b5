"""Relational knowledge distillation (RKD)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from kd_jax.base import KD
from kd_jax.losses._experts import by_row, entity

SEARCH = "weight=log(1e-4, 10); distance_weight=log(1, 100); angle_weight=log(1, 100)"

_TINY = 1e-9


def rkd(distance_weight: float = 25.0, angle_weight: float = 50.0, anchors: int = 16) -> KD:
  """Relational knowledge distillation (RKD): Park, Kim, Lu, Cho, CVPR 2019, https://arxiv.org/abs/1904.05068.

  distance_weight * RKD-D + angle_weight * RKD-A, where h is the Huber loss with threshold 1:
  RKD-D = mean over pairs of h(|s_i - s_j| / mu_s, |t_i - t_j| / mu_t), where mu is the mean distance;
  RKD-A = mean over triplets of h(cos of the student's angle j-i-k, cos of the teacher's angle).

  Args:
    distance_weight: weight of RKD-D; the default is the authors' value for classification.
    angle_weight: weight of RKD-A; the default is the authors' value for classification.
    anchors: number of anchors: random distinct entities of the batch, drawn again for each batch by a hash of epoch
      and entity. j and k are anchors, i is every entity. If the batch has no more entities, all are anchors.

  Departs from the paper: j and k are anchors only, since thousands of entities have too many triplets. Vectors of users
  and items, compared with each other, replace vectors of images. They may have any length, while the authors' code for
  classification scales them to length 1. The paper writes sums, and the authors' code takes means: here the loss of a
  row is its mean over j (RKD-A: over j and k), so the sum over rows is the mean over all times the number of rows.
  Means leave out pairs and triplets in which i, j or k are the same entity, whose terms are 0; the code counts them.
  With `kd_per=user`, every entity counts once.
  """
  def loss(student, teacher, batch):
    key, weight = entity(batch), batch["weight"]
    chosen, chosen_key, chosen_weight = _draw(key, weight, batch["epoch"], min(anchors, key.shape[0]))
    sides = [_products(x.query, chosen) for x in (student, teacher)]

    def relations(row):
      of, pairs = chosen_weight * (chosen_key != row[1]), jnp.eye(len(chosen)) == 0
      distances, cosines = zip(*(_seen_from(own, among) for own, (_, among) in zip(row[0], sides, strict=True)),
                               strict=True)
      return distances, of, _mean(optax.huber_loss(*cosines), of[:, None] * of * pairs, axis=(0, 1))

    (s_distance, t_distance), of, angle = by_row(relations, ([own for own, _ in sides], key))
    scaled = (d / _mean(d, weight[:, None] * of, axis=(0, 1)) for d in (s_distance, t_distance))
    distance = _mean(optax.huber_loss(*scaled), of, axis=1)
    return distance_weight * distance + angle_weight * angle

  return KD(loss, teacher_scores=False, rows="entities", in_batch=True)


def _products(x, chosen):
  """((squared lengths [E] of the rows of x [E, D], their products [E, n] with the chosen rows), products [n, n]).

  The last are products of the chosen rows. All distances and angles are computed from these, without differences [E, n,
  D]. The mean of the chosen rows is subtracted first, which keeps the rounding errors of later subtractions small.
  """
  x = x - jax.lax.stop_gradient(jnp.mean(x[chosen], axis=0))
  return (jnp.sum(x * x, axis=1), x @ x[chosen].T), x[chosen] @ x[chosen].T


def _seen_from(own, among):
  """(distances [n] from one row to the chosen rows, cosines [n, n] of the angles at that row)."""
  length, towards = own
  spanned = among - towards[:, None] - towards + length
  distance = jnp.sqrt(jnp.maximum(jnp.diagonal(spanned), 1e-16))
  return distance, spanned / (distance[:, None] * distance)


def _mean(x, weight, axis):
  return jnp.sum(weight * x, axis=axis) / jnp.maximum(jnp.sum(weight, axis=axis), _TINY)


def _draw(key, weight, epoch, n):
  """(row, entity, weight) [n] of random distinct entities; padding of weight 0 if the batch has fewer."""
  key = jnp.where(weight > 0, key, -1)
  distinct, row, place = jnp.unique(key, return_index=True, return_inverse=True, size=key.shape[0],
                                    fill_value=-1)
  total = jax.ops.segment_sum(weight, place, key.shape[0]) * (distinct >= 0)
  rng = jax.random.fold_in(jax.random.key(0), epoch)
  lot = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(rng, k)))(distinct)
  _, drawn = jax.lax.top_k(jnp.where(distinct >= 0, lot, -1.0), n)
  return row[drawn], distinct[drawn], total[drawn]
