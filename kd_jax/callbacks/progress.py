"""Progress of a run: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

import tqdm

from kd_jax.base import Callback, Progress


def progress(seconds: float = 10.0) -> Callback:
  """Shows losses, the monitored metric and the remaining time. Without a terminal, prints a line every `seconds`."""
  bar, printed = None, time.monotonic()

  def start(run: Progress):
    nonlocal bar
    if sys.stderr.isatty():
      bar = tqdm.tqdm(total=run.epochs, initial=run.epoch, unit="epoch")

  def epoch(run: Progress):
    nonlocal printed
    if bar is not None:
      bar.set_postfix_str(_text(run))
      bar.update()
    elif time.monotonic() - printed > seconds:
      printed = time.monotonic()
      each = run.seconds / run.epoch
      print(f"epoch {run.epoch}/{run.epochs}  {_text(run)}  {each:.2f} s/epoch, at most "
            f"{(run.epochs - run.epoch) * each:.0f} s left", flush=True)

  def end(run: Progress):
    if bar is not None:
      bar.close()

  return Callback(start, epoch, None, end)


def _text(run: Progress) -> str:
  losses = " ".join(f"{k.partition(':')[2] or k} {v:.4g}" for k, v in run.line["loss"].items())
  if not run.best_epoch:
    return f"loss {losses}"
  now = run.line.get("validation", {}).get(run.monitor)
  return (f"loss {losses}  {run.monitor} {'' if now is None else f'{now:.4f} '}best {run.best_value:.4f} "
          f"@{run.best_epoch}")
