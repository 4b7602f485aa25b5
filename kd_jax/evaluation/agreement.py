"""How far the lists of two models agree: those of a student and of its teacher, for example.

Lists are [U, K] items, best first, -1 for no item. A user whose lists are empty has the value NaN.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Dataset, Ranked
from kd_jax.data import index
from kd_jax.evaluation import protocols
from kd_jax.evaluation.metric_names import CUTOFFS
from kd_jax.metrics.transfer import overlap
from kd_jax.ranking import rank

_PERSISTENCE = 0.9  # p of rank-biased overlap
NAMES = ("overlap", "rbo", "kendall", "kl", "follows_right", "follows_wrong")


def measure(student: tuple[nn.Module, dict], teacher: tuple[nn.Module, dict], dataset: Dataset,
            split: str) -> dict[str, float]:
  """{"rbo@10": mean over users} of every name in NAMES at the usual cut-offs, training items left out.

  `follows_right` and `follows_wrong` are shares of the teacher's items that the student lists, too: of its items in
  `split`, and of items that the user has in no split. They are over the users with items in `split`; the others are
  over all users.
  """
  cutoffs = [k for k in CUTOFFS if k <= dataset.num_items]
  seen, most = jax.tree.map(jnp.asarray, index.seen_by_users(dataset)), max(cutoffs, default=0)
  own, their = (jax.tree.map(np.asarray, rank.network_top_k(*network, seen, k=most, exclude_seen=True))
                for network in (student, teacher))
  scores = protocols.listed_scores(*student, np.arange(dataset.num_users), np.maximum(their.items, 0))
  held, judged = getattr(dataset, split), np.zeros(dataset.num_users, bool)
  judged[held.users] = True
  right = _listed(their.items, [held], dataset)
  wrong = (their.items >= 0) & ~_listed(their.items, [dataset.train, dataset.validation, dataset.test], dataset)
  found = {}
  for k in cutoffs:
    mine, best = own.items[:, :k], Ranked(their.items[:, :k], their.scores[:, :k])
    values = (overlap(mine, best.items), rank_biased_overlap(mine, best.items),
              kendall(best.items >= 0, best.scores, scores[:, :k]),
              divergence(best.items >= 0, best.scores, scores[:, :k]),
              *(follows(mine, best.items, mask[:, :k])[judged] for mask in (right, wrong)))
    found |= {f"{name}@{k}": _mean(value) for name, value in zip(NAMES, values, strict=True)}
  return found


def rank_biased_overlap(a: np.ndarray, b: np.ndarray, p: float = _PERSISTENCE) -> np.ndarray:
  """Extrapolated rank-biased overlap [U] of lists [U, k], from 0 to 1 (equal lists).

  RBO_EXT = p^k A_k + (1 - p) / p * sum over depths d = 1 .. k of p^d A_d, with A_d the share of the best d items that
  are in both lists. Webber, Moffat, Zobel: A similarity measure for indefinite rankings, TOIS 28(4), 2010, eq. 30.
  """
  depths = np.arange(1, a.shape[1] + 1)
  agreement = np.stack([_in_both(a[:, :d], b[:, :d]) / d for d in depths], axis=1)
  return p ** depths[-1] * agreement[:, -1] + (1 - p) / p * (agreement @ p**depths)


def kendall(there: np.ndarray, teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
  """Kendall's tau-b [U] of both models' scores [U, k] of the teacher's best k items; `there` [U, k] marks items.

  From -1 (opposite order) to 1 (the same); NaN if all scores of a model are equal, or there are fewer than two items.
  """
  first, second = np.triu_indices(there.shape[1], 1)
  pairs = there[:, first] & there[:, second]
  signs = [np.where(pairs, np.sign(x[:, first] - x[:, second]), 0.0)
           for x in (np.where(there, scores, 0.0) for scores in (teacher, student))]
  total, untied = np.sum(signs[0] * signs[1], axis=1), np.prod([np.sum(x != 0, axis=1) for x in signs], axis=0)
  return np.divide(total, np.sqrt(untied), out=np.full(len(total), np.nan), where=untied > 0)


def divergence(there: np.ndarray, teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
  """KL(teacher || student) [U], in nats, of the softmax of both models' scores [U, k] of the teacher's best k items."""
  own, other = _log_softmax(teacher, there), _log_softmax(student, there)
  difference = np.subtract(own, other, out=np.zeros_like(own), where=there)
  return np.where(there.any(axis=1), np.sum(np.exp(own) * difference, axis=1), np.nan)


def _log_softmax(scores, there):
  """[U, k] in float64, over the places that are `there`; -inf for the others."""
  masked = np.where(there, scores.astype(np.float64), -np.inf)
  shifted = masked - np.where(there.any(axis=1), masked.max(axis=1), 0.0)[:, None]
  return shifted - np.log(np.maximum(np.exp(shifted).sum(axis=1, keepdims=True), np.finfo(float).tiny))


def follows(student: np.ndarray, teacher: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """The share [U] of the items in `mask` [U, k] of the teacher's lists [U, k] that the student lists [U, k], too.

  NaN for a user without such items.
  """
  shared = (teacher[:, :, None] == student[:, None, :]).any(axis=2)
  count = mask.sum(axis=1)
  return np.divide((mask & shared).sum(axis=1), count, out=np.full(len(count), np.nan), where=count > 0)


def _in_both(a, b):
  """Number of items of each row that are in both."""
  return ((a[:, :, None] == b[:, None, :]).any(axis=2) & (a >= 0)).sum(axis=1)


def _listed(items, splits, dataset) -> np.ndarray:
  """[U, k] bool: whether the user of a row has the item in one of the splits."""
  known = [log.users.astype(np.int64) * dataset.num_items + log.items for log in splits if log is not None]
  keys = np.arange(len(items))[:, None] * dataset.num_items + items
  return np.isin(keys, np.concatenate(known)) & (items >= 0)


def _mean(values) -> float:
  """The mean over users with a value; NaN if there are none."""
  values = values[np.isfinite(values)]
  return float(values.mean()) if len(values) else float("nan")
