"""The types that every part of kd_jax speaks.

Shape letters used everywhere: B batch, C candidates, K listed items, D width, U users, I items,
N interactions, S steps of an epoch, T held-out items of a user.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = Any  # jax.Array or np.ndarray; not imported here, so that flag parsing stays fast.
Batch = dict[str, Array]
TEACHER, STUDENT, PEER = "teacher", "student", "peer"  # the networks of a run


class InputError(ValueError):
  """Something the user gave is wrong: scripts print its one line and exit with status 2."""


class Interactions(NamedTuple):
  """Columns of an interaction log, indices already mapped to 0..U-1 and 0..I-1."""

  users: np.ndarray  # [N] int32
  items: np.ndarray  # [N] int32
  ratings: np.ndarray | None = None  # [N] float32
  timestamps: np.ndarray | None = None  # [N] int64, seconds


class Features(NamedTuple):
  """What is known of each of E users (or contexts, or items) beside the interactions."""

  fields: tuple[str, ...] = ()  # [F] names of categorical fields
  sizes: tuple[int, ...] = ()  # [F] how many values each has
  categories: np.ndarray | None = None  # [E, F] int32, 0 <= categories[:, f] < sizes[f]
  vectors: dict[str, np.ndarray] = {}  # noqa: RUF012 {name: [E, D] float32}, e.g. of a text; zeros: not known


class FeatureSpec(NamedTuple):
  """What kinds of features there are, without their values: hashable, given to factories of models."""

  fields: tuple[str, ...]  # names of categorical fields
  sizes: tuple[int, ...]  # how many values each has
  vectors: tuple[tuple[str, int], ...]  # (name, width)


class Dataset(NamedTuple):
  """A prepared data set. `test` is None unless it was asked for.

  Labelled data (tags, clicks) is the same: users are contexts (a review, an impression), items are labels,
  interactions the positive labels. `contexts` then says which contexts a split has; what of theirs is no
  interaction is a label 0, and nothing is drawn as negative.
  """

  name: str  # the call that makes it, in canonical form
  num_users: int
  num_items: int
  train: Interactions
  validation: Interactions
  test: Interactions | None
  user_ids: np.ndarray  # [U] str, the ids of the source
  item_ids: np.ndarray  # [I] str
  hashes: dict[str, str]  # sha256 of "train", "validation", "test", "user_ids", "item_ids"
  report: dict[str, Any]  # what cleaning and splitting did, and the audit
  synthetic: bool = False  # generated: no result on it says anything about people
  user_features: Features | None = None
  item_features: Features | None = None
  contexts: dict[str, np.ndarray] | None = None  # labelled data: {split: [n] int32, indices of users}
  stream: Any = None  # a data.streams.Stream: interactions stay on disk, and the splits here are empty
  popularity: np.ndarray | None = None  # [I] training interactions of every item, where `train` has only some of them


class Outputs(NamedTuple):
  """What a network says of B contexts and C candidates each."""

  scores: Array  # [B, C], higher is better
  query: Array | None = None  # [B, D] representation of the context
  items: Array | None = None  # [B, C, D] (or [C, D], all items) representations of the candidates

  def of(self, items: Array | None) -> Outputs:
    """What outputs for all candidates say of `items` [B, C]; all of it where that is None."""
    import jax.numpy as jnp  # here, so that flag parsing stays fast

    if items is None:
      return self
    scores = jnp.take_along_axis(self.scores, items, axis=1)
    return Outputs(scores, self.query, None if self.items is None else self.items[items])


class Ranked(NamedTuple):
  """A ranked list, best first; -1 and -inf where fewer than K items qualify."""

  items: Array  # [..., K] int32
  scores: Array  # [..., K]


class View(NamedTuple):
  """What a sampler sees of one user (of one item, its users being the candidates, with rows="items")."""

  user: Array  # [] int32
  teacher: Ranked | None  # [lists.teacher] items; [E, lists.teacher] with all_teachers
  student: Ranked | None  # [lists.student] items, as the student ranks them now
  unseen: Array | None  # [lists.unseen] distinct uniform items, neither seen nor in `teacher`
  epoch: Array  # [] int32, from 0
  previous: Batch  # the fields named by `remember` as this sampler returned them last; zeros at first
  popularity: Array  # [I] int32, training interactions of every item
  seen: Array | None = None  # [lists.seen] distinct training items of the user, ascending; -1 where it has fewer


class Lists(NamedTuple):
  """The ranked lists and draws that a method's sampler needs, by their lengths."""

  teacher: int = 0  # ranked once per run; a soft-label store holds exactly these
  student: int = 0  # ranked afresh every `every` epochs
  unseen: int = 0  # drawn afresh before every epoch
  seen: int = 0  # as well
  exclude_seen: bool = True  # leave each user's training items out of the lists
  every: int = 1


class KD(NamedTuple):
  """A distillation method: pure functions, as optax's GradientTransformation is.

  `loss(student, teacher, batch)` returns one value per row, [B], and never reduces, weights, clips or
  stops gradients: the frame does. What a row is, `rows` says:

  "users": the distinct users of a batch, since what is distilled depends on the user alone. Scores are
    [B, C]; `student.scores[b, c]` and `teacher.scores[b, c]` speak of candidate `batch["items"][b, c]`.
  "items": the same with the sides swapped: rows are the distinct positive items of a batch, candidates are
    users. With `sampled_items`, what methods on users sampled for its users is among the rows.
  "entities": the users of a batch, `batch["users"]` [M], then its items, `batch["items"]` [N], positives
    and negatives; `student.query` and `teacher.query` [M + N, D] are their representations. With
    `neighbours=k`, `student.items` and `teacher.items` [M + N, n, D] are those of their neighbours in the
    graph of users, or of items, that occur together (`neighbours.py`), and `batch["neighbour_weights"]`
    [M + N, n] the entries of its normalised adjacency matrix, 0 for padding.

  `sample(rng, view)` is written for one row and returns target fields; the frame runs it for every
  user before each epoch and gathers the rows of a batch. The field `items` [C] names the candidates;
  `teacher` [C], where given, their teacher scores (else the frame asks the live teacher); `weight` [],
  where given, multiplies the row's weight. Without `sample` the candidates are all items. `batch["epoch"]`
  counts from 0.

  On labelled data users are contexts, items labels, and nothing is seen; `batch["labels"]` [B, C] says which
  candidates are true; entities are contexts alone.
  """

  loss: Callable[[Outputs, Outputs, Batch], Array]
  lists: Lists = Lists()
  sample: Callable[[Array, View], Batch] | None = None
  adapter: Any = None  # nn.Module: (student, teacher, batch) -> what `loss` gets as student
  teacher_scores: bool = True  # does the loss read teacher.scores?
  rows: str = "users"  # or "items", "entities"
  in_batch: bool = False  # compares rows with each other: needs the whole batch, not a device's share
  all_teachers: bool = False  # one loss for all teachers, their scores [E, B, C], instead of one for each
  remember: tuple[str, ...] = ()  # sampled fields that the next sampling sees, [] each
  neighbours: int = 0  # with rows="entities": how many each entity chooses
  learner: str = ""  # who learns by it, "student" or "peer"; every learner if empty
  sampled_items: bool = False  # with rows="items": of the items too that methods on users sampled for its users
  labels: bool = False  # does the loss read batch["labels"] [B, C]? Then the data must be labelled


def parameter_name(path: tuple) -> str:
  """The name of a leaf of a tree of parameters: its keys, joined by "/"."""
  import jax  # here, so that flag parsing stays fast

  return jax.tree_util.keystr(path, simple=True, separator="/")
