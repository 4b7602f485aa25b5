"""The types that all parts of kd_jax share.

Shape letters used everywhere: B batch, C candidates, K listed items, D width, U users, I items,
N interactions, S steps of an epoch, T held-out items of a user.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:  # not at run time, so that flag parsing stays fast
  import jax

  Array: TypeAlias = jax.Array | np.ndarray
else:
  Array = Any
Batch: TypeAlias = dict[str, Any]  # named arrays
TEACHER, STUDENT, PEER = "teacher", "student", "peer"  # the networks of a run
ROWS = "rows"  # the axis of samplers: in a sampler, `jax.lax.pmean(x, ROWS)` is the mean over all users


class InputError(ValueError):
  """An error in the user's input. The message is one line; it writes arguments in backquotes: `epochs=0`.

  Scripts print arguments as flags, --epochs=0, and exit with status 2.
  """

  def __init__(self, message: object = ""):
    super().__init__(one_line(message))


def one_line(message: object, longest: int = 2000) -> str:
  """A message as one printable line; the middle of a very long one is left out."""
  text = str(message)
  text = text if len(text) <= longest else f"{text[:longest // 2]} ... {text[-longest // 2:]}"
  return "".join(c if c.isprintable() else " " if c.isspace() else c.encode("unicode_escape").decode() for c in text)


class Interactions(NamedTuple):
  """Columns of an interaction log, indices already mapped to 0..U-1 and 0..I-1."""

  users: np.ndarray  # [N] int32
  items: np.ndarray  # [N] int32
  ratings: np.ndarray | None = None  # [N] float32
  timestamps: np.ndarray | None = None  # [N] int64, seconds


class Features(NamedTuple):
  """Features of E users (or contexts, or items), in addition to the interactions."""

  fields: tuple[str, ...] = ()  # [F] names of categorical fields
  sizes: tuple[int, ...] = ()  # [F] number of values of each field
  categories: np.ndarray | None = None  # [E, F] int32, 0 <= categories[:, f] < sizes[f]
  vectors: dict[str, np.ndarray] = {}  # noqa: RUF012 {name: [E, D] float32}, e.g. of a text; zeros: unknown


class FeatureSpec(NamedTuple):
  """The fields, sizes and widths of features, without their values. Hashable; factories of models receive it."""

  fields: tuple[str, ...]  # names of categorical fields
  sizes: tuple[int, ...]  # number of values of each field
  vectors: tuple[tuple[str, int], ...]  # (name, width)


class Dataset(NamedTuple):
  """A prepared data set. `test` is None unless it was requested.

  Labelled data (tags, clicks) has the same form: users are contexts (a review, an impression), items are labels, and
  interactions are the positive labels. `contexts` then lists the contexts of each split. For these contexts, every
  label that is not an interaction is 0. No negatives are sampled.
  """

  name: str  # the call that creates it, in canonical form
  num_users: int
  num_items: int
  train: Interactions
  validation: Interactions
  test: Interactions | None
  user_ids: np.ndarray  # [U] str, the original ids of the source file
  item_ids: np.ndarray  # [I] str
  hashes: dict[str, str]  # sha256 of "train", "validation", "test", "user_ids", "item_ids"
  report: dict[str, Any]  # the results of cleaning, splitting and the audit
  synthetic: bool = False  # generated data: results on it tell nothing about real users
  user_features: Features | None = None
  item_features: Features | None = None
  contexts: dict[str, np.ndarray] | None = None  # labelled data: {split: [n] int32, indices of users}
  stream: Any = None  # a data.streams.Stream: interactions stay on disk; the splits above are then empty
  popularity: np.ndarray | None = None  # [I] training interactions per item, if `train` holds only a part of them

  @property
  def kind(self) -> str:
    """"interactions"; for labelled data "tags", or "clicks" if there is only one label."""
    return "interactions" if self.contexts is None else "tags" if self.num_items > 1 else "clicks"

  def item_popularity(self) -> np.ndarray:
    """Number of training interactions of every item, [I]."""
    return np.bincount(self.train.items, minlength=self.num_items) if self.popularity is None else self.popularity


class Outputs(NamedTuple):
  """The outputs of a network for B contexts with C candidates each."""

  scores: Array  # [B, C], higher is better
  query: Array | None = None  # [B, D] representation of the context
  items: Array | None = None  # [B, C, D] (or [C, D], all items) representations of the candidates

  def of(self, items: Array | None) -> Outputs:
    """Selects the candidates `items` [B, C] from outputs for all items; None selects all."""
    import jax.numpy as jnp  # here, so that flag parsing stays fast

    if items is None:
      return self
    scores = jnp.take_along_axis(self.scores, items, axis=1)
    return Outputs(scores, self.query, None if self.items is None else self.items[items])


class Ranked(NamedTuple):
  """A ranked list, best first. Places without a valid item hold -1 and score -inf."""

  items: Array  # [..., K] int32
  scores: Array  # [..., K]


class View(NamedTuple):
  """The input of a sampler for one user. With rows="items": for one item, and the candidates are users."""

  user: Array  # [] int32
  teacher: Ranked | None  # [lists.teacher] items; [E, lists.teacher] with all_teachers
  student: Ranked | None  # [lists.student] items, as the student ranks them now
  unseen: Array | None  # [lists.unseen] distinct items drawn uniformly, neither seen nor in `teacher`
  epoch: Array  # [] int32, from 0
  previous: Batch  # the fields in `remember`, as this sampler last returned them; initially zeros
  popularity: Array  # [I] int32, number of training interactions of every item
  seen: Array | None = None  # [lists.seen] distinct training items, padded with -1; ascending, or see `lists.first`
  loss: Array | None = None  # [] with `own_loss`: this row's loss when it was last in a batch; initially 0
  weight: Array | float = 1.0  # [] 0 if the user has too few items for these lists, which then hold any items, else 1
  priority: Array | None = None  # [I] int32, a permutation: of items with equal values, the lower one comes first


class Lists(NamedTuple):
  """The lengths of the ranked lists and random draws that a method's sampler needs."""

  teacher: int = 0  # ranked once per run, or read from a soft-label store
  student: int = 0  # ranked again every `every` epochs
  unseen: int = 0  # drawn again before every epoch
  seen: int = 0  # drawn again before every epoch
  exclude_seen: bool = True  # exclude each user's training items from the lists
  every: int = 1
  first: bool = False  # `seen` is not drawn: it holds the first training interactions, in the order of the data


@dataclasses.dataclass(frozen=True)
class KD:
  """A distillation method: pure functions, like optax's GradientTransformation.

  `loss(student, teacher, batch)` returns one value per row, [B]. It never reduces, weights, clips or stops gradients:
  the training loop does this. It may return ([B], {name: [B]}) instead: callbacks and `metrics.jsonl` then receive the
  weighted means of the named values. Methods can be weighted and added: `0.1 * rrd() + kl()`.
  `rows` defines what a row is:

  "users": the distinct users of a batch, because the distillation target depends only on the user. Scores are
    [B, C]; `student.scores[b, c]` and `teacher.scores[b, c]` belong to candidate `batch["items"][b, c]`.
  "items": the same with users and items swapped: rows are the distinct positive items of a batch, candidates are
    users. With `sampled_items`, rows also include the items that user-side methods sampled for this batch.
  "entities": the users of a batch, `batch["users"]` [M], then its items, `batch["items"]` [N], both positives
    and negatives; `student.query` and `teacher.query` [M + N, D] are their representations. With
    `neighbours=k`, `student.items` and `teacher.items` [M + N, n, D] are the representations of their neighbours
    in the co-occurrence graph of users, or of items (`neighbours.py`), and `batch["neighbour_weights"]` [M + N, n]
    holds the entries of its normalised adjacency matrix, 0 for padding.

  `sample(rng, view)` is written for one row and returns target fields. It runs for every user before each epoch; each
  batch then gathers its rows. The field `items` [C] holds the candidates. `teacher` [C], if returned, holds their
  teacher scores; otherwise the live teacher computes them. `weight` [], if returned, multiplies the row's weight.
  Without `sample`, the candidates are all items. `batch["epoch"]` counts from 0.

  On labelled data, users are contexts, items are labels, and there are no seen items. `batch["labels"]` [B, C] marks
  the true candidates. The entities are the contexts only.
  """

  loss: Callable[[Outputs, Outputs, Batch], Any]
  lists: Lists = Lists()
  sample: Callable[[Array, View], Batch] | None = None
  adapter: Any = None  # nn.Module: (student, teacher, batch) -> the student outputs for `loss`
  teacher_scores: bool = True  # does the loss read teacher.scores?
  rows: str = "users"  # or "items", "entities"
  in_batch: bool = False  # compares rows with each other: needs the full batch on every device
  all_teachers: bool = False  # one loss for all teachers, scores [E, B, C], instead of one per teacher
  remember: tuple[str, ...] = ()  # sampled fields, each [], that the next call of `sample` receives
  neighbours: int = 0  # with rows="entities": number of neighbours that each entity chooses
  learner: str = ""  # the network that it trains, "student" or "peer"; empty: all learners
  own_loss: bool = False  # its sampler receives `view.loss`
  sampled_items: bool = False  # with rows="items": rows also include items that user-side methods sampled
  labels: bool = False  # does the loss read batch["labels"] [B, C]? Then the data must be labelled

  def __mul__(self, weight: Weight) -> KDSum:
    return KDSum(((_weight(weight), self),))

  __rmul__ = __mul__

  def __add__(self, other: KD | KDSum) -> KDSum:
    return KDSum(((1.0, self),)) + other


HEAVIEST = 1_000_000  # weight of a method
Weight: TypeAlias = float | Callable[[Any], Any]  # a number, or a function of the epoch (from 0), like optax schedules


@dataclasses.dataclass(frozen=True)
class KDSum:
  """A weighted sum of methods."""

  terms: tuple[tuple[Weight, KD], ...] = ()

  def __mul__(self, weight: Weight) -> KDSum:
    weight = _weight(weight)
    if callable(weight) and any(callable(own) for own, _ in self.terms):
      raise TypeError("a sum that has schedules as weights cannot be weighted by another schedule")

    def times(own):
      return ((lambda epoch: own(epoch) * weight) if callable(own) else
                             (lambda epoch: own * weight(epoch)) if callable(weight) else own * weight)

    return KDSum(tuple((times(own), kd) for own, kd in self.terms))

  __rmul__ = __mul__

  def __add__(self, other: KD | KDSum) -> KDSum:
    if not isinstance(other, KD | KDSum):
      return NotImplemented
    return KDSum(self.terms + (other.terms if isinstance(other, KDSum) else ((1.0, other),)))


def _weight(weight):
  if isinstance(weight, bool) or not (callable(weight) or isinstance(weight, int | float)):
    raise TypeError(f"the weight of a method is a number or a function of the epoch, not {weight!r}")
  if callable(weight):
    return weight
  if not 0 <= weight <= HEAVIEST:
    raise InputError(f"the weight {weight} of a method is not in [0, {HEAVIEST}]")
  return float(weight)


class Objective(NamedTuple):
  """A base loss: it depends on the data only, not on a teacher.

  `loss(outputs, batch, rng)` returns one value per example, [B], from the network's `outputs` for the batch: scores
  [B, C] and, if the network has them, `query` [B, D] and `items` [B, C, D]. In batches of interactions, candidate 0
  is the positive and the others are negatives; `batch["weight"]` [B] is 0 for padding, and for interactions of a user
  who has every item, whose negatives are any items. On labelled data, `batch["labels"]` [B, C] marks the true
  candidates. `rng` is the random key of this step.
  """

  loss: Callable[[Outputs, Batch, Array], Array]
  on: tuple[str, ...] = ("interactions",)  # the supported kinds of data, see `Dataset.kind`
  in_batch: bool = False  # compares examples with each other: needs the full batch on every device
  all_items: bool = False  # needs scores of all items: no negatives are drawn, `batch["items"]` [B, 1] are positives
  of_products: Callable[[Outputs, Batch, Array], Array] | None = None  # the same loss for inner-product models


class HeldOutRanks(NamedTuple):
  """The input of metrics: V evaluated users and the ranks of their M held-out items, sorted by user, then by rank."""

  users: np.ndarray  # [V] indices, ascending
  counts: np.ndarray  # [V] number of held-out items of each user, at least 1
  start: np.ndarray  # [V] position of each user's first item in `items`
  items: np.ndarray  # [M]
  ranks: np.ndarray  # [M] int64, from 0, among all candidates
  nth: np.ndarray  # [M] number of held-out items of the same user with a better rank
  ratings: np.ndarray | None  # [M]
  lists: Ranked | None  # [V, K] the users' top items without training items, if the metric has `lists`
  dataset: Dataset | None  # its sizes, features and `item_popularity()`
  groups: Mapping[str, np.ndarray] | None = None  # {name: [M] bool} popular, unpopular, active, ... held-out items

  def total(self, values: np.ndarray) -> np.ndarray:
    """Sums values [M] over each user's items: [V]."""
    return np.add.reduceat(values, self.start)


class Metric(NamedTuple):
  """A metric of rankings, computed with NumPy in float64.

  `value(found)` returns one value per evaluated user, [V]; the mean is reported. With `per_user=False` it returns one
  number, []. NaN means that a user has no value. Users without held-out items are not evaluated.
  """

  value: Callable[[HeldOutRanks], np.ndarray]
  per_user: bool = True
  higher_is_better: bool = True
  lists: int = 0  # length of the ranked lists that the metric reads; 0: none
  groups: bool = False  # also of the held-out items of each group: of cold items, of active users, ...
  # What it reads of the data: "popularity", "train" in memory, "categories" or "vectors" of items. Such a metric, and
  # one with `lists`, is not computed among sampled candidates.
  needs: tuple[str, ...] = ()


class Compressor(NamedTuple):
  """A way to store the matrices of a trained model in fewer bytes: pure functions on NumPy arrays.

  `pack(matrices, popularity)` receives the float32 matrices by name, {name: [rows, width]}. `popularity` {name: [rows]}
  holds the training interactions of the rows, for those that are tables of users or items. It returns {name: {part:
  array}} of those that it stores otherwise; parts that are float32 matrices are packed by the next compressor of a
  chain.
  `unpack(parts, shape)` returns the matrix with which the compressed model computes.
  """

  pack: Callable[[dict[str, np.ndarray], dict[str, np.ndarray]], dict[str, dict[str, np.ndarray]]]
  unpack: Callable[[dict[str, np.ndarray], tuple[int, ...]], np.ndarray]


class LabelMetric(NamedTuple):
  """A metric of labelled data: `value(labels, scores, groups)` with labels [n, C] bool and scores [n, C] (logits).

  `groups` [n] are the users of the contexts, or None if the data has no users; a metric that needs them then returns
  None.
  """

  value: Callable[[np.ndarray, np.ndarray, np.ndarray | None], float | None]
  on: tuple[str, ...] = ("tags", "clicks")
  higher_is_better: bool = True
  best: float | None = None  # not None: values closer to this one are better, from above and from below


class Progress(NamedTuple):
  """The state of a run in training, as callbacks receive it."""

  workdir: str | None
  info: dict[str, Any]  # about the run, as in run.json
  epochs: int  # maximum number
  epoch: int  # number of completed epochs
  monitor: str  # the metric that chooses the best epoch
  best_epoch: int
  best_value: float | None  # None: before the first validation
  seconds: float  # training time until now
  line: dict[str, Any]  # the last epoch, as in metrics.jsonl: losses, scalars, seconds, metrics; {} at the start
  params: dict[str, Any]  # {learner: parameters} now; of the best epoch at `end`. Copy them: training reuses the memory


class Callback(NamedTuple):
  """Functions that are called during a run; each is optional. With several processes, only the first calls them.

  An exception in a callback ends the run.
  """

  start: Callable[[Progress], None] | None = None  # before the first epoch, and when a run is resumed
  epoch: Callable[[Progress], None] | None = None  # after every epoch
  validation: Callable[[Progress], None] | None = None  # after every validation, before `epoch`
  end: Callable[[Progress], None] | None = None  # when the run has finished, diverged or been stopped


def option(default: Any, help: str, *, least: float | None = None, above: float | None = None,
           most: float | None = None, choices: Sequence[str] = (), factory: str = "", lists: str = "") -> Any:
  """A documented field of a dataclass of options: its default, its help text, and its valid values.

  `least` and `most` (inclusive) and `above` (exclusive) are bounds of numbers; `choices` are the valid words.
  `factory` is the folder whose factories the option can name; --help lists the factories of the folder `lists`.
  """
  bounds = {"least": least, "above": above, "most": most, "choices": tuple(choices), "factory": factory,
            "lists": lists or factory}
  return dataclasses.field(default=default, metadata={"help": help, **bounds})


def check_options(options: Any) -> None:
  """Raises InputError for the first field of a dataclass of options that has an invalid value, or one of another type.
  """
  for field in dataclasses.fields(options):
    _check_type(field.name, getattr(options, field.name), str(field.type).split(" | "))
    check_option(field.name, getattr(options, field.name), field.metadata)


# {annotation: (types, words)}
_TYPES = {"bool": ((bool,), "true or false"), "int": ((int,), "an integer"), "float": ((int, float), "a number"),
          "str": ((str,), "a text"), "os.PathLike": ((os.PathLike,), "a path"), "None": ((type(None),), "None")}


def _check_type(name, value, kinds):
  if not all(kind in _TYPES for kind in kinds):
    return
  if not any(isinstance(value, _TYPES[kind][0]) and (kind == "bool" or not isinstance(value, bool)) for kind in kinds):
    wanted = " or ".join(_TYPES[kind][1] for kind in kinds if kind != "None")
    raise InputError(f"`{name}`: {wanted} is expected, not {type(value).__name__}")


def check_option(name: str, value: Any, bounds: Mapping[str, Any]) -> None:
  """Raises InputError if a number is not finite, or violates the bounds of `option`, and for a text that is no word of
  its choices, or cannot be written."""
  if isinstance(value, str):
    if bounds.get("choices") and value not in bounds["choices"]:
      raise InputError(f"`{name}={value}`: choose from {', '.join(filter(None, bounds['choices']))}")
    if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
      raise InputError(f"`{name}={value}`: has a NUL, or is not a text in UTF-8")
  if isinstance(value, bool) or not isinstance(value, int | float):
    return
  least, above, most = (bounds.get(bound) for bound in ("least", "above", "most"))
  if not abs(value) < float("inf"):
    raise InputError(f"`{name}={value}`: not a finite number")
  if above is not None and not value > above:
    raise InputError(f"`{name}={value}`: must be {f'more than {above}' if above else 'positive'}")
  if least is not None and value < least:
    raise InputError(f"`{name}={value}`: must {f'be at least {least}' if least else 'not be negative'}")
  if most is not None and value > most:
    raise InputError(f"`{name}={_short(value)}`: must be at most {most:,}")


def _short(number) -> str:
  return f"{number:.6g}" if isinstance(number, float) else str(number) if abs(number) < 10**20 else "a huge number"


def parameter_name(path: tuple) -> str:
  """The name of a leaf of a tree of parameters: its keys, joined by "/"."""
  import jax  # here, so that flag parsing stays fast

  return jax.tree_util.keystr(path, simple=True, separator="/")
