"""The one command line of all scripts: absl flags, flagfiles, and errors of one line."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence

from absl import flags

from kd_jax import __version__, registry
from kd_jax.base import InputError

DATA = dict(
    data=("string", "movielens", "Data set: a name or a call, e.g. \"citeulike(split='position')\"."),
    data_dir=("string", None, "Folder with local copies of source files. Default: $KD_JAX_DATA."),
    cache_dir=("string", None, "Folder of downloads, prepared data and compiled programs. "
               "Default: $KD_JAX_CACHE or ~/.cache/kd_jax."),
)
TRAIN = dict(
    data_memory=("float", 0.0, "GB for training interactions; where they need more, they stay on disk, and an epoch "
                 "goes through them by parts of the users (docs/scale.md). 0: no limit."),
    model=("string", "mf(dim=64)", "The model to train: a call, e.g. \"mf(dim=20)\"."),
    features=("string", None, "Vectors of items that the model sees: files .npz (ids and vectors) or .npy (in "
              "the order of the data's items), several with commas."),
    user_features=("string", None, "The same of users."),
    kd=("string", "", 'Distillation: a weighted sum of methods, e.g. "0.1*rrd(temperature=10)". Empty: none.'),
    teacher=("string", None, "Run directory of the teacher, a directory of soft labels, or file:PATH, a file of "
             "another framework (docs/import_a_teacher.md); several with commas."),
    teacher_unknown_ids=("integer", 0, "How many ids of --teacher=file:PATH may be unknown to the data; what names "
                         "them is left out."),
    peer=("string", None, "A second model that is trained at the same time: student and peer teach each other."),
    init_from=("string", None, "Run directory whose best parameters the model starts from: by name and shape, rows of "
               "users and items by id."),
    freeze=("string", "", "Parameters of the model that are not trained: names or patterns with commas, e.g. "
            "\"user,item\" or \"item*\"."),
    optimizer=("string", "adam", "adam or sgd (weight decay is coupled L2, as in the literature) or adamw."),
    learning_rate=("float", 1e-3, "Learning rate."),
    weight_decay=("float", 0.0, "Weight decay, of all parameters at every step."),
    embedding_l2=("float", 0.0, "Weight, in the base loss, of half the squared norms of the embeddings of an "
                  "interaction's user, item and (their mean) negatives: the L2 of LightGCN's code and others'."),
    loss=("string", "", "Base loss: bpr, bce, softmax (over the positive and its negatives) or cross_entropy "
          "(softmax over all items, no negatives); bce or softmax for labelled data. Empty: bpr, or bce if labelled."),
    loss_weight=("float", 1.0, "Weight of the base loss beside the methods of --kd; 0: they alone are learned from."),
    kd_per=("string", "interaction", "Weigh a distilled user of a batch by its interactions there, or every user "
            "alike: interaction or user."),
    reduction=("string", "sum", "How per-example losses of a batch are reduced: sum (the literature's) or mean."),
    batch_size=("integer", 2048, "Interactions (contexts, if the data is labelled) per step."),
    negatives=("integer", 1, "Unseen items drawn per interaction for the base loss; none for labelled data."),
    negatives_from=("string", "all", "Negatives are drawn from all items or from warm ones, those with training "
                    "interactions: then models of content do not learn that cold items are bad."),
    epochs=("integer", 1000, "Epochs at most."),
    eval_every=("integer", 1, "Epochs between validations."),
    patience=("integer", 30, "Validations without improvement before training stops; 0: never stop early."),
    monitor=("string", "", "Validation metric that chooses the best epoch; of several with commas the first one "
             "chooses, and training stops when none improves. epoch: the last epoch. hit@10(sampled 499): among so "
             "many unseen items; where all are such, only these are ranked. Empty: ndcg@10; for labelled data map, or "
             "auc if there is one label."),
    keep_every=("integer", 0, "Every so many epochs, keep the run as it would be if it ended there: "
                "WORKDIR/after/EPOCH, a run directory too, such as a teacher of a curriculum. 0: never."),
    log_test=("boolean", False, "Also evaluate on the test split at every validation, for curves to compare with "
              "published ones; nothing is chosen by them."),
    mask_validation=("boolean", False, "With --log_test, leave validation items out of the test candidates."),
    seed=("integer", 0, "Seed of initialisation, order, negatives and targets."),
    parallel=("string", "jit", "How steps are compiled for several devices: jit or pmap."),
    shard_tables=("boolean", False, "Split tables of embeddings and their moments by rows over the devices, so that "
                  "none holds a whole one (docs/scale.md)."),
    profile=("boolean", False, "Write a trace of the third epoch to WORKDIR/profile: TensorBoard opens the directory, "
             "Perfetto the file perfetto_trace.json.gz in it."),
    coordinator=("string", None, "HOST:PORT of process 0, if several processes train together (docs/scale.md); auto: "
                 "as SLURM, Kubernetes or a TPU pod says."),
    num_processes=("integer", None, "How many processes train together."),
    process_id=("integer", None, "Which of them this is, from 0; process 0 writes files and prints."),
)
EVALUATION = dict(
    mask_validation=("boolean", False, "On test, leave validation items out of the candidates."),
    history=("string", "train", "On test, what a model with inputs of interactions (sequences, graphs) reads: train or "
             "train+validation, as is usual for sequences."),
    sampled=("integer", 0, "Also rank each held-out item among this many unseen ones (499 in the literature)."),
    sampled_seed=("integer", 0, "Seed of those draws."),
)
_DEFINE = {"string": flags.DEFINE_string, "integer": flags.DEFINE_integer, "float": flags.DEFINE_float,
           "boolean": flags.DEFINE_boolean}
_POSITIVE = ("batch_size", "negatives", "epochs", "eval_every", "learning_rate", "top_k", "seeds", "split_seeds",
             "folds", "repeats", "num_processes", "jobs")
_NON_NEGATIVE = ("weight_decay", "embedding_l2", "loss_weight", "patience", "keep_every", "seed", "teacher_unknown_ids",
                 "warmup", "factors", "process_id", "data_memory", "sampled", "sampled_seed")
_SEEDS = ("seed", "sampled_seed")  # JAX takes a seed's last 32 bits: 2**32 would be 0
_CHOICES = {"loss": ("bpr", "bce", "softmax", "cross_entropy", ""), "kd_per": ("interaction", "user"),
            "negatives_from": ("all", "warm"), "reduction": ("sum", "mean"), "parallel": ("jit", "pmap"),
            "optimizer": ("adam", "adamw", "sgd"), "against": ("torch", "implicit", "recbole", ""),
            "split": ("validation", "test"), "history": ("train", "train+validation")}
_PACKAGES = {"data": "data", "model": "models", "peer": "models", "kd": "losses"}


def define(*groups: dict, **own) -> flags.FlagValues:
  """Flags of a script: groups above plus its own `name=(type, default, help)`."""
  values = flags.FlagValues()
  flags.DEFINE_string("flagfile", "", "Read flags from this file; later flags win.", flag_values=values)
  for name, (kind, default, text) in {k: v for group in [*groups, own] for k, v in group.items()}.items():
    _DEFINE[kind](name, default, text, flag_values=values)
  return values


def parse(values: flags.FlagValues, argv: Sequence[str]) -> flags.FlagValues:
  """Parses and checks `argv` (without the program's name). Raises InputError, one line."""
  try:
    rest = values(["kd_jax", *argv])[1:]
  except UnicodeDecodeError as error:
    raise InputError(f"--flagfile: not a text in UTF-8: {error}") from None
  except (flags.Error, OSError) as error:
    raise InputError(" ".join(str(error).split())) from None
  if rest:
    raise InputError(f"stray word {rest[0]!r}: every argument is a flag, --name=value")
  check(values)
  return values


def check(values: flags.FlagValues) -> None:
  """Raises InputError for a value that its flag does not take."""
  for name in values:
    _check(name, values[name].value)
  if "keep_every" in values and values.keep_every % values.eval_every:
    raise InputError(f"--keep_every={values.keep_every}: must be a multiple of --eval_every={values.eval_every}, which "
                     "chooses the best epoch of what is kept")
  for name, package in _PACKAGES.items():
    if name in values and values[name].value is not None:
      (registry.parse_sum if name == "kd" else registry.parse)(package, values[name].value, name)


def _check(name, value):
  if isinstance(value, float) and not math.isfinite(value):
    raise InputError(f"--{name}={value}: not a finite number")
  if value is None:
    return
  if name in _POSITIVE and not value > 0:
    raise InputError(f"--{name}={value}: must be positive")
  if name in _NON_NEGATIVE and value < 0:
    raise InputError(f"--{name}={value}: must not be negative")
  if name in _SEEDS and value >= 2**32:
    raise InputError(f"--{name}={value}: must be less than 2**32")
  if name in _CHOICES and value not in _CHOICES[name]:
    raise InputError(f"--{name}={value}: choose from {', '.join(_CHOICES[name])}")


def usage(doc: str, values: flags.FlagValues) -> str:
  """The text of --help."""
  lines = [doc.strip(), "", "Flags:"]
  for name in values:
    flag = values[name]
    lines.append(f"  --{name}={'' if flag.default is None else flag.default}\n      {flag.help}")
    if name in _PACKAGES:
      known = [_signature(_PACKAGES[name], n) for n in registry.names(_PACKAGES[name])]
      lines += [f"        {k}" for k in known]
  return "\n".join(lines)


def _signature(package, name):
  arguments = [(k, v.default) for k, v in registry.signature(package, name).items() if k not in registry.GIVEN]
  return f"{name}({', '.join(f'{k}={default}' if default else k for k, default in arguments)})"


def run(main: Callable[[flags.FlagValues], None], doc: str, values: flags.FlagValues) -> None:
  """Runs a script: parse, main, and one clear line with a non-zero status for any input error.

  A file that the system does not let it read or write is such an error too.
  """
  program = sys.argv[0].rpartition("/")[2]
  if any(a in ("--help", "-h", "-help", "--helpfull") for a in sys.argv[1:]):
    print(usage(doc, values))
    return
  if "--version" in sys.argv[1:]:
    print(f"kd_jax {__version__}")
    return
  try:
    main(parse(values, sys.argv[1:]))
  except InputError as error:
    print(f"{program}: {error}", file=sys.stderr)
    sys.exit(2)
  except OSError as error:
    if error.strerror is None:  # not the operating system's word on a file
      raise
    print(f"{program}: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    print(f"{program}: interrupted; start the same command again to go on", file=sys.stderr)
    sys.exit(130)


def require(values: flags.FlagValues, *names: str) -> None:
  """Raises InputError for the first of these flags that was not given."""
  for name in names:
    if not values[name].value:
      raise InputError(f"--{name} is needed: {values[name].help}")
