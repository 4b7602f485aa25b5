"""The options of a run: one dataclass for Python and for the command line. Its fields are the flags."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kd_jax import registry
from kd_jax.base import KD, Callback, Dataset, InputError, KDSum, Metric, Objective, check_options, option
from kd_jax.runs import identity

if TYPE_CHECKING:
  import flax.linen as nn
  import optax

  from kd_jax.teachers.fitted import Fitted


@dataclasses.dataclass(frozen=True)
class FitOptions:
  """The arguments of `fit`.

  A part (model, method, data set ...) is a text, i.e. a name or a call such as "mf(dim=20)", or an object. Raises
  InputError for an invalid value or an unknown name.
  """

  data: str | Dataset = option(
      "movielens", "Data set: a name or a call, e.g. \"citeulike(split='position')\".", factory="data")
  data_dir: str | None = option(None, "Folder with local copies of source files. Default: $KD_JAX_DATA.")
  cache_dir: str | None = option(None, "Folder for downloads, prepared data and compiled programs. Default: "
                                 "$KD_JAX_CACHE or ~/.cache/kd_jax.")
  allow_code: str | os.PathLike | None = option(
      None, "Directory of Python modules that the files of other runs may name: their code is executed. A run with "
      "`model=mine.net()` is read only with the directory of mine.py, unless this command names mine.net, too.")
  workdir: str | os.PathLike | None = option(None, "Directory of the run, or of several runs.")
  data_memory: float = option(0.0, "Memory limit for training interactions, in GB. Above it, they stay on disk, and "
                              "an epoch reads one part of the users at a time (docs/scale.md). 0: no limit.", least=0,
                              most=10**6)
  model: str | nn.Module = option("mf(dim=64)", "The model to train: a call, e.g. \"mf(dim=20)\".", factory="models")
  features: str | None = option(None, "Item feature vectors for the model: files .npz (ids and vectors) or .npy (in "
                                "the order of the data's items); several with commas.")
  user_features: str | None = option(None, "The same for user feature vectors.")
  kd: str | KD | KDSum = option("", 'Distillation: a weighted sum of methods, e.g. "0.1*rrd(temperature=10)". Empty: '
                                "none.", factory="losses")
  teacher: str | os.PathLike | Fitted | Sequence[Any] | None = option(
      None, "Run directory of the teacher, a directory of soft labels, or file:PATH, a file from another framework "
      "(docs/import_a_teacher.md); several with commas.")
  teacher_unknown_ids: int = option(0, "Maximum number of ids in `teacher=file:PATH` that are not in the data; "
                                    "entries with such ids are ignored.", least=0, most=10**9)
  peer: str | nn.Module | None = option(None, "A second model that is trained at the same time: student and peer teach "
                                        "each other.", factory="models")
  init_from: str | os.PathLike | None = option(
      None, "Run directory whose best parameters initialise the model. They are matched by name and shape; rows of "
      "users and items by id.")
  freeze: str = option("", "Parameters of the model that are not trained: names or patterns, with commas, e.g. "
                       "\"user,item\" or \"item*\".")
  keep_zeros: bool = option(False, "Parameters that `init_from` sets to 0 stay 0: to train a pruned run on.")
  optimizer: str | optax.GradientTransformation = option(
      "adam", "The optimiser. Weight decay is coupled L2 for adam and sgd, as in the literature, and decoupled for "
      "adamw.", factory="optimizers")
  learning_rate: float = option(1e-3, "Learning rate.", above=0, most=10**6)
  schedule: str | optax.Schedule = option("", "Schedule of the learning rate, e.g. \"warmup_cosine(warmup=2)\". Empty: "
                                          "constant.", factory="schedules")
  weight_decay: float = option(0.0, "Weight decay, at every step, of the parameters that `decayed` names.", least=0,
                               most=10**6)
  decayed: str = option("*", "Parameters with weight decay: patterns of names, with commas. *: all, including "
                        "adapters of methods and learned temperatures; networks/*: only the models.")
  embedding_l2: float = option(0.0, "Weight of an L2 term in the base loss: half the squared norms of the embeddings "
                               "of an interaction's user, item and negatives (mean over negatives), as in LightGCN's "
                               "code.", least=0, most=10**6)
  loss: str | Objective = option("", "Base loss. Empty: bpr, or bce if the data is labelled.", factory="objectives")
  loss_weight: float = option(1.0, "Weight of the base loss, which is added to the methods of `kd`. 0: train only with "
                              "`kd`.", least=0, most=10**6)
  kd_per: str = option("interaction", "Weight of a distilled user in a batch: its number of interactions in the batch "
                       "(interaction), or 1 (user).", choices=("interaction", "user"))
  reduction: str = option("sum", "Reduction of per-example losses over a batch: sum (as in the literature) or mean.",
                          choices=("sum", "mean"))
  batch_size: int = option(2048, "Interactions (contexts, if the data is labelled) per step.", above=0, most=2**24)
  train_share: float = option(1.0, "Share of the training interactions (contexts) that steps learn from, drawn by "
                              "`seed`, the same in every epoch: for teachers of fewer data. Others are no negatives, "
                              "either.", above=0, most=1)
  negatives: int = option(1, "Negatives (unseen items) per interaction; none for labelled data.", above=0,
                         most=10**6)
  negatives_from: str = option("all", "Draw negatives from all items, or only from warm items (with training "
                               "interactions); with warm, content models do not learn to rank cold items low.",
                               choices=("all", "warm"))
  epochs: int = option(1000, "Maximum number of epochs.", above=0, most=10**7)
  eval_every: int = option(1, "Number of epochs between validations.", above=0, most=10**7)
  patience: int = option(30, "Validations without improvement before training stops; 0: never stop early.", least=0,
                        most=10**7)
  monitor: str = option("", "Validation metric that chooses the best epoch. Of several with commas, the first "
                        "chooses; training stops when none improves. epoch: take the last epoch. hit@10(sampled 499): "
                        "rank among 499 sampled unseen items; if all metrics are sampled, the full ranking is "
                        "skipped. Empty: ndcg@10; for labelled data map, or auc if there is one label.")
  metrics: str | Mapping[str, Metric] = option(
      "", "Further metrics to compute at every validation, with commas: any cut-off (ndcg@7) or one of your own "
      "(mine.coverage@10).", lists="metrics")
  keep_every: int = option(0, "Every this many epochs, write WORKDIR/after/EPOCH: a run directory as if training "
                           "had ended there, e.g. to use as a teacher of a curriculum. 0: never.", least=0,
                          most=10**7)
  log_test: bool = option(False, "Also evaluate on the test split at every validation, for a comparison with "
                          "published curves; the test values choose nothing.")
  mask_validation: bool = option(False, "With `log_test`, exclude validation items from the test candidates.")
  callbacks: str | Sequence[str | Callback] = option(
      "", "Callbacks, several with +, e.g. \"tensorboard()\".", factory="callbacks")
  seed: int = option(0, "Seed for initialisation, order of the data, negatives and targets.", least=0,
                     most=2**32 - 1)
  parallel: str = option("jit", "How steps are compiled for several devices: jit or pmap.", choices=("jit", "pmap"))
  shard_tables: bool = option(False, "Split embedding tables and their optimiser moments by rows over the devices, so "
                              "that no device holds a whole table (docs/scale.md).")
  profile: bool = option(False, "Write a trace of the third epoch to WORKDIR/profile: TensorBoard opens the directory, "
                         "Perfetto the file perfetto_trace.json.gz in it.")

  def __post_init__(self):
    for field in dataclasses.fields(self):
      _check_kind(self, field)
    check_options(self)
    if self.keep_every % self.eval_every:
      raise InputError(f"`keep_every={self.keep_every}`: must be a multiple of `eval_every={self.eval_every}`, which "
                       "chooses the best epoch of what is kept")
    for field in dataclasses.fields(self):
      package, value = field.metadata["factory"], getattr(self, field.name)
      if package and isinstance(value, str) and (value or field.name in ("data", "model")):
        parse = registry.parse_sum if field.name in SUMS else registry.parse
        terms = parse(package, value, field.name)
        if field.name == "callbacks" and any(weight != 1 for weight, _ in terms):
          raise InputError(f"`callbacks={value}`: callbacks have no weights")


# What an option of several types must be: a function that says whether a value is, and the words for it.
_KINDS = {
    **dict.fromkeys(("model", "peer"), (lambda x: x is None or isinstance(x, str) or hasattr(x, "apply"),
                                        "a text or a Flax module")),
    "data": (lambda x: isinstance(x, str | Dataset), "a text or a Dataset"),
    "kd": (lambda x: isinstance(x, str | KD | KDSum), "a text, a KD or a weighted sum of them"),
    "optimizer": (lambda x: isinstance(x, str) or hasattr(x, "update"), "a text or an optax transformation"),
    "schedule": (lambda x: isinstance(x, str) or callable(x), "a text or an optax schedule"),
    "metrics": (lambda x: isinstance(x, str) or (isinstance(x, Mapping) and all(
        isinstance(metric, Metric) for metric in x.values())), "a text, or {name: Metric}"),
    "callbacks": (lambda x: isinstance(x, str | list | tuple) and not hasattr(x, "_fields"), "a text or a list")}


def _check_kind(options, field):
  """Raises InputError for a value of another type; numbers of NumPy become those of Python."""
  name, value = field.name, getattr(options, field.name)
  if isinstance(value, np.generic):
    object.__setattr__(options, name, value := value.item())
  fits, wanted = _KINDS.get(name, (None, ""))
  if fits is not None and not fits(value):
    raise InputError(f"`{name}`: {wanted} is expected, not {type(value).__name__}")


SUMS = ("kd", "callbacks")  # options that name several parts with +
FIELDS = {field.name: field for field in dataclasses.fields(FitOptions)}
_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
# Options that do not change the result of a run: paths, profiling and callbacks.
_PLACES = ("workdir", "data_dir", "cache_dir", "allow_code", "profile", "callbacks")


def fit_options(options: FitOptions | None = None, **changes: Any) -> FitOptions:
  """`options`, or the defaults, with `changes`. Raises InputError, which names an unknown argument."""
  for name in changes:
    if name not in FIELDS:
      close = difflib.get_close_matches(name, FIELDS, n=1)
      raise InputError(f"fit has no argument {name!r}{f'; did you mean {close[0]}?' if close else ''}")
  changes = {name: "" if value is None and FIELDS[name].default == "" else value for name, value in changes.items()}
  return dataclasses.replace(options or FitOptions(), **changes)


def with_text(options: FitOptions, name: str, text: str) -> FitOptions:
  """The options with option `name` set from a text, e.g. in a sweep. Raises InputError."""
  default = FIELDS[name].default
  kind = type(default) if isinstance(default, bool | int | float) else str
  try:
    value = _BOOLEANS[text.lower()] if kind is bool else kind(text)
  except (KeyError, ValueError):
    raise InputError(f"`{name}={text}`: not a value of type {kind.__name__}") from None
  return fit_options(options, **{name: value})


def texts(options: FitOptions) -> dict[str, str]:
  """The options that define a run, as in flags.txt: every option that is not None, one line each.

  Objects are described in angle brackets; such a line cannot be read back.
  """
  values = {name: getattr(options, name) for name in FIELDS if name not in _PLACES}
  return {name: " ".join(text_of(value).splitlines()) for name, value in values.items() if value is not None}


def text_of(value: Any) -> str:
  """An option as text; objects by `identity.describe`."""
  if isinstance(value, Dataset):
    return value.name
  if isinstance(value, str | int | float | os.PathLike):
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
  if isinstance(value, KDSum):
    return " + ".join(f"{weight if isinstance(weight, float) else identity.describe(weight)}*{text_of(kd)}"
                      for weight, kd in value.terms)
  if isinstance(value, Mapping):
    return ",".join(f"{name}={identity.describe(metric)}" for name, metric in value.items())
  if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
    return ",".join(map(text_of, value))
  if hasattr(value, "history"):  # a fitted model: by its directory; its parameters are compared by their hash
    return os.fspath(value.workdir) if value.workdir else "<fitted>"
  return identity.describe(value)


def teachers_of(options: FitOptions) -> list[Any]:
  """The teachers as a list of paths or fitted models."""
  teacher = options.teacher
  if not teacher and not hasattr(teacher, "module"):
    return []
  if isinstance(teacher, str):
    return teacher.split(",")
  return list(teacher) if isinstance(teacher, list | tuple) and not hasattr(teacher, "_fields") else [teacher]
