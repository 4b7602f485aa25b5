"""Selection of the best epoch by validation metrics, and early stopping.

The first metric of `monitor` chooses the best epoch. Training continues as long as any metric of `monitor` improves.
"epoch" alone selects the last epoch: every epoch counts as better than the previous one.
"""

from __future__ import annotations

from typing import NamedTuple

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
  best_value: float = -float("inf")
  best: dict[str, float] | None = None  # validation metrics of the best epoch
  stale: int = 0  # number of validations since the last improvement
  seconds: float = 0.0
  others: dict[str, float] = {}  # noqa: RUF012 best values of the other metrics of `monitor`


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


def _better(monitor: Monitor, name: str, value: float, than: float) -> bool:
  if name in monitor.metrics:  # all but the last epoch and metrics of sampled candidates
    return value > than if monitor.metrics[name].higher_is_better else value < than
  return metric_names.better(name, value, than)
