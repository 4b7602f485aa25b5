"""A trained model in memory: the result of `fit`, and an input of evaluation and distillation."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Dataset, InputError, Ranked
from kd_jax.data import index
from kd_jax.ranking import rank


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
  """A trained model: parameters of its best epoch, and the history of its training."""

  module: nn.Module
  params: dict[str, Any]  # of the model, at the best epoch on validation
  adapters: dict[str, Any]  # {method on an edge: parameters}, after the last epoch
  constants: dict[str, Any]  # arrays that the model computes from the data, e.g. a graph
  dataset: Dataset
  history: list[dict[str, Any]]  # one entry per epoch, as in metrics.jsonl: losses, seconds, validation metrics
  result: dict[str, Any]  # best epoch, its validation metrics, seconds: as in result.json
  info: dict[str, Any]  # data, model, teacher, versions: as in run.json
  workdir: str | None = None  # the directory of the run, if it has one

  @property
  def variables(self) -> dict[str, Any]:
    """The Flax variables of `module`."""
    return jax.tree.map(jnp.asarray, {"params": self.params, "constants": self.constants})

  def scores(self, users: Any) -> np.ndarray:
    """Scores [b, I] of all items, higher is better, for users [b] (indices). Raises InputError for an unknown user."""
    return np.array(rank.scorer(self.module, self.variables)(jnp.asarray(self._known(users))))

  def top_k(self, k: int = 10, users: Any = None, exclude_seen: bool = True) -> Ranked:
    """The `k` best items of users [b] (indices; default: all) and their scores, both [b, k], best first.

    `exclude_seen` excludes the users' training items. Places without an item hold -1 and score -inf.
    Raises InputError for an unknown user, or for k below 1.
    """
    if k < 1:
      raise InputError(f"`k={k}`: must be positive")
    if self.dataset.stream is not None:
      raise InputError("`top_k`: the data is streamed; `soft_labels` of the run directory ranks it by parts")
    chosen = slice(None) if users is None else self._known(users)
    seen = jax.tree.map(jnp.asarray, index.seen_by_users(self.dataset))
    found = rank.network_top_k(self.module, self.variables, seen, k=k, exclude_seen=exclude_seen)
    return jax.tree.map(lambda x: np.asarray(x)[chosen], found)

  def _known(self, users) -> np.ndarray:
    users = np.atleast_1d(np.asarray(users))
    if users.dtype.kind not in "iu" or not ((0 <= users) & (users < self.dataset.num_users)).all():
      raise InputError(f"`users`: indices of 0..{self.dataset.num_users - 1}, as in `dataset.user_ids`, are expected")
    return users.astype(np.int32)
