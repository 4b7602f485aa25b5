"""Evaluation of a network: full ranking over all items, the sampled leave-one-out protocol, and true labels."""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Dataset, InputError, Interactions
from kd_jax.data import index
from kd_jax.metrics import label_metrics, ranked
from kd_jax.ranking import rank

CUTOFFS = (5, 10, 20, 50)
_BLOCK = 512  # held-out items whose sampled candidates are scored at a time
_OTHER = {"warm": "cold", "popular": "unpopular"}
_BY_GROUP = ("recall", "ndcg")  # given again for groups of held-out items
_GROUP = "user"  # the field of labelled data by which group AUC groups
_CONTEXTS = 1024  # contexts scored at a time


class Evaluation(NamedTuple):
  """What one split needs, laid out once: see `ranking.held_out`."""

  layout: rank.HeldOut | None  # None: not ranked among all items
  where: np.ndarray  # [M, 2]
  groups: dict[str, np.ndarray]  # {name: [M] bool}, held-out items that are also counted alone
  held: Interactions  # [M]
  sampled: np.ndarray | None  # [M, n] candidates of the sampled protocol


class Labelled(NamedTuple):
  """A split of labelled data."""

  contexts: np.ndarray  # [n]
  labels: np.ndarray  # [n, C] bool
  groups: np.ndarray | None  # [n]


def layout(dataset: Dataset, split: str, mask_validation: bool = False, sampled: int = 0,
           sampled_seed: int = 0, only_sampled: bool = False) -> Evaluation | Labelled:
  """Lays out a split, "validation" or "test". Training items never compete; validation's may be left out.

  With `sampled`, each held-out item is also ranked among that many that its user has in no split, or among them alone.
  """
  held = getattr(dataset, split)
  if dataset.contexts is not None:
    contexts, features = dataset.contexts[split], dataset.user_features
    grouped = features is not None and _GROUP in features.fields
    groups = features.categories[contexts, features.fields.index(_GROUP)] if grouped else None
    return Labelled(contexts, label_matrix(dataset, split)[contexts], groups)
  candidates = sampled_candidates(dataset, held, sampled, sampled_seed) if sampled else None
  if only_sampled:
    return Evaluation(None, np.zeros((0, 2), np.int64), {}, held, candidates)
  masked = [dataset.train, dataset.validation] if mask_validation and split == "test" else [dataset.train]
  held_out, where = rank.held_out(held, masked, dataset.num_items)
  return Evaluation(jax.tree.map(jnp.asarray, held_out), where, _groups(dataset, held.items), held,
                    candidates)


def _groups(dataset, items) -> dict[str, np.ndarray]:
  """Warm items, cold ones (in no training interaction), and halves of equal total popularity in training.

  Where there is only one of two, neither, but in a part of the data, see `joined`.
  """
  popularity, whole = dataset.popularity, dataset.popularity is None
  if whole:
    popularity = np.bincount(dataset.train.items, minlength=dataset.num_items)
  order = np.argsort(-popularity, kind="stable")
  total = np.cumsum(popularity[order])
  popular = np.zeros(dataset.num_items, bool)
  popular[order] = 2 * total - popularity[order] < total[-1]  # where the middle of its share falls, as in UnKD
  halves = {"warm": popularity > 0, "popular": popular}
  groups = {name: mask[items] for name, mask in halves.items()}
  groups = {name: mask for name, mask in groups.items() if not whole or (mask.any() and not mask.all())}
  return groups | {_OTHER[name]: ~mask for name, mask in groups.items()}


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

  Of groups of held-out items (cold and warm, popular and unpopular; where there are both) also
  "recall@10(cold)", and NDCG: these items counted alone, NaN for a user that has none; all items compete.
  If it was laid out for the sampled protocol, also `sampled_ranking`. Nobody and {} of a split without interactions.
  Raises InputError where scores are not finite.
  """
  if not len(evaluation.held.users):
    return np.zeros(0, np.int64), {}
  lines = np.asarray(rank.network_ranks(module, variables, evaluation.layout))
  ranks = lines[evaluation.where[:, 0], evaluation.where[:, 1]]
  if (ranks == -2).any():
    raise InputError(f"the scores of user {evaluation.held.users[ranks == -2][0]} (index) are not finite")
  users, values = ranked.per_user(evaluation.held.users, ranks, cutoffs)
  by_group = [metric for metric in values if metric.startswith(_BY_GROUP)]
  for name, kept in evaluation.groups.items():
    values |= {f"{metric}({name})": np.full(len(users), np.nan) for metric in by_group}
    if kept.any():
      who, own = ranked.per_user(evaluation.held.users[kept], ranks[kept], cutoffs)
      for metric in by_group:
        values[f"{metric}({name})"][np.searchsorted(users, who)] = own[metric]
  if evaluation.sampled is not None:
    values |= sampled_ranking(module, variables, evaluation.held, evaluation.sampled, cutoffs)[1]
  return users, values


def label_matrix(dataset: Dataset, split: str) -> np.ndarray:
  """The labels [U, C] bool of a split of labelled data; false for contexts of other splits."""
  held, labels = getattr(dataset, split), np.zeros((dataset.num_users, dataset.num_items), bool)
  labels[held.users, held.items] = True
  return labels


def measure(module: nn.Module, variables: dict, evaluation: Evaluation | Labelled,
            cutoffs: tuple[int, ...] = CUTOFFS) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """(evaluated users or contexts [V], {metric: [V]}), by what was laid out. Raises InputError.

  Metrics of labelled data are of all contexts together: one number each, [].
  """
  if isinstance(evaluation, Evaluation):
    if evaluation.layout is None:
      return sampled_ranking(module, variables, evaluation.held, evaluation.sampled, cutoffs)
    return full_ranking(module, variables, evaluation, cutoffs)
  scores = _scores(module, variables, evaluation.contexts)
  if not np.isfinite(scores).all():
    raise InputError("the scores are not finite")
  if scores.shape[1] > 1:
    found = label_metrics.of_tags(evaluation.labels, scores)
  else:
    found = label_metrics.of_clicks(evaluation.labels[:, 0], scores[:, 0], evaluation.groups)
  return evaluation.contexts, {name: np.asarray(value) for name, value in found.items()}


def _scores(module, variables, contexts) -> np.ndarray:
  """Scores [n, C] of all candidates."""
  blocks = np.resize(contexts, -(-len(contexts) // _CONTEXTS) * _CONTEXTS).reshape(-1, _CONTEXTS)
  found = np.asarray(_score_blocks(module, variables, jnp.asarray(blocks)))
  return found.reshape(-1, found.shape[-1])[: len(contexts)]


@functools.partial(jax.jit, static_argnames="module")
def _score_blocks(module, variables, blocks):
  return jax.lax.map(rank.scorer(module, variables), blocks)


def joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """The values [V] of parts of the users as those of all; without groups of items that nobody has, or everybody."""
  values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  nobody = {name[name.index("(") + 1 : -1] for name, value in values.items() if "(" in name and np.isnan(value).all()}
  alone = {*nobody, *(a for pair in _OTHER.items() if nobody & {*pair} for a in pair)}
  return {name: value for name, value in values.items() if not any(name.endswith(f"({group})") for group in alone)}


def means(values: dict[str, np.ndarray]) -> dict[str, float]:
  """Means of each metric over the users that have a value."""
  return {name: float(np.nanmean(value) if value.ndim else value) for name, value in values.items()}


def sampled_candidates(dataset: Dataset, held: Interactions, n: int, seed: int) -> np.ndarray:
  """[M, n] distinct items per held-out interaction that its user has in no split, the same for every model."""
  logs = [x for x in (dataset.train, dataset.validation, dataset.test) if x is not None]
  known = index.seen_of(np.concatenate([x.users for x in logs]), np.concatenate([x.items for x in logs]),
                          dataset.num_users, dataset.num_items)
  if n > dataset.num_items - np.diff(known.starts).max():
    raise InputError(f"--sampled={n}: not every user has that many items that it does not know")
  known = jax.tree.map(jnp.asarray, known)
  return np.asarray(index.draw_unseen(jax.random.key(seed), known, jnp.asarray(held.users), n, dataset.num_items))


def sampled_ranking(module: nn.Module, variables: dict, held: Interactions, candidates: np.ndarray,
                    cutoffs: tuple[int, ...] = CUTOFFS) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """(users [V], {"hit@10(sampled 499)": [V]}): each held-out item ranked among its own `candidates` [M, n] only.

  Of a user with several held-out items the mean over these. A protocol of the literature; not comparable with
  full ranking (Krichene, Rendle, KDD 2020).
  """
  items = np.concatenate([held.items[:, None], candidates], axis=1)
  blocks = -(-len(items) // _BLOCK)
  pad = lambda x: np.resize(x, (blocks * _BLOCK, *x.shape[1:])).reshape(blocks, _BLOCK, *x.shape[1:])
  scores = np.asarray(_listed_scores(module, variables, pad(held.users), pad(items))).reshape(-1, items.shape[1])
  scores = scores[: len(items)]
  if not np.isfinite(scores).all():
    raise InputError("the scores are not finite")
  own = scores[:, :1]
  above = (scores > own) | ((scores == own) & (items < items[:, :1]))
  _, values = ranked.per_user(np.arange(len(items)), above.sum(axis=1), cutoffs)
  users, inverse, counts = np.unique(held.users, return_inverse=True, return_counts=True)
  of_user = lambda v: np.bincount(inverse, v) / counts
  return users, {f"{k}(sampled {candidates.shape[1]})": of_user(v) for k, v in values.items()}


@functools.partial(jax.jit, static_argnames="module")
def _listed_scores(module, variables, users, items):
  score = rank.scorer(module, variables)
  return jax.lax.map(lambda x: score(*x), (users, items))
