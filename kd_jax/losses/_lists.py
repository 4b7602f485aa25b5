"""Shared by several methods: candidate lists, draws without replacement, the list-wise likelihood."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kd_jax.base import Array, InputError, Lists

CANDIDATES = ("full", "teacher", "student")
_LONG = 1000  # of a list; a scan takes K * C steps, a table the memory of all items


def candidate_lists(candidates: str, k: int, exclude_seen: bool, all_teachers: bool = False):
  """(Lists, sample) of a method whose candidates are all items, the teacher's top k or the student's top k.

  With `all_teachers`, candidates="teacher" means the union of the top k of all teachers; `counted` [C] is then True
  for the first occurrence of an item, else False.
  """
  if candidates not in CANDIDATES:
    raise InputError(f"candidates={candidates!r}: choose from {', '.join(CANDIDATES)}")
  if candidates == "full":
    return Lists(), None
  if candidates == "teacher" and all_teachers:
    def union(rng, view):
      items = view.teacher.items.reshape(-1)
      return {"items": items, "counted": first_met(items)}

    return Lists(teacher=k, exclude_seen=exclude_seen), union
  if candidates == "teacher":
    def sample(rng, view):
      return {"items": view.teacher.items[:k], "teacher": view.teacher.scores[:k]}

    return Lists(teacher=k, exclude_seen=exclude_seen), sample
  return Lists(student=k, exclude_seen=exclude_seen), lambda rng, view: {"items": view.student.items[:k]}


def first_met(items: Array) -> Array:
  """True for the first occurrence of each item in items [C], else False."""
  place = jnp.arange(items.shape[0])
  return ~jnp.any((items[:, None] == items) & (place < place[:, None]), axis=1)


def rank_in(listed: Array, items: Array, num_items: int = 0) -> Array:
  """Ranks (from 0) of items [C] in listed [K]; K for items that are not listed.

  A scan over the list: 17 times faster than one comparison of all pairs, which does not vectorise. For a list of more
  than _LONG of `num_items` items, if that is given, a table of all items.
  """
  k = listed.shape[0]
  if num_items and k > _LONG:
    return jnp.full(num_items, k, jnp.int32).at[listed].set(jnp.arange(k, dtype=jnp.int32))[items]

  def step(rank, x):
    return (jnp.where(items == x[1], x[0], rank), None)

  start = jnp.full(items.shape, k, jnp.int32)
  return jax.lax.scan(step, start, (jnp.arange(k, dtype=jnp.int32), listed))[0]


def draw_without_replacement(rng: Array, log_weights: Array, n: int) -> Array:
  """Indices [n] drawn one after another with p ~ exp(log_weights [K]), in the order of the draws.

  This is the Gumbel top-n trick; Yellott 1977, Kool et al., ICML 2019.
  """
  return jax.lax.top_k(log_weights + jax.random.gumbel(rng, log_weights.shape), n)[1]


def plackett_luce(interesting: Array, uninteresting: Array) -> Array:
  """-log p(items rank in the order of interesting [B, K], and before all of uninteresting [B, L]) -> [B].

  Both arguments are scores. Kang et al., CIKM 2020; Xia et al., ICML 2008.
  """
  return jnp.sum(plackett_luce_terms(interesting, uninteresting), axis=1)


def plackett_luce_terms(interesting: Array, uninteresting: Array) -> Array:
  """The K terms -log p(choice) [B, K] of `plackett_luce`; the first n terms sum to -log p of the first n choices.

  The sum over the remaining items is accumulated in log space from the last choice to the first. This is a scan,
  because XLA's cumulative logsumexp is far slower.
  """
  rest = jax.nn.logsumexp(uninteresting, axis=1)  # [B]
  _, left = jax.lax.scan(lambda x, s: (jnp.logaddexp(x, s),) * 2, rest, interesting.T, reverse=True)
  return left.T - interesting
