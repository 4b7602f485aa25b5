"""Evaluation protocols: full ranking of all items, ranking of sampled candidates, and true labels."""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Dataset, InputError, Interactions, LabelMetric, Ranked
from kd_jax.data import index
from kd_jax.evaluation import metric_names
from kd_jax.evaluation.metric_names import Metrics
from kd_jax.metrics._held_out import lay_out
from kd_jax.ranking import rank

_BLOCK = 512  # number of held-out items whose sampled candidates are scored together
_OTHER = {"warm": "cold", "popular": "unpopular", "known": "unknown"}
_GROUP = "user"  # the field of labelled data that defines the groups of `group_auc`
_CONTEXTS = 1024  # number of contexts scored together


class Evaluation(NamedTuple):
  """The prepared evaluation of one split of interactions, see `rank.held_out`."""

  dataset: Dataset
  layout: rank.HeldOut | None  # None: no full ranking
  where: np.ndarray  # [M, 2]
  groups: dict[str, np.ndarray]  # {name: [M] bool}, groups of held-out items with separate metrics
  held: Interactions  # [M]
  masked: list[Interactions]  # excluded from the candidates
  sampled: np.ndarray | None  # [M, n] candidates of the sampled protocol, see `sampled_candidates`


class Labelled(NamedTuple):
  """The prepared evaluation of one split of labelled data."""

  contexts: np.ndarray  # [n]
  labels: np.ndarray  # [n, C] bool
  groups: np.ndarray | None  # [n]


def layout(dataset: Dataset, split: str, mask_validation: bool = False, sampled: int = 0,
           sampled_seed: int = 0, only_sampled: bool = False) -> Evaluation | Labelled:
  """Prepares a split, "validation" or "test". Training items are never candidates; `mask_validation` excludes
  validation items from the test candidates, too.

  With `sampled`, each held-out item is also ranked among this many sampled items, which its user has in no split; a
  user with fewer such items has no value, see `short_of_unknown`. `only_sampled` skips the full ranking.
  """
  held = getattr(dataset, split)
  if dataset.contexts is not None:
    contexts, features = dataset.contexts[split], dataset.user_features
    grouped = features is not None and _GROUP in features.fields
    groups = features.categories[contexts, features.fields.index(_GROUP)] if grouped else None
    return Labelled(contexts, label_matrix(dataset, split)[contexts], groups)
  candidates = sampled_candidates(dataset, held, sampled, sampled_seed) if sampled else None
  if only_sampled:
    return Evaluation(dataset, None, np.zeros((0, 2), np.int64), {}, held, [], candidates)
  masked = [dataset.train, dataset.validation] if mask_validation and split == "test" else [dataset.train]
  held_out, where = rank.held_out(held, masked, index.priority(dataset.item_ids))
  return Evaluation(dataset, jax.tree.map(jnp.asarray, held_out), where, _groups(dataset, held), held, masked,
                    candidates)


def _groups(dataset, held) -> dict[str, np.ndarray]:
  """Masks [M] of held-out interactions: of warm and cold items (no training interaction), of two halves of the items
  with equal total popularity, and of known and unknown users (no training interaction)."""
  popularity = dataset.item_popularity()
  order = np.lexsort((index.priority(dataset.item_ids), -popularity))
  total = np.cumsum(popularity[order])
  popular = np.zeros(dataset.num_items, bool)
  popular[order] = 2 * total - popularity[order] < total[-1]  # by the middle of each item's interval, as in UnKD
  known = training_counts(dataset) > 0
  groups = {"warm": (popularity > 0)[held.items], "popular": popular[held.items], "known": known[held.users]}
  return groups | {_OTHER[name]: ~mask for name, mask in groups.items()}


def training_counts(dataset) -> np.ndarray:
  """Number of training interactions of every user, [U]."""
  if dataset.stream is not None:
    return np.diff(dataset.stream.starts["train"])
  return np.bincount(dataset.train.users, minlength=dataset.num_users)


def is_active(counts: np.ndarray) -> np.ndarray:
  """[U] bool: the users with most training interactions that together have half of all.

  Users with equal `counts` [U] are in one group: it is active if the middle of its interval is in the first half.
  """
  values, inverse, users = np.unique(-counts, return_inverse=True, return_counts=True)
  own = -values * users
  return (2 * np.cumsum(own) - own < own.sum())[inverse]


def count_unknown(dataset: Dataset, users: np.ndarray) -> int:
  """The number of `users` (indices) without any training interaction. Streamed data may be given as a whole."""
  return int(np.count_nonzero(training_counts(dataset)[users] == 0))


def with_history(dataset: Dataset, history: str) -> Dataset:
  """The data that models read when they predict the test split: `history` is "train" or "train+validation".

  It changes sequences, inputs and graphs (`constants`), which then also contain the later validation interactions.
  Parameters do not change, so models without such inputs give the same scores.
  """
  if history == "train":
    return dataset
  pairs = zip(dataset.train, dataset.validation, strict=True)
  return dataset._replace(train=Interactions(*(None if a is None else np.concatenate([a, b]) for a, b in pairs)))


class Ranks(NamedTuple):
  """The ranks of held-out items, from which metrics are computed."""

  held: Interactions  # [M]
  ranks: np.ndarray | None  # [M] among all items
  groups: dict[str, np.ndarray]  # {name: [M] bool}
  sampled: np.ndarray | None  # [M] among sampled candidates; -1 if there are too few
  num_sampled: int
  lists: Ranked | None  # [V, K] of the users with held-out items, in ascending order


def ranked(module: nn.Module, variables: dict, evaluation: Evaluation, lists: int = 0) -> Ranks:
  """Ranks the held-out items by a network. With `lists`, also ranks the top `lists` items of every evaluated user.

  Raises InputError if scores are not finite.
  """
  held, layout, candidates = evaluation.held, evaluation.layout, evaluation.sampled
  ranks = best = sampled = None
  if layout is not None and len(held.users):
    lines = np.asarray(rank.network_ranks(module, variables, layout))
    ranks = lines[evaluation.where[:, 0], evaluation.where[:, 1]]
    if (ranks == -2).any():
      raise InputError(f"the scores of user {held.users[ranks == -2][0]} (index) are not finite")
  if lists and layout is not None:
    logs = [np.concatenate([getattr(log, side) for log in evaluation.masked]) for side in ("users", "items")]
    dataset, users = evaluation.dataset, np.unique(held.users)
    seen = jax.tree.map(jnp.asarray, index.seen_of(*logs, dataset.num_users, dataset.num_items,
                                                   index.priority(dataset.item_ids)))
    of_all = rank.network_top_k(module, variables, seen, k=lists, exclude_seen=True)
    best = jax.tree.map(lambda x: np.asarray(x)[users], of_all)
  if candidates is not None and len(held.users):
    sampled = sampled_ranks(module, variables, held, candidates, index.priority(evaluation.dataset.item_ids))
  return Ranks(held, ranks, evaluation.groups, sampled, 0 if candidates is None else candidates.shape[1], best)


def joined(parts: list[Ranks]) -> Ranks:
  """Concatenates the ranks of parts of the users; user indices are those of the whole data."""
  def join(*x):
    return None if x[0] is None else np.concatenate(x)

  columns = [join(*column) for column in zip(*(part.held for part in parts), strict=True)]
  lists = None if parts[0].lists is None else Ranked(*map(join, *(part.lists for part in parts)))
  groups = {name: join(*(part.groups[name] for part in parts)) for name in parts[0].groups}
  return Ranks(Interactions(*columns), join(*(part.ranks for part in parts)), groups,
               join(*(part.sampled for part in parts)), parts[0].num_sampled, lists)


def values(found: Ranks, metrics: Metrics, dataset: Dataset | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """(evaluated users [V], {metric: [V], or [] for a metric without values per user}) from ranks.

  Metrics with `groups` are also computed for groups of held-out items, e.g. "recall@10(cold)": only these held-out
  items count, and all items are candidates; NaN for a user without such items. The groups are cold and warm items,
  popular and unpopular items, known and unknown users, active and inactive users; both are left out if all held-out
  items fall into one of them.
  `dataset` is the data of all users; without it, there are no active and inactive users.
  Returns no users and {} for a split without interactions. Raises InputError if a metric returns a wrong shape.
  """
  held = found.held
  if not len(held.users):
    return np.zeros(0, np.int64), {}
  if found.ranks is None:
    return _sampled_values(found, metrics)
  groups = found.groups
  if dataset is not None:
    active = is_active(training_counts(dataset))[held.users]
    groups = groups | {"active": active, "inactive": ~active}
  whole = lay_out(held.users, held.items, found.ranks, held.ratings, found.lists, dataset, groups)
  made = {name: np.asarray(metric.value(_with_lists(whole, metric)), np.float64) for name, metric in metrics.items()}
  for name, metric in metrics.items():
    if made[name].shape != (whole.users.shape if metric.per_user else ()):
      raise InputError(f"metric {name}: returned values of shape {list(made[name].shape)}, expected "
                       f"{[len(whole.users)] if metric.per_user else []}")
  by_group = {name: metric for name, metric in metrics.items() if metric.groups}
  for group, kept in groups.items():
    if kept.any() and not kept.all():
      ratings = None if held.ratings is None else held.ratings[kept]
      part = lay_out(held.users[kept], held.items[kept], found.ranks[kept], ratings, None, dataset)
      for name, metric in by_group.items():
        made[f"{name}({group})"] = np.full(len(whole.users), np.nan)
        made[f"{name}({group})"][np.searchsorted(whole.users, part.users)] = metric.value(part)
  if found.sampled is not None:
    made |= _sampled_values(found, metrics)[1]
  return whole.users, made


def _with_lists(found, metric):
  """Cuts the lists to the length that the metric needs; other metrics may need longer ones."""
  if found.lists is None:
    return found
  return found._replace(lists=jax.tree.map(lambda x: x[:, : metric.lists], found.lists) if metric.lists else None)


def full_ranking(module: nn.Module, variables: dict, evaluation: Evaluation,
                 metrics: Metrics | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """`values` of a network under full ranking; default: the default metrics. Raises InputError."""
  metrics = metric_names.usual("interactions") if metrics is None else metrics
  lists = max((metric.lists for metric in metrics.values()), default=0)
  return values(ranked(module, variables, evaluation, lists), metrics, evaluation.dataset)


def label_matrix(dataset: Dataset, split: str) -> np.ndarray:
  """The labels [U, C] bool of a split of labelled data; false for contexts of other splits."""
  held, labels = getattr(dataset, split), np.zeros((dataset.num_users, dataset.num_items), bool)
  labels[held.users, held.items] = True
  return labels


def measure(module: nn.Module, variables: dict, evaluation: Evaluation | Labelled,
            metrics: Metrics | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """(evaluated users or contexts [V], {metric: [V]}) for a prepared split. Raises InputError if scores are not finite.

  `metrics` default to the default metrics. On labelled data, each metric is one number for all contexts, [].
  """
  if isinstance(evaluation, Evaluation):
    return full_ranking(module, variables, evaluation, metrics)
  scores = _scores(module, variables, evaluation.contexts)
  if not np.isfinite(scores).all():
    raise InputError("the scores are not finite")
  kind = "tags" if scores.shape[1] > 1 else "clicks"
  metrics = {name: metric for name, metric in (metric_names.usual(kind) if metrics is None else metrics).items()
             if isinstance(metric, LabelMetric)}
  found = {name: metric.value(evaluation.labels, scores, evaluation.groups) for name, metric in metrics.items()}
  return evaluation.contexts, {name: np.asarray(value) for name, value in found.items() if value is not None}


def _scores(module, variables, contexts) -> np.ndarray:
  """Scores [n, C] of all candidates."""
  blocks = np.resize(contexts, -(-len(contexts) // _CONTEXTS) * _CONTEXTS).reshape(-1, _CONTEXTS)
  found = np.asarray(_score_blocks(module, variables, jnp.asarray(blocks)))
  return found.reshape(-1, found.shape[-1])[: len(contexts)]


@functools.partial(jax.jit, static_argnames="module")
def _score_blocks(module, variables, blocks):
  return jax.lax.map(rank.scorer(module, variables), blocks)


def means(values: dict[str, np.ndarray]) -> dict[str, float]:
  """The mean of each metric over the users that have a value."""
  return {name: float(np.nanmean(value) if value.ndim else value) for name, value in values.items()}


def sampled_candidates(dataset: Dataset, held: Interactions, n: int, seed: int) -> np.ndarray:
  """Samples [M, n] distinct items per held-out interaction that its user has in no split, the same for every model.

  Rows of a user with fewer such items hold all of them, then -1.
  """
  known = jax.tree.map(jnp.asarray, _known(dataset))
  return np.asarray(index.draw_unseen(jax.random.key(seed), known, jnp.asarray(held.users), n, dataset.num_items))


def _known(dataset) -> index.Seen:
  """The items that each user has in any split."""
  logs = [x for x in (dataset.train, dataset.validation, dataset.test) if x is not None]
  return index.seen_of(np.concatenate([x.users for x in logs]), np.concatenate([x.items for x in logs]),
                       dataset.num_users, dataset.num_items)


def short_of_unknown(dataset: Dataset, split: str, n: int) -> str | None:
  """A line that counts the users of a split for whom `n` candidates cannot be sampled, if there are any.

  Raises InputError if this is so for all users. Streamed data is given as a whole. With n = 0, nothing is sampled.
  """
  if not n or dataset.contexts is not None:
    return None
  if dataset.stream is not None:
    known = sum(np.diff(starts) for starts in dataset.stream.starts.values())
    users = np.flatnonzero(np.diff(dataset.stream.starts[split]))
  else:
    known, users = np.diff(_known(dataset).starts), np.unique(getattr(dataset, split).users)
  enough = dataset.num_items - known[users] >= n
  if len(users) and not enough.any():
    raise InputError(f"`sampled={n}`: no user with {split} items has that many items that it does not know")
  return None if enough.all() else (f"sampled: {enough.sum():,} of {len(users):,} users with {split} items have {n:,} "
                                    "items that they do not know; the others have no value")


def sampled_ranks(module: nn.Module, variables: dict, held: Interactions, candidates: np.ndarray,
                  priority: np.ndarray) -> np.ndarray:
  """The rank [M] of each held-out item among its own `candidates` [M, n] only; -1 if there are fewer than n.

  `priority` [I] orders items of equal score.

  A protocol of the literature; results are not comparable with full ranking (Krichene, Rendle, KDD 2020).
  Raises InputError if scores are not finite.
  """
  whole = candidates[:, -1] >= 0
  if not whole.all():
    ranks = np.full(len(whole), -1)
    if whole.any():
      own = Interactions(*(None if x is None else x[whole] for x in held))
      ranks[whole] = sampled_ranks(module, variables, own, candidates[whole], priority)
    return ranks
  items = np.concatenate([held.items[:, None], candidates], axis=1)
  scores = listed_scores(module, variables, held.users, items)
  if not np.isfinite(scores).all():
    raise InputError("the scores are not finite")
  own = scores[:, :1]
  above = (scores > own) | ((scores == own) & (priority[items] < priority[items[:, :1]]))
  return above.sum(axis=1)


def _sampled_values(found: Ranks, metrics: Metrics) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """(users [V], {"hit@10(sampled 499)": [V]}): the mean over the held-out items of each user; NaN if not ranked."""
  users, inverse = np.unique(found.held.users, return_inverse=True)
  there = found.sampled >= 0
  items, ratings = (None if x is None else x[there] for x in (found.held.items, found.held.ratings))
  each = lay_out(np.arange(len(items)), items, found.sampled[there], ratings)
  counts = np.bincount(inverse[there], minlength=len(users))

  def of_user(v):
    sums = np.bincount(inverse[there], v, minlength=len(users))
    return np.divide(sums, counts, out=np.full(len(users), np.nan), where=counts > 0)

  return users, {f"{name}(sampled {found.num_sampled})": of_user(metric.value(each)) for name, metric in metrics.items()
                 if metric.per_user and not metric.lists and not metric.needs}


def listed_scores(module: nn.Module, variables: dict, users: np.ndarray, items: np.ndarray) -> np.ndarray:
  """Scores [M, n] of the candidates `items` [M, n] for `users` [M]."""
  blocks = -(-len(items) // _BLOCK)

  def pad(x):
    return np.resize(x, (blocks * _BLOCK, *x.shape[1:])).reshape(blocks, _BLOCK, *x.shape[1:])

  found = np.asarray(_listed_scores(module, variables, pad(users), pad(items)))
  return found.reshape(-1, items.shape[1])[: len(items)]


@functools.partial(jax.jit, static_argnames="module")
def _listed_scores(module, variables, users, items):
  score = rank.scorer(module, variables)
  return jax.lax.map(lambda x: score(*x), (users, items))
