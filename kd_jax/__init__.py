"""kd_jax: knowledge distillation for recommender systems in JAX.

  import kd_jax
  data = kd_jax.load_data("movielens")
  teacher = kd_jax.fit(data, model="mf(dim=128)", weight_decay=1e-2)
  student = kd_jax.fit(data, model="mf(dim=8)", kd=0.1 * kd_jax.losses.rrd(), teacher=teacher, epochs=50)
  print(kd_jax.evaluate(student, teacher=teacher)["ndcg@10"])

Functions are imported on first use, so that `import kd_jax` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
  from kd_jax.base import (
    KD,
    Callback,
    Compressor,
    Dataset,
    FeatureSpec,
    InputError,
    KDSum,
    LabelMetric,
    Lists,
    Metric,
    Objective,
    Outputs,
    Progress,
    Ranked,
    View,
  )
  from kd_jax.data import load as load_data
  from kd_jax.data import of_frame
  from kd_jax.evaluation.options import EvaluationOptions
  from kd_jax.evaluation.run_report import Report, evaluate
  from kd_jax.runs.compress import compress_run as compress
  from kd_jax.runs.loop import fit, fit_many
  from kd_jax.runs.options import FitOptions
  from kd_jax.teachers.fitted import Fitted
  from kd_jax.teachers.loading import build_model
  from kd_jax.teachers.make_soft_labels import write as soft_labels
  from kd_jax.tuning.options import SearchOptions
  from kd_jax.tuning.study import search

# The module of each public name.
_FROM = {
    "kd_jax.base": ("KD", "Callback", "Compressor", "Dataset", "FeatureSpec", "InputError", "KDSum", "LabelMetric",
                    "Lists", "Metric", "Objective", "Outputs", "Progress", "Ranked", "View"),
    "kd_jax.evaluation.options": ("EvaluationOptions",),
    "kd_jax.evaluation.run_report": ("Report", "evaluate"),
    "kd_jax.runs.loop": ("fit", "fit_many"),
    "kd_jax.runs.options": ("FitOptions",),
    "kd_jax.teachers.fitted": ("Fitted",),
    "kd_jax.teachers.loading": ("build_model",),
    "kd_jax.tuning.options": ("SearchOptions",),
    "kd_jax.tuning.study": ("search",),
}
_NAMED = {"compress": ("kd_jax.runs.compress", "compress_run"), "load_data": ("kd_jax.data", "load"),
          "of_frame": ("kd_jax.data", "of_frame"),
          "soft_labels": ("kd_jax.teachers.make_soft_labels", "write")}
_PUBLIC = {name: (module, name) for module, names in _FROM.items() for name in names} | _NAMED
# Folders of factories: `kd_jax.losses.rrd()`.
_PARTS = ("callbacks", "compression", "label_metrics", "losses", "metrics", "models", "objectives", "optimizers",
          "schedules")
__all__ = ["__version__", *_PUBLIC, *_PARTS]


def __getattr__(name: str) -> Any:
  if name in _PUBLIC:
    module, own = _PUBLIC[name]
    return getattr(importlib.import_module(module), own)
  if name in _PARTS:
    return importlib.import_module(f"kd_jax.{name}")
  raise AttributeError(f"kd_jax has no {name!r}")


def __dir__() -> list[str]:
  return sorted(__all__)
