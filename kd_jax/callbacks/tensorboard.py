"""Losses, scalars and validation metrics as event files for TensorBoard."""

from __future__ import annotations

import pathlib

from kd_jax.base import Callback, InputError, Progress


def tensorboard(folder: str = "") -> Callback:
  """Writes losses, scalars, seconds and metrics of every epoch. To view them: `tensorboard --logdir=FOLDER`.

  The default `folder` is WORKDIR/tensorboard. Needs an extra: pip install "kd_jax[tensorboard]". A resumed run
  continues its curves. Raises InputError without a folder, or without tensorboardX.
  """
  writer = None

  def start(run: Progress):
    nonlocal writer
    if not folder and run.workdir is None:
      raise InputError("`callbacks=tensorboard()`: give it a folder, or give the run a `workdir`")
    try:
      from tensorboardX import SummaryWriter
    except ModuleNotFoundError:
      raise InputError('`callbacks=tensorboard()`: pip install "kd_jax[tensorboard]"') from None
    place = pathlib.Path(folder) if folder else pathlib.Path(run.workdir) / "tensorboard"
    writer = SummaryWriter(str(place), purge_step=run.epoch + 1)

  def epoch(run: Progress):
    for group, values in run.line.items():
      for name, value in values.items() if isinstance(values, dict) else ():
        writer.add_scalar(f"{group}/{name}", value, run.epoch)

  def end(run: Progress):
    if writer is not None:
      writer.close()

  return Callback(start, epoch, None, end)
