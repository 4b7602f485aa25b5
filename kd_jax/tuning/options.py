"""The options of a search: one dataclass for Python and the command line."""

from __future__ import annotations

import dataclasses

from kd_jax.base import check_options, option


@dataclasses.dataclass(frozen=True)
class SearchOptions:
  """How a search draws and counts its trials. Raises InputError for an invalid value."""

  space: str = option("", "What is searched: NAME=DISTRIBUTION with semicolons, e.g. \"learning_rate=log(1e-4, 1e-1); "
                      "rrd.weight=log(1e-3, 1); rrd.k=20|40\". Empty: what the model and the methods declare, learning "
                      "rate and weight decay.")
  trials: int = option(20, "Number of trials in all, those of earlier calls included.", above=0, most=100_000)
  seconds: float = option(0.0, "Start no trial after this many seconds of this call. 0: no limit.", least=0, most=10**8)
  sampler: str = option("tpe", "How trials are drawn: by a tree-structured Parzen estimator (tpe), or independently "
                        "(random).", choices=("tpe", "random"))
  sampler_seed: int = option(0, "Seed of the sampler.", least=0, most=2**31 - 1)
  pruner: str = option("none", "Which trials end early, by their validations: none, those below the median of the "
                       "others at the same epoch (median), or by successive halving (hyperband).",
                       choices=("none", "median", "hyperband"))

  def __post_init__(self):
    check_options(self)
