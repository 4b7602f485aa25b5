"""Bidirectional distillation (BD)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from kd_jax.base import KD, InputError, Lists
from kd_jax.losses._lists import draw_without_replacement, rank_in

SEARCH = "weight=log(1e-3, 10); temperature=log(0.5, 20); sharpness=log(1e-4, 0.1)"

_LEAST = 1e-9  # Weight of items that are drawn only if there are too few others.


def bd(learner: str = "student", sampled: int = 20, temperature: float = 5.0, sharpness: float = 0.01,
       peer_sharpness: float = 1e-4, depth: int = 500, every: int = 10) -> KD:
  """Bidirectional distillation (BD): Kweon, Kang, Yu, WWW 2021, https://arxiv.org/abs/2106.02870.

  sum over sampled items of BCE(sigmoid(own score), sigmoid(other's score / temperature)). "Own" is the network that
  learns, "other" is the network that it learns from. Items that the other ranks higher are more likely to be sampled.
  Items are sampled without replacement: for the student with p ~ tanh(max(sharpness (own rank - other's rank), 0))
  from the other's top `depth`, for the peer with p ~ exp(peer_sharpness (own rank - other's rank)) from all unseen
  items.

  One call is one direction. In the paper, a large and a small network learn together and from each other:
  --peer=MODEL --kd="0.5*bd() + 0.5*bd(learner='peer')".

  Args:
    learner: the network that learns, "student" (the small network) or "peer" (the large one).
    sampled: items per user, sampled again every epoch. In the paper it depends on the user's interactions.
    temperature: softens the other's probability only, so no factor temperature^2 is needed.
    sharpness: for the student, how fast p saturates with the rank difference.
    peer_sharpness: for the peer, how fast p grows with the rank difference.
    depth: length of both lists. For the student, items outside its list have rank `depth`; there
      tanh(depth sharpness) = 1 - 9e-5.
    every: epochs between two rankings.

  Departs from the paper: for the student, only the other's top `depth` is drawn from, while the paper draws from all
  unseen items: of 16,000 items, the top 500 have 4 to 6 % of the paper's mass. A `depth` of the number of items minus
  the most training items of a user is the paper's distribution, but for the last items of the lists (with more, users
  are left out). It is not the default: the lists of both networks for all users must fit into memory, 16 bytes an item,
  and ranking and sampling take more than ten times as long as with 500 (25,181 items). For the peer, all unseen items
  are drawn from with any `depth`: items outside a list have the mean of the remaining ranks, and `sampled` random
  unseen items represent all items outside the student's list. For both, there is no warm-up (use a schedule for the
  weight); the other's scores are from the beginning of the epoch. The sign of rank differences is as in the paper; the
  authors' notebook for CDAE counts ranks from the worst item, draws with replacement, and has sharpness 1e-4 and
  temperature 2.
  """
  if learner not in ("student", "peer"):
    raise InputError(f"learner={learner!r}: choose from student, peer")

  def of_student(rng, view):
    gap = rank_in(view.student.items, view.teacher.items, view.popularity.shape[0]) - jnp.arange(depth)
    weight = jnp.maximum(jnp.tanh(sharpness * gap), _LEAST)
    return {"items": view.teacher.items[draw_without_replacement(rng, jnp.log(weight), sampled)]}

  def of_peer(rng, view):
    num_items = view.popularity.shape[0]
    items = jnp.concatenate([view.teacher.items, view.unseen])
    own, other = (rank_in(x.items, items) for x in (view.student, view.teacher))
    behind = (depth + num_items - 1) / 2
    gap = jnp.where(own < depth, own, behind) - jnp.where(other < depth, other, behind)
    drawn = jnp.arange(depth + sampled) >= depth
    stands_for = jnp.where(drawn, jnp.log((num_items - depth) / sampled), 0.0)
    log_weights = jnp.where(drawn & (other < depth), jnp.log(_LEAST), peer_sharpness * gap + stands_for)
    return {"items": items[draw_without_replacement(rng, log_weights, sampled)]}

  def loss(student, teacher, batch):
    target = jax.nn.sigmoid(teacher.scores / temperature)
    return jnp.sum(optax.sigmoid_binary_cross_entropy(student.scores, target), axis=1)

  to_peer = learner == "peer"
  lists = Lists(teacher=depth, student=depth, unseen=sampled if to_peer else 0, every=every)
  return KD(loss, lists, of_peer if to_peer else of_student, learner=learner)
