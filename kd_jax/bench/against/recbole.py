"""The tasks that RecBole shares with kd_jax: an epoch of BPR with Adam, and full ranking, as its users run them.

Its loaders, trainer and evaluator read our training and validation interactions from files in its format. An epoch is
a `fit` of one epoch, without checkpoint and TensorBoard log. It has all of our metrics except F1.
"""

from __future__ import annotations

import functools
import pathlib
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import numpy as np
import recbole
import recbole.trainer.trainer
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.general_recommender import BPR

from kd_jax import registry
from kd_jax.base import Dataset, InputError
from kd_jax.bench import interleave

_NAME = "interactions"
_CUTOFFS = [5, 10, 20, 50]
_METRICS = ["Recall", "Precision", "NDCG", "Hit", "MRR", "MAP"]
_USERS = 100  # ranked at a time; RecBole's default of 4,096 scores is a single user, which is several times slower
_WARM_SECONDS = 30

# RecBole 1.2.1 uses names that NumPy 2 has removed. Newer pandas and torch warn about its use of missing values and
# half precision, which do not occur here.
np.float_, np.complex_, np.unicode_ = np.float64, np.complex128, np.str_
warnings.filterwarnings("ignore", module=r"recbole\.")


class Prepared(NamedTuple):
  """The objects of RecBole."""

  trainer: recbole.trainer.trainer.Trainer
  train: recbole.data.dataloader.TrainDataLoader
  validation: recbole.data.dataloader.FullSortEvalDataLoader


def prepare(dataset: Dataset, dim: int, batch_size: int, **settings) -> Prepared:
  """RecBole, ready to train on `dataset`. The ids in its files are our indices. `settings` are RecBole's."""
  values = {
      "embedding_size": dim, "train_batch_size": batch_size, "eval_batch_size": _USERS * (dataset.num_items + 1),
      "metrics": _METRICS, "topk": _CUTOFFS, "epochs": 1, "learning_rate": 1e-3, "weight_decay": 1e-5,
      "show_progress": False, **settings}
  with (tempfile.TemporaryDirectory() as folder,
        mock.patch.object(sys, "argv", sys.argv[:1]),  # else it would parse our flags, such as --model
        mock.patch.object(recbole.trainer.trainer, "get_tensorboard")):  # else it would write to the current directory
    names = _write(dataset, pathlib.Path(folder))
    files = {"data_path": folder, "checkpoint_dir": folder, "benchmark_filename": names}
    config = Config("BPR", _NAME, config_dict=values | files)
    train, validation, _ = data_preparation(config, create_dataset(config))
    model = BPR(config, train._dataset).to(config["device"])
    return Prepared(recbole.trainer.trainer.Trainer(config, model), train, validation)


def _write(dataset, folder):
  """Writes the splits as files for RecBole, and returns their names."""
  # RecBole knows only ids in its files, and needs a test split: we write one that contains every user and item.
  n = np.arange(max(dataset.num_users, dataset.num_items))
  splits = {"train": dataset.train[:2], "validation": dataset.validation[:2],
            "test": (n % dataset.num_users, n % dataset.num_items)}
  (folder / _NAME).mkdir()
  for name, (users, items) in splits.items():
    np.savetxt(folder / _NAME / f"{_NAME}.{name}.inter", np.stack([users, items], 1), "%d", "\t",
               header="user_id:token\titem_id:token", comments="")
  return list(splits)


def works(dataset: Dataset, settings: interleave.Settings) -> dict[str, Callable[[], interleave.Repeat]]:
  """{name of a task: function that prepares it}: evaluation, and an epoch of the plain student."""
  call = registry.parse("models", settings.model, "model")
  if call.name != "mf":
    raise InputError(f"--model={settings.model}: beside RecBole there is mf")
  dim = dict(call.arguments).get("dim", 64)

  @functools.cache
  def learned():
    prepared, deadline = prepare(dataset, dim, settings.batch_size), time.perf_counter() + _WARM_SECONDS
    for _ in range(settings.warmup):
      if time.perf_counter() < deadline:
        prepared.trainer.fit(prepared.train, saved=False)
    return prepared

  def evaluation():
    trainer, _, validation = learned()
    return lambda: trainer.evaluate(validation, load_best_model=False) and {}

  def epoch():
    trainer, train, _ = learned()
    return lambda: trainer.fit(train, saved=False) and {}

  made = {"evaluation": evaluation, "epoch plain": epoch}
  return {name: functools.partial(interleave.timed, once) for name, once in made.items()}


def machine() -> dict[str, str | int]:
  """Versions and threads of the libraries."""
  return {"recbole": recbole.__version__, "torch": torch.__version__, "torch_threads": torch.get_num_threads()}
