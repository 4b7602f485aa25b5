"""Progress of a run: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time

import tqdm

_QUIET_SECONDS = 10  # between plain lines


@contextlib.contextmanager
def reporting(epochs: int, done: int):
  """Yields report(line of metrics.jsonl, monitor, position)."""
  terminal = sys.stderr.isatty()
  bar = tqdm.tqdm(total=epochs, initial=done, unit="epoch", disable=not terminal)
  printed = time.monotonic()

  def report(line, monitor, position):
    nonlocal printed
    losses = " ".join(f"{k.partition(':')[2] or k} {v:.4g}" for k, v in line["loss"].items())
    text = f"loss {losses}"
    if position.best is not None:
      now = line.get("validation", {}).get(monitor)
      text += f"  {monitor} {'' if now is None else f'{now:.4f} '}best {position.best_value:.4f} @{position.best_epoch}"
    if terminal:
      bar.set_postfix_str(text)
      bar.update()
    elif time.monotonic() - printed > _QUIET_SECONDS:
      printed = time.monotonic()
      left = (epochs - position.epoch) * position.seconds / position.epoch
      print(f"epoch {position.epoch}/{epochs}  {text}  {position.seconds / position.epoch:.2f} s/epoch, "
            f"at most {left:.0f} s left", flush=True)

  with bar:
    yield report
