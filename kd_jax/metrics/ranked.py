"""Ranking metrics from the ranks of held-out items. NumPy, float64, one value per user.

A user has n held-out items at ranks r (from 0) among the items that compete; k is the cut-off. Users
without held-out items have no value and are not in the mean. Conventions are those of trec_eval:

  recall@k     hits / n
  precision@k  hits / k
  f1@k         2 precision recall / (precision + recall), 0 without hits
  hit@k        1 if any r < k
  ndcg@k       sum over hits of 1 / log2(r + 2), over the same sum for ranks 0 .. min(n, k) - 1
  mrr@k        1 / (smallest r + 1), 0 if it is >= k
  map@k        sum over hits of (hits at or above r) / (r + 1), over n
"""

from __future__ import annotations

import re

import numpy as np

NAMES = ("recall", "precision", "f1", "ndcg", "hit", "mrr", "map")


def per_user(users: np.ndarray, ranks: np.ndarray, cutoffs: tuple[int, ...]) -> tuple[np.ndarray, dict]:
  """Metrics of held-out interactions, `users` [M] and `ranks` [M].

  Returns the users that have some [V], ascending, and {"recall@10": [V], ...}.
  """
  order = np.lexsort((ranks, users))
  ranks = ranks[order].astype(np.int64)
  evaluated, start, count = np.unique(users[order], return_index=True, return_counts=True)
  total = lambda x: np.add.reduceat(x, start)
  nth = np.arange(len(ranks)) - np.repeat(start, count)  # held-out items of the user ranked above this one
  best = ranks[start]
  gain = 1 / np.log2(np.arange(max(count.max(), *cutoffs)) + 2)
  ideal = np.cumsum(gain)
  values = {}
  for k in cutoffs:
    hit = (ranks < k).astype(np.float64)
    hits = total(hit)
    recall, precision = hits / count, hits / k
    values |= {
        f"recall@{k}": recall,
        f"precision@{k}": precision,
        f"f1@{k}": 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny),
        f"ndcg@{k}": total(hit / np.log2(ranks + 2)) / ideal[np.minimum(count, k) - 1],
        f"hit@{k}": (hits > 0).astype(np.float64),
        f"mrr@{k}": np.where(best < k, 1 / (best + 1), 0.0),
        f"map@{k}": total(hit * (nth + 1) / (ranks + 1)) / count,
    }
  return evaluated, values


def parse(name: str) -> tuple[str, int, int]:
  """("ndcg", 10, 0) of "ndcg@10", ("hit", 5, 499) of "hit@5(sampled 499)". Raises ValueError."""
  found = re.fullmatch(r"(\w+)@([1-9]\d*)(?:\(sampled ([1-9]\d*)\))?", name, re.ASCII)
  if not found or found[1] not in NAMES:
    raise ValueError(f"{name!r} is not a metric like {', '.join(n + '@10' for n in NAMES)} or hit@10(sampled 499)")
  return found[1], int(found[2]), int(found[3] or 0)


def transfer_ratio(teacher: float, student: float, distilled: float) -> float:
  """(distilled - student) / (teacher - student): the share of the gap that distillation closes."""
  return (distilled - student) / (teacher - student) if teacher != student else float("nan")


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Share of the k items of row `a` [U, k] that are also in row `b` [U, k] -> [U]. -1 is no item."""
  in_b = (a[:, :, None] == b[:, None, :]).any(axis=2) & (a >= 0)
  return in_b.sum(axis=1) / np.maximum((a >= 0).sum(axis=1), 1)
