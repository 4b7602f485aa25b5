"""Audits a protocol: properties of its split, and the metrics of one simple model under it.

The model is PureSVD (Cremonesi, Koren, Turrin, RecSys 2010): the singular vectors of the training matrix.
It has no seed and no training steps, and its only hyperparameter is the width. So differences come from the protocol.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from kd_jax import data, registry
from kd_jax.base import Dataset, InputError
from kd_jax.data import audit, splits
from kd_jax.evaluation import metric_names, protocols
from kd_jax.teachers import loading

SAMPLED = 499  # sampled items per held-out item, as in the leave-one-out literature
_SEEDED = ("random", "loo", "cold_items")  # split rules that use a seed


def run(call: str, factors: int = 64, split_seeds: int = 5, data_dir=None, cache_dir=None) -> dict[str, Any]:
  """The audit of a data set, as JSON values. With `factors=0`, only the parts that need no model.

  Fields: `data`, `counts` (see data/audit.py), `duplicates` in the source, `leaks` (interactions shared by two splits),
  `full` and `sampled` ranking metrics of PureSVD on the test split, and, for split rules with a seed, `split_seeds`:
  cold share and full ranking for each seed. Raises InputError for labelled data, or if the data cannot be loaded.
  """
  dataset = data.load(call, data_dir, cache_dir, splits=splits.NAMES)
  if dataset.contexts is not None:
    raise InputError(f"`data={call}`: labelled data is not ranked; scripts/prepare.py audits it")
  found = {"data": dataset.name, "counts": audit.of_dataset(dataset), "leaks": leaks(dataset),
           "duplicates": dataset.report["cleaning"]["duplicates"]}
  if not factors:
    return found
  found |= {"model": f"PureSVD, {factors} factors"} | measure(dataset, factors)
  if dataset.report["split"]["rule"] in _SEEDED:
    found["split_seeds"] = [_of_seed(call, seed, factors, data_dir, cache_dir) for seed in range(split_seeds)]
  return found


def leaks(dataset: Dataset) -> dict[str, int]:
  """The number of interactions that two splits share, for each pair of splits."""
  pairs = {name: getattr(dataset, name) for name in splits.NAMES}
  keys = {name: log.users.astype(np.int64) * dataset.num_items + log.items for name, log in pairs.items()}
  return {f"{a} and {b}": len(np.intersect1d(keys[a], keys[b])) for a, b in itertools.combinations(splits.NAMES, 2)}


def measure(dataset: Dataset, factors: int) -> dict[str, Any]:
  """`full` and `sampled` ranking metrics of PureSVD on the test split."""
  module, variables = pure_svd(dataset, factors)
  known = np.bincount(np.concatenate([getattr(dataset, name).users for name in splits.NAMES]))
  left = dataset.num_items - known[np.unique(dataset.test.users)]
  n = max(1, min(SAMPLED, int(np.median(left))))  # at least half of the users have so many unknown items
  layout = protocols.layout(dataset, "test", sampled=n)
  metrics = metric_names.usual("interactions", (10,))
  found = protocols.means(protocols.full_ranking(module, variables, layout, metrics)[1])
  return {"full": {k: v for k, v in found.items() if "(sampled" not in k},
          "sampled": {k: v for k, v in found.items() if "(sampled" in k},
          "left_out": protocols.short_of_unknown(dataset, "test", n)}


def pure_svd(dataset: Dataset, factors: int) -> tuple[Any, dict]:
  """(module, variables) of an MF model with the truncated singular value decomposition of the training matrix."""
  from scipy import sparse
  from scipy.sparse import linalg

  ones, log = np.ones(len(dataset.train.users), np.float64), dataset.train
  matrix = sparse.csr_matrix((ones, (log.users, log.items)), shape=(dataset.num_users, dataset.num_items))
  width = min(factors, min(matrix.shape) - 1)
  start = np.ones(min(matrix.shape))  # the default start is random
  left, values, right = linalg.svds(matrix, width, v0=start)
  params = {"user": (left * values).astype(np.float32), "item": right.T.astype(np.float32)}
  return loading.build_model(f"mf(dim={width})", dataset), {"params": params, "constants": {}}


def _of_seed(call, seed, factors, data_dir, cache_dir) -> dict[str, Any]:
  call = registry.parse("data", call, "data").changed(split_seed=seed)
  dataset = data.load(call, data_dir, cache_dir, splits=splits.NAMES)
  module, variables = pure_svd(dataset, factors)
  layout = protocols.layout(dataset, "test")
  metrics = metric_names.usual("interactions", (10,))
  found = protocols.means(protocols.full_ranking(module, variables, layout, metrics)[1])
  return {"seed": seed, "cold_test_share": dataset.report["audit"]["cold_test_share"],
          "recall@10": found["recall@10"], "ndcg@10": found["ndcg@10"]}


def describe(found: dict[str, Any]) -> str:
  """The audit as printable text."""
  lines = [found["data"], audit.describe(found["counts"]), f"duplicates in the source: {found['duplicates']:,}",
           "shared by two splits: " + ", ".join(f"{name} {count:,}" for name, count in found["leaks"].items())]
  if "model" in found:
    full, sampled = found["full"], next(iter(found["sampled"])).partition("(")[2].rstrip(")")
    warm = f", {full['recall@10(warm)']:.4f} of warm items" if "recall@10(warm)" in full else ""
    lines += [f"{found['model']}: recall@10 {full['recall@10']:.4f}{warm}, ndcg@10 {full['ndcg@10']:.4f}, full ranking",
              f"the same, {sampled} items: recall@10 {found['sampled'][f'recall@10({sampled})']:.4f}, "
              f"ndcg@10 {found['sampled'][f'ndcg@10({sampled})']:.4f}"]
    lines += [found["left_out"]] if found["left_out"] else []
  if "split_seeds" in found:
    values = [x["recall@10"] for x in found["split_seeds"]]
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    lines.append(f"over {len(values)} seeds of the split: recall@10 {np.mean(values):.4f}{spread}, "
                 f"from {min(values):.4f} to {max(values):.4f}")
  return "\n".join(lines)
