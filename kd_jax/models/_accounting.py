"""How much privacy Gaussian noise buys: by the accounting library of Google, dp_accounting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from kd_jax.base import InputError


def noise_multiplier(epsilon: float, delta: float, releases: int = 1) -> float:
  """The standard deviation z of the noise of each of several releases, in units of their L2 sensitivities.

  All of them together are (epsilon, delta)-differentially private: one Gaussian mechanism with z / sqrt(releases) has
  the same privacy loss. Calibrated by its exact curve: Balle, Wang: Improving the Gaussian mechanism for differential
  privacy, ICML 2018, theorem 8. Raises InputError without the extra `privacy`.
  """
  return math.sqrt(releases) * _library().get_sigma_gaussian(epsilon, delta)


def spent(multipliers: Sequence[float], delta: float) -> float:
  """The epsilon of Gaussian releases with these multipliers together, each on all of the data.

  Exact: they are one Gaussian mechanism with multiplier (sum of z^-2)^(-1/2).
  """
  return float(_library().get_epsilon_gaussian(sum(z**-2 for z in multipliers) ** -0.5, delta))


def _library() -> Any:
  try:
    import dp_accounting
  except ModuleNotFoundError:
    raise InputError("`epsilon`: privacy is accounted for by a library: pip install 'kd_jax[privacy]'") from None
  return dp_accounting
