"""--monitor: the validation metrics that choose the best epoch and say when training may stop.

The first metric chooses; training goes on as long as any of them improves. "epoch" alone means the last one:
every epoch is better than the one before.
"""

from __future__ import annotations

from typing import Any

from kd_jax.base import InputError
from kd_jax.evaluation import protocols
from kd_jax.objectives import tasks

LAST = tasks.LAST
_OF_LABELS = {*tasks.TAGS.metrics, *tasks.CLICKS.metrics}  # without cut-offs


def names(monitor: str) -> tuple[str, ...]:
  """The metrics of --monitor, the choosing one first."""
  return tuple(name.strip() for name in monitor.split(","))


def needs(monitor: str) -> tuple[tuple[int, ...], int, bool]:
  """(cut-offs to evaluate, the usual ones too; candidates of the sampled protocol or 0; is it all that is asked for?)

  Raises InputError.
  """
  try:
    wanted = [] if monitor in ("", LAST) else [name for name in names(monitor) if name not in _OF_LABELS]
    found = [ranked.parse(name) for name in wanted]
  except ValueError as error:
    raise InputError(f"--monitor: {error}, or {LAST} for the last epoch") from None
  sampled = {n for _, _, n in found if n}
  if len(sampled) > 1:
    raise InputError(f"--monitor={monitor}: one number of sampled items, not {sorted(sampled)}")
  only = bool(found) and all(n for _, _, n in found)
  return tuple(sorted({*protocols.CUTOFFS, *(k for _, k, _ in found)})), max(sampled, default=0), only


def compare(monitor: str, position: Any, validation: dict[str, float]) -> tuple[Any, bool]:
  """(experiment.Position after a validation, is it the best so far?)."""
  found = validation | {LAST: float(position.epoch)}
  first, *rest = names(monitor)
  others = {name: found[name] if name not in position.others or tasks.better(name, found[name], position.others[name])
            else position.others[name] for name in rest}
  better = position.best is None or tasks.better(first, found[first], position.best_value)
  stale = 0 if better or others != position.others else position.stale + 1
  position = position._replace(others=others, stale=stale)
  if better:
    position = position._replace(best_epoch=position.epoch, best_value=found[first], best=validation)
  return position, better
