"""Generated data of any size."""

from __future__ import annotations

import functools

import numpy as np

from kd_jax.base import InputError
from kd_jax.data.recipe import Log, Recipe

_PHASES = 4  # time steps of a history; preferences drift between them
_CHUNK = 1 << 22  # scores held at once
_STRENGTH = 3.0  # standard deviation of the generated preferences, in logits


def synthetic(users=2000, items=1000, interactions_per_user=24, dim=8, popularity=0.6, drift=0.0,
              seed=0, split="random", ratios=(0.8, 0.1, 0.1), split_seed=0) -> Recipe:
  """SYNTHETIC: users choose items by random factors of width `dim` and by the items' popularity.

  Origin: generated from `seed`; needs no licence. Results on it are not evidence about real users.
  User u takes `interactions_per_user` distinct items, in four time steps of equal size, with
  log-probability 3 <p_u, q_i> / sqrt(dim) - popularity * log(rank of i), where p and q are standard
  normal. Between the steps p_u moves towards a second standard normal vector: with drift=0 it does not
  move, with drift=1 it reaches it. With dim=0 there are no preferences, and the time to generate is
  linear in interactions instead of users x items. Time stamps are in seconds, one day per step. No
  filter; split: any rule of splits.py. Counts are the arguments, without items that no user takes.
  """
  counts = (users, items, interactions_per_user, dim)
  if not all(isinstance(c, int) and c >= 0 for c in counts) or not 0 < interactions_per_user <= items or not users:
    raise InputError("`data`: synthetic needs positive integers (dim may be 0), interactions_per_user at most items")
  if not 0 <= drift <= 1 or not 0 <= popularity < float("inf"):
    raise InputError("`data`: synthetic needs 0 <= drift <= 1 and a popularity exponent of at least 0")
  draw = functools.partial(_generate, *counts, popularity, drift, seed)
  return Recipe(lambda paths: draw(), (), None, 1, 1, split, ratios, split_seed, synthetic=True)


def _generate(num_users, num_items, per_user, dim, popularity, drift, seed) -> Log:
  rng = np.random.default_rng(seed)
  first, last = rng.standard_normal((2, num_users, dim))
  factors = rng.standard_normal((num_items, dim)) * (_STRENGTH / max(dim, 1)**0.5)
  bias = -popularity * np.log1p(rng.permutation(num_items))
  chunk = max(1, _CHUNK // (num_items if dim else per_user))
  choose = functools.partial(_choose, factors=factors, bias=bias, drift=drift) if dim else functools.partial(
      _draw, share=np.exp(bias) / np.exp(bias).sum())
  items = np.concatenate([choose(rng, first[u : u + chunk], last[u : u + chunk], per_user)
                          for u in range(0, num_users, chunk)])  # [U, per_user], in time order
  steps = np.arange(per_user) * _PHASES // per_user
  seconds = steps * 86_400 + rng.integers(86_400, size=items.shape)
  order = np.argsort(seconds, axis=1)
  return Log(users=np.repeat(np.arange(num_users), per_user),
             items=np.take_along_axis(items, order, 1).reshape(-1),
             user_ids=[f"u{u}" for u in range(num_users)], item_ids=[f"i{i}" for i in range(num_items)],
             timestamps=np.take_along_axis(seconds, order, 1).reshape(-1))


def _draw(rng, first, last, per_user, share):
  """Items [chunk, per_user] drawn one by one without replacement: repeated draws are skipped."""
  users, most = len(first), 2 * per_user + 16
  bounds, drawn = np.cumsum(share), np.zeros((users, 0), np.int32)
  while True:
    more = np.searchsorted(bounds, rng.random((users, most)) * bounds[-1], side="right").astype(np.int32)
    drawn = np.concatenate([drawn, more], axis=1)
    order = np.argsort(drawn, axis=1, kind="stable")
    ordered = np.take_along_axis(drawn, order, 1)
    new = np.zeros(drawn.shape, bool)
    np.put_along_axis(new, order, np.diff(ordered, axis=1, prepend=-1) > 0, axis=1)
    nth = np.cumsum(new, axis=1)
    if (nth[:, -1] >= per_user).all():
      return drawn[new & (nth <= per_user)].reshape(users, per_user)


def _choose(rng, first, last, per_user, factors, bias, drift):
  """Items [chunk, per_user] drawn without replacement, step by step, by the Gumbel top-k trick."""
  taken, chosen = np.zeros((len(first), len(bias)), bool), []
  sizes = np.bincount(np.arange(per_user) * _PHASES // per_user, minlength=_PHASES)
  for phase, size in enumerate(sizes):
    moved = drift * phase / (_PHASES - 1)
    logits = ((1 - moved) * first + moved * last) @ factors.T + bias
    noisy = np.where(taken, -np.inf, logits + rng.gumbel(size=logits.shape))
    items = np.argsort(-noisy, axis=1, kind="stable")[:, :size]
    np.put_along_axis(taken, items, True, axis=1)
    chosen.append(items)
  return np.concatenate(chosen, 1)
