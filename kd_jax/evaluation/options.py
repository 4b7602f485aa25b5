"""The options of an evaluation: one dataclass for Python, tables and the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from kd_jax.base import Metric, check_options, option


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
  """The protocol of an evaluation. Raises InputError for an invalid value."""

  mask_validation: bool = option(False, "On the test split, exclude validation items from the candidates.")
  history: str = option("train", "On the test split, interactions that sequence and graph models get as input: "
                        "train, or train+validation (usual for sequences).", choices=("train", "train+validation"))
  sampled: int = option(0, "Also rank each held-out item among this many unseen items (literature: 499).", least=0,
                        most=10**6)
  sampled_seed: int = option(0, "Seed for sampling these items.", least=0, most=2**32 - 1)
  metrics: str | Mapping[str, Metric] = option(
      "", "Further metrics, with commas: any cut-off (ndcg@7) or one of your own (mine.coverage@10).",
      lists="metrics")

  def __post_init__(self):
    check_options(self)

  def recorded(self) -> dict[str, Any]:
    """The options as test.json stores them, without `metrics`: test.json has these by name."""
    return {name: value for name, value in dataclasses.asdict(self).items() if name != "metrics"}
