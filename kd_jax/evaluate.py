"""Evaluation of a network: full ranking over all items, and the sampled leave-one-out protocol."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import metrics, ranking, resample
from kd_jax.base import Dataset, InputError, Interactions

CUTOFFS = (5, 10, 20, 50)
_BY_WARMTH = ("recall", "ndcg")  # given again for items with and without training interactions


class Evaluation(NamedTuple):
  """What one split needs, laid out once: see `ranking.held_out`."""

  layout: ranking.HeldOut
  where: np.ndarray  # [M, 2]
  users: np.ndarray  # [M]
  cold: np.ndarray  # [M] bool, is the item in no training interaction?


def layout(dataset: Dataset, split: str, mask_validation: bool = False) -> Evaluation:
  """Lays out a split, "validation" or "test". Training items never compete; validation's on request."""
  held = getattr(dataset, split)
  masked = [dataset.train, dataset.validation] if mask_validation and split == "test" else [dataset.train]
  held_out, where = ranking.held_out(held, masked, dataset.num_items)
  cold = ~np.isin(held.items, dataset.train.items)
  return Evaluation(jax.tree.map(jnp.asarray, held_out), where, held.users, cold)


def with_history(dataset: Dataset, history: str) -> Dataset:
  """The data as models read it that are to predict the test split: `history` is "train" or "train+validation".

  Of training interactions alone, or of validation's too, which come later: sequences, inputs and graphs of
  models that have such (`constants`). Parameters are what they are, so other models do not change.
  """
  if history == "train":
    return dataset
  pairs = zip(dataset.train, dataset.validation, strict=True)
  return dataset._replace(train=Interactions(*(None if a is None else np.concatenate([a, b]) for a, b in pairs)))


def full_ranking(module: nn.Module, variables: dict, evaluation: Evaluation,
                 cutoffs: tuple[int, ...] = CUTOFFS) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """(evaluated users [V], {metric: [V]}) of a network, every item a candidate.

  Where some held-out items are cold (in no training interaction) and others not, also "recall@10(cold)" and
  "recall@10(warm)", the same for NDCG: one kind of held-out items counted alone, for the users that have some.
  All items compete in either. Raises InputError where scores are not finite.
  """
  lines = np.asarray(ranking.network_ranks(module, variables, evaluation.layout))
  ranks = lines[evaluation.where[:, 0], evaluation.where[:, 1]]
  if (ranks == -2).any():
    raise InputError(f"the scores of user {evaluation.users[ranks == -2][0]} (index) are not finite")
  users, values = metrics.per_user(evaluation.users, ranks, cutoffs)
  if evaluation.cold.any() and not evaluation.cold.all():
    for word, kept in (("warm", ~evaluation.cold), ("cold", evaluation.cold)):
      _, own = metrics.per_user(evaluation.users[kept], ranks[kept], cutoffs)
      values |= {f"{name}({word})": value for name, value in own.items() if name.startswith(_BY_WARMTH)}
  return users, values


def means(values: dict[str, np.ndarray]) -> dict[str, float]:
  """Means over the users of each metric."""
  return {name: float(np.mean(value)) for name, value in values.items()}


def sampled_candidates(dataset: Dataset, held: Interactions, n: int, seed: int) -> np.ndarray:
  """[M, n] distinct items per held-out interaction that its user has in no split, the same for every model."""
  logs = [x for x in (dataset.train, dataset.validation, dataset.test) if x is not None]
  known = ranking.seen_of(np.concatenate([x.users for x in logs]), np.concatenate([x.items for x in logs]),
                          dataset.num_users, dataset.num_items)
  if n > dataset.num_items - np.diff(known.starts).max():
    raise InputError(f"--sampled={n}: not every user has that many items that it does not know")
  known = jax.tree.map(jnp.asarray, known)
  return np.asarray(resample.draw_unseen(jax.random.key(seed), known, jnp.asarray(held.users), n, dataset.num_items))


def sampled_ranking(module: nn.Module, variables: dict, held: Interactions, candidates: np.ndarray,
                    cutoffs: tuple[int, ...] = CUTOFFS) -> dict[str, np.ndarray]:
  """{"hit@10(sampled 499)": [M]}: each held-out item ranked among its own `candidates` [M, n] only.

  A protocol of the literature; not comparable with full ranking (Krichene, Rendle, KDD 2020).
  """
  items = np.concatenate([held.items[:, None], candidates], axis=1)
  tables = module.apply(variables, method="tables")
  score = jax.jit(lambda v, t, users, items: module.apply(v, {"users": users, "items": items}, t).scores)
  scores = np.concatenate([np.asarray(score(variables, tables, held.users[i : i + 1024], items[i : i + 1024]))
                           for i in range(0, len(items), 1024)])
  if not np.isfinite(scores).all():
    raise InputError("the scores are not finite")
  own = scores[:, :1]
  above = (scores > own) | ((scores == own) & (items < items[:, :1]))
  _, values = metrics.per_user(np.arange(len(items)), above.sum(axis=1), cutoffs)
  return {f"{k}(sampled {candidates.shape[1]})": v for k, v in values.items()}
