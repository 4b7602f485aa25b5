"""Membership inference: who had which item in training? Attacks on a model, on its soft labels and on its answers.

An attack gives every pair of user and item a number that is higher for likelier members. Members are training
interactions, non-members held-out ones of the same users: with a random split they have the same distribution, so an
attack that learns nothing has an AUC of .5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Dataset, InputError
from kd_jax.data import index
from kd_jax.ranking import rank

ATTACKS = ("scores", "labels", "masked_labels", "answers")
_NUMBERS = 20_000_000  # scores in memory: of fewer users, if there are more
_LABELS, _ANSWERS = 500, 10  # lengths of lists: the default of soft_labels.py, and of a recommendation
_RATE = 0.01  # of false positives
_BLOCK, _RESAMPLES = 256, 200


class Pairs(NamedTuple):
  """Users and items of members and non-members."""

  users: np.ndarray  # [n] rows of the attacked users
  items: np.ndarray  # [n]
  members: np.ndarray  # [n] bool


def measure(module: nn.Module, variables: dict, dataset: Dataset, split: str) -> dict[str, dict[str, Any]]:
  """{attack: {"auc", "auc_interval", "tpr", "tpr_interval"}} of every attack in ATTACKS, with what it reads:

    scores         all scores of the model; or its parameters, which are not read otherwise
    labels         a file of soft labels with the training items: the best 500 items of every user
    masked_labels  the same without them: an item that is missing where it should stand has been left out
    answers        an export's 10 best items for every user, without training items

  Scores are standardised over a user's items, then over an item's users: is the item better here than elsewhere (Watson
  et al.: On the importance of difficulty calibration in membership inference attacks, ICLR 2022)? For lists without
  training items, it is the share of users whose lists have an item that this user's list lacks. `tpr` is the share of
  members found with 1 % of false positives (Carlini et al.: Membership inference attacks from first principles, IEEE
  S&P 2022). Intervals of 95 % are bootstrapped over users. Raises InputError for labelled or streamed data, and if no
  user has interactions in both splits.
  """
  if dataset.contexts is not None or dataset.stream is not None:
    raise InputError("`attack`: only for interactions in memory")
  held = getattr(dataset, split)
  users = np.intersect1d(dataset.train.users, held.users)[: max(2, _NUMBERS // dataset.num_items)]
  if not len(users):
    raise InputError(f"`attack`: no user has interactions in training and in `split={split}`")
  scores = _scores(module, variables, users)
  pairs = _pairs(dataset, held, users)
  seen = np.zeros(scores.shape, bool)
  seen[pairs.users[pairs.members], pairs.items[pairs.members]] = True
  masked, places = np.where(seen, -np.inf, scores), index.priority(dataset.item_ids)
  signals: dict[str, Callable[[], np.ndarray]] = {
      "scores": lambda: calibrated(scores),
      "labels": lambda: calibrated(_listed_scores(scores, _top(scores, places, _LABELS))),
      "masked_labels": lambda: missing(_top(masked, places, _LABELS)),
      "answers": lambda: missing(_top(masked, places, _ANSWERS))}
  return {name: judge(signals[name]()[pairs.users, pairs.items], pairs) for name in ATTACKS}


def _scores(module, variables, users) -> np.ndarray:
  """[V, I] in float64."""
  score = rank.scorer(module, variables)
  parts = [np.asarray(score(jnp.asarray(users[i : i + _BLOCK])), np.float64) for i in range(0, len(users), _BLOCK)]
  return np.concatenate(parts)


def _pairs(dataset, held, users) -> Pairs:
  found = []
  for log, member in ((dataset.train, True), (held, False)):
    kept = np.isin(log.users, users)
    unique = np.unique(np.stack([np.searchsorted(users, log.users[kept]), log.items[kept]]), axis=1)
    found.append((*unique, np.full(unique.shape[1], member)))
  return Pairs(*(np.concatenate(x) for x in zip(*found, strict=True)))


def calibrated(scores: np.ndarray) -> np.ndarray:
  """Scores [V, I], standardised over items, then over users."""
  for axis in (1, 0):
    deviation = scores - scores.mean(axis=axis, keepdims=True)
    scale = deviation.std(axis=axis, keepdims=True)
    scores = np.divide(deviation, scale, out=np.zeros_like(deviation), where=scale > 0)
  return scores


def missing(listed: np.ndarray) -> np.ndarray:
  """How surprising it is that a list lacks an item, [V, I]: the share of lists that have it; -1 if this one has it.

  `listed` [V, I] is True for the items of each list.
  """
  return np.where(listed, -1.0, listed.mean(axis=0))


def _top(scores, places, k) -> np.ndarray:
  """[V, I] bool: the k best items of every row; none with score -inf."""
  order = np.lexsort((np.broadcast_to(places, scores.shape), -scores), axis=1)[:, :k]
  listed = np.zeros(scores.shape, bool)
  np.put_along_axis(listed, order, True, axis=1)
  return listed & np.isfinite(scores)


def _listed_scores(scores, listed) -> np.ndarray:
  """The scores that a list shows; items outside it have the lowest of its scores."""
  lowest = np.where(listed, scores, np.inf).min(axis=1, keepdims=True)
  return np.where(listed, scores, lowest)


def judge(signal: np.ndarray, pairs: Pairs) -> dict[str, Any]:
  """AUC and true-positive rate of an attack's `signal` [n], with intervals."""
  steps, rng = _steps(signal), np.random.default_rng(0)
  users = int(pairs.users.max()) + 1
  drawn = [rng.multinomial(users, np.full(users, 1 / users))[pairs.users] for _ in range(_RESAMPLES)]
  auc, tpr = _rates(steps, pairs.members, np.ones(len(signal)))
  several = np.array([_rates(steps, pairs.members, weights) for weights in drawn])
  low, high = np.percentile(several, (2.5, 97.5), axis=0)
  return {"auc": auc, "auc_interval": [low[0], high[0]], "tpr": tpr, "tpr_interval": [low[1], high[1]]}


def _steps(signal) -> np.ndarray:
  """[n] the rank of each value among the distinct ones, from 0, the highest first."""
  return np.unique(-signal, return_inverse=True)[1].reshape(-1)


def _rates(steps, members, weights) -> tuple[float, float]:
  """(AUC, the true-positive rate at the highest threshold with at most 1 % of false positives)."""
  true, false = (np.bincount(steps, weights * chosen) for chosen in (members, ~members))
  true, false = (np.concatenate([[0], np.cumsum(x) / x.sum()]) for x in (true, false))
  reached = np.searchsorted(false, _RATE * (1 + 1e-9), side="right") - 1
  return float(np.trapezoid(true, false)), float(true[reached])
