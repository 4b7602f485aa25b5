"""Selection of the best epoch by validation metrics, and early stopping.

The first metric of `monitor` chooses the best epoch. Training continues as long as any metric of `monitor` improves.
"epoch" alone selects the last epoch: every epoch counts as better than the previous one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from kd_jax.base import InputError
from kd_jax.evaluation import metric_names
from kd_jax.evaluation.metric_names import LAST, Metrics


class Monitor(NamedTuple):
  """The validation metrics after an epoch, and the metrics that select the best epoch."""

  names: tuple[str, ...]  # the first one chooses
  kind: str  # of data
  metrics: Metrics  # all computed metrics, including the default ones
  sampled: int  # candidates of the sampled protocol, or 0
  only_sampled: bool  # whether all monitored metrics use the sampled protocol

  def __str__(self):
    return ",".join(self.names)


def monitor(names: str, kind: str, further: Metrics | None = None) -> Monitor:
  """Parses `names`, separated by commas; "" is the default metric. Metrics in `further` are computed in addition.

  Raises InputError for an unknown name, or different numbers of sampled candidates.
  """
  wanted, further = metric_names.split(names) or (metric_names.default(kind),), dict(further or {})
  try:
    named = [name for name in wanted if name not in further and wanted != (LAST,)]
    found = [metric_names.read(name, kind) for name in named]
    metrics = metric_names.chosen(named, kind) | further
  except ValueError as error:
    raise InputError(f"`monitor`: {error}, or {LAST} for the last epoch") from None
  sampled = {x.sampled for x in found if x.sampled}
  if len(sampled) > 1:
    raise InputError(f"`monitor={names}`: one number of sampled items, not {sorted(sampled)}")
  only_sampled = bool(found) and not further and all(x.sampled for x in found)
  return Monitor(wanted, kind, metrics, max(sampled, default=0), only_sampled)


class Position(NamedTuple):
  """The progress of a run, without its parameters. Plain numbers, because it is saved as JSON."""

  epoch: int = 0  # number of completed epochs
  best_epoch: int = 0
  best_value: float | None = None  # None: before the first validation
  best: dict[str, float] | None = None  # validation metrics of the best epoch
  stale: int = 0  # number of validations since the last improvement
  seconds: float = 0.0
  others: dict[str, float] = {}  # noqa: RUF012 best values of the other metrics of `monitor`

  @classmethod
  def restored(cls, saved: dict[str, Any]) -> Position:
    """The position whose `_asdict()` was saved as JSON, which has null for NaN."""
    def number(value):
      return float("nan") if value is None else value

    best, others = ({name: number(value) for name, value in (saved[key] or {}).items()} for key in ("best", "others"))
    return cls(**saved | {"best": best if saved["best"] is not None else None, "others": others})


def compare(monitor: Monitor, position: Position, validation: dict[str, float]) -> tuple[Position, bool]:
  """(the position after a validation, whether this epoch is the best so far)."""
  found = validation | {LAST: float(position.epoch)}
  first, *rest = monitor.names

  def better(name, than):
    return _better(monitor, name, found[name], than)

  others = {name: found[name] if name not in position.others or better(name, position.others[name])
            else position.others[name] for name in rest}
  best = position.best is None or better(first, position.best_value)
  stale = 0 if best or others != position.others else position.stale + 1
  position = position._replace(others=others, stale=stale)
  if best:
    position = position._replace(best_epoch=position.epoch, best_value=found[first], best=validation)
  return position, best


def _better(monitor: Monitor, name: str, value: float, than: float | None) -> bool:
  """Whether `value` is better than the best value so far. Any value is better than none, NaN (null in JSON)."""
  if than is None or np.isnan(than):
    return not np.isnan(value)
  if name in monitor.metrics:  # all but the last epoch and metrics of sampled candidates
    metric = monitor.metrics[name]
    return bool(metric_names.goodness(metric, value) > metric_names.goodness(metric, than))
  return metric_names.better(name, value, than)
