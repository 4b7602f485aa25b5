"""Time and memory per interaction as the number of interactions grows, for scripts/scaling.py."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time
from typing import Any

from kd_jax import cli, data, registry
from kd_jax.base import InputError
from kd_jax.data import streams
from kd_jax.storage import run_directory

_SCRIPTS = cli.folder("scripts")
_EPOCHS = 3  # the first includes compilation, the last is timed


def measure(values: Any, interactions: int) -> dict[str, float]:
  """Generates and prepares `interactions`, trains, and writes soft labels. Returns times in us and peak memory in GB.

  Raises InputError with the last line of stderr if one of the scripts fails.
  """
  call = registry.Call("synthetic", tuple(sorted({
      "users": values.users, "items": values.items, "interactions_per_user": interactions // values.users, "dim": 0,
      "split": "loo"}.items())))
  cache = [f"--cache_dir={values.cache_dir}"] if values.cache_dir else []
  run = pathlib.Path(values.workdir) / str(interactions)
  prepared, prepare_peak = _run("prepare", f"--data={call}", *cache)
  _, train_peak = _run("train", f"--data={call}", f"--model={values.model}", f"--batch_size={values.batch_size}",
                       f"--data_memory={values.data_memory}", f"--epochs={_EPOCHS}", f"--eval_every={_EPOCHS}",
                       f"--workdir={run}", *cache)
  labelled, label_peak = _run("soft_labels", f"--teacher={run}", f"--top_k={values.top_k}", f"--out={run}/labels",
                              *cache)
  last, info = run_directory.read_metrics(run)[-1]["seconds"], run_directory.read_info(run)
  dataset = data.load(call, cache_dir=values.cache_dir, splits=("train",), memory=values.data_memory)
  count = len(dataset.train.users) or int(dataset.stream.starts["train"][-1])
  return {"interactions": interactions, "parts": dataset.stream.parts if dataset.stream else 1,
          "drawing, us": 1e6 * last["resample"] / count, "training, us": 1e6 * last["train"] / count,
          "epoch, us": 1e6 * sum(last.values()) / count, "preparing, us": 1e6 * prepared / interactions,
          "labels, us a user and label": 1e6 * labelled / values.users / values.top_k,
          "peak of training, GB": train_peak, "of labels": label_peak, "of preparing": prepare_peak,
          "formula, GB": formula(info["parameters"], dataset, values.data_memory)}


def formula(parameters: int, dataset: Any, memory: float) -> float:
  """Memory of training in GB, without the base memory of a program that has compiled something (docs/scale.md)."""
  tables = 24 * parameters  # values, two moments, gradient, best values, one copy
  if dataset.stream is None:
    return (tables + streams.BYTES * len(dataset.train.users)) / 1e9
  return (tables + 16 * dataset.num_users) / 1e9 + memory


def _run(name, *arguments) -> tuple[float, float]:
  """Runs a script. Returns (seconds, peak memory in GB)."""
  start = time.perf_counter()
  process = subprocess.Popen([sys.executable, str(_SCRIPTS / f"{name}.py"), *arguments], stdout=subprocess.DEVNULL,
                             stderr=subprocess.PIPE, text=True)
  errors = process.stderr.read()
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    raise InputError(f"{name}.py: {(errors.strip().splitlines() or ['failed'])[-1]}")
  return time.perf_counter() - start, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
