"""The tasks that the library implicit shares with kd_jax: an epoch of BPR matrix factorisation, and full ranking.

Its BPR is stochastic gradient descent, sample by sample, on all cores without locks. An epoch also has N samples, but
the updates differ from ours. Its evaluation selects the top 50 of every user for metrics such as NDCG@50.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import implicit
import numpy as np
from implicit.bpr import BayesianPersonalizedRanking
from implicit.evaluation import ranking_metrics_at_k
from scipy import sparse

from kd_jax import registry
from kd_jax.base import Dataset, InputError
from kd_jax.bench import interleave

_CUTOFF = 50


def works(dataset: Dataset, settings: interleave.Settings) -> dict[str, Callable[[], interleave.Repeat]]:
  """{name of a task: function that prepares it}: evaluation, and an epoch of the plain student."""
  call = registry.parse("models", settings.model, "model")
  if call.name != "mf":
    raise InputError(f"--model={settings.model}: implicit has mf")
  shape, dim = (dataset.num_users, dataset.num_items), dict(call.arguments).get("dim", 64)
  train, held = (sparse.csr_matrix((np.ones(len(log.users), np.float32), (log.users, log.items)), shape)
                 for log in (dataset.train, dataset.validation))

  def epoch():
    model = _model(dim, 1)
    return lambda: model.fit(train, show_progress=False) or {}

  def evaluation():
    model = _model(dim, settings.warmup)
    model.fit(train, show_progress=False)
    return lambda: ranking_metrics_at_k(
        model, train, held, K=_CUTOFF, show_progress=False, num_threads=interleave.cores()) and {}

  return {"evaluation": partial(interleave.timed, evaluation), "epoch plain": partial(interleave.timed, epoch)}


def _model(dim, iterations):
  # implicit adds a bias in addition to these factors.
  return BayesianPersonalizedRanking(factors=dim, learning_rate=0.05, iterations=iterations,
                                      num_threads=interleave.cores())


def machine() -> dict[str, str]:
  """The version of the library."""
  return {"implicit": implicit.__version__}
