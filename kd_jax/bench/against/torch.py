"""The work of a run in plain PyTorch, written as one would write it well: vectorised, dense Adam in one pass.

Users and items are rows of one table [U + I, D], items after users, so that a step gathers once and Adam updates one
tensor. Items not seen are counted, not rejected. Lists, samples and the teacher's scores are made once an epoch.
"""

from __future__ import annotations

import ast
import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from kd_jax import registry
from kd_jax.base import Dataset, InputError, Interactions
from kd_jax.bench import interleave
from kd_jax.evaluation import metric_names, protocols

_USERS = 64  # scored against all items at a time
_TEACHER_USERS = 32  # whose candidates the teacher scores at a time
_CUTOFFS = (5, 10, 20, 50)
_WARM_SECONDS = 30
Tensor = torch.Tensor


class Seen(NamedTuple):
  """Items of each user, ascending."""

  starts: Tensor  # [U + 1]
  items: Tensor  # [N]
  keys: Tensor  # [N], ascending: user * I + how many items before this one the user has not seen
  num_items: int


def seen_of(users: np.ndarray, items: np.ndarray, num_users: int, num_items: int) -> Seen:
  """Indexes interactions [N]."""
  pairs = np.unique(users.astype(np.int64) * num_items + items)
  starts = np.searchsorted(pairs, np.arange(num_users + 1) * num_items)
  place = np.arange(len(pairs)) - starts[pairs // num_items]
  return Seen(*map(torch.from_numpy, (starts, pairs % num_items, pairs - place)), num_items)


def draw_unseen(seen: Seen, users: Tensor, uniform: Tensor) -> Tensor:
  """Uniform items that `users` have not seen, one for each of `uniform` in [0, 1), of one shape."""
  absent = seen.num_items - (seen.starts[users + 1] - seen.starts[users])
  n = (uniform * absent).long()
  return n + torch.searchsorted(seen.keys, users * seen.num_items + n, right=True) - seen.starts[users]


class _Propagate(torch.autograd.Function):
  """A x for a symmetric sparse A: its gradient is the same product."""

  @staticmethod
  def forward(ctx, adjacency, x):
    ctx.adjacency = adjacency
    return adjacency @ x

  @staticmethod
  def backward(ctx, gradient):
    return None, ctx.adjacency @ gradient


def adjacency(dataset: Dataset) -> Tensor:
  """The normalised adjacency matrix of LightGCN [U + I, U + I], sparse by rows."""
  users, items = (torch.from_numpy(x.astype(np.int64)) for x in dataset.train[:2])
  rows, columns = torch.cat([users, items + dataset.num_users]), torch.cat([items + dataset.num_users, users])
  nodes = dataset.num_users + dataset.num_items
  scale = torch.bincount(rows, minlength=nodes).rsqrt()
  values = scale[rows] * scale[columns]
  return torch.sparse_coo_tensor(torch.stack([rows, columns]), values, (nodes, nodes)).to_sparse_csr()


def lightgcn(table: Tensor, graph: Tensor, layers: int) -> Tensor:
  """The mean of `table` and its `layers` propagations."""
  x = total = table
  for _ in range(layers):
    x = _Propagate.apply(graph, x)
    total = total + x
  return total / (layers + 1)


def bpr(nodes: Tensor, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
  """Losses [B]; all three index rows of `nodes`."""
  user, positive, negative = functional.embedding(torch.stack([users, positives, negatives]), nodes)
  return functional.softplus((user * (negative - positive)).sum(1))


def scores_of(nodes: Tensor, users: Tensor, items: Tensor) -> Tensor:
  """Scores [M, C] of users [M] and items [M, C], both rows of `nodes`."""
  return (functional.embedding(items, nodes) @ functional.embedding(users, nodes)[:, :, None]).squeeze(2)


def top_k(user: Tensor, item: Tensor, k: int, seen: Seen | None = None) -> Tensor:
  """The k best items of every user [U, k], without those seen."""
  blocks = []
  for start in range(0, len(user), _USERS):
    scores = user[start : start + _USERS] @ item.T
    if seen is not None:
      _mask(scores, seen, torch.arange(start, start + len(scores)))
    blocks.append(scores.topk(k).indices)
  return torch.cat(blocks)


def _mask(scores, seen, users):
  """Sets scores [b, I] of what `users` [b], in a row, have seen to -inf."""
  first, last = seen.starts[users[0]], seen.starts[users[-1] + 1]
  rows = torch.repeat_interleave(seen.starts[users + 1] - seen.starts[users])
  scores[rows, seen.items[first:last]] = -torch.inf


def ranks(user: Tensor, item: Tensor, held: Seen, seen: Seen) -> Tensor:
  """Ranks (from 0) [M] of held-out items among those not seen."""
  found = torch.empty(len(held.items), dtype=torch.int64)
  for start in range(0, len(user), _USERS):
    users = torch.arange(start, min(start + _USERS, len(user)))
    scores = user[users] @ item.T
    _mask(scores, seen, users)
    counts = held.starts[users + 1] - held.starts[users]
    for n in range(int(counts.max())):  # the n-th held-out item of every user that has so many
      rows = torch.nonzero(counts > n).squeeze(1)
      place = held.starts[users[rows]] + n
      own = scores[rows, held.items[place]]
      found[place] = (scores[rows] > own[:, None]).sum(1, dtype=torch.int32).long()
  return found


class Rrd:
  """Relaxed ranking distillation."""

  def __init__(self, lists: Tensor, seen: Seen, k: int, uninteresting: int, temperature: float):
    self.lists, self.k, self.uninteresting = lists, k, uninteresting
    self.weights = torch.exp(-torch.arange(1, lists.shape[1] + 1) / temperature)
    users = torch.arange(len(lists))
    rows = torch.cat([users.repeat_interleave(seen.starts.diff()), users.repeat_interleave(lists.shape[1])])
    self.excluded = seen_of(rows.numpy(), torch.cat([seen.items, lists.flatten()]).numpy(), len(lists), seen.num_items)

  def targets(self, user: Tensor, item: Tensor) -> tuple[Tensor, ...]:
    """Candidates [U, C] of an epoch."""
    ranks = torch.multinomial(self.weights.expand(len(self.lists), -1), self.k).sort(1).values
    place = torch.arange(self.uninteresting) + torch.rand(len(self.lists), 1, dtype=torch.float64)
    rows = torch.arange(len(self.lists))[:, None].expand(place.shape)
    unseen = draw_unseen(self.excluded, rows, (place / self.uninteresting).clamp(max=1 - 1e-12))
    return (torch.cat([self.lists.gather(1, ranks), unseen], dim=1),)

  def loss(self, scores: Tensor) -> Tensor:
    """Losses [M] of scores [M, C]."""
    own = scores[:, : self.k]
    rest = scores[:, self.k :].logsumexp(1, keepdim=True)
    return torch.logcumsumexp(torch.cat([rest, own.flip(1)], 1), 1)[:, 1:].sum(1) - own.sum(1)


class Rcekd:
  """Rejuvenated cross-entropy for knowledge distillation."""

  def __init__(self, lists: Tensor, teacher: tuple[Tensor, Tensor], depth: int, sampled: int,
               temperature: float, sampling_temperature: float, beta: float):
    self.lists, self.teacher, self.depth, self.sampled = lists, teacher, depth, sampled
    self.temperature, self.sampling_temperature, self.beta = temperature, sampling_temperature, beta

  def targets(self, user: Tensor, item: Tensor) -> tuple[Tensor, ...]:
    """Candidates [U, C], the teacher's scores of them, which of its own count, and the share that was drawn."""
    k, listed = self.lists.shape[1], top_k(user, item, self.depth)
    marks = torch.zeros(len(user), len(item), dtype=torch.bool)
    below = marks.scatter_(1, self.lists, True).gather(1, listed).flip(1).cumsum(1).flip(1)
    weights = torch.exp((below.clamp(max=50) + 1) / self.sampling_temperature)
    drawn = listed.gather(1, torch.multinomial(weights, self.sampled))
    in_drawn = marks.zero_().scatter_(1, drawn, True).gather(1, self.lists)
    fresh = ~marks.scatter_(1, listed[:, :k], True).gather(1, self.lists)
    items = torch.cat([listed[:, :k], drawn, self.lists], 1)
    return items, self._teacher_scores(items), fresh, in_drawn.float().mean(1)

  def _teacher_scores(self, items):
    blocks = zip(self.teacher[0].split(_TEACHER_USERS), items.split(_TEACHER_USERS), strict=True)
    return torch.cat([(functional.embedding(i, self.teacher[1]) @ u[:, :, None]).squeeze(2) for u, i in blocks])

  def loss(self, scores: Tensor, teacher: Tensor, fresh: Tensor, shared: Tensor) -> Tensor:
    """Losses [M] of scores [M, C]."""
    k, s, t = self.lists.shape[1], scores / self.temperature, teacher / self.temperature
    counted = torch.cat([torch.ones(len(s), self.sampled, dtype=torch.bool), fresh], 1)
    g = torch.exp(-self.beta * shared)
    first = -(t[:, :k].softmax(1) * s[:, :k].log_softmax(1)).sum(1)
    s, t = (x[:, k:].masked_fill(~counted, -torch.inf) for x in (s, t))
    return (1 - g) * first - g * (t.softmax(1) * s.log_softmax(1).masked_fill(~counted, 0)).sum(1)


_METHODS = ("rrd", "rcekd")


class Student:
  """A student that learns: `table` [U + I, D]; `layers` propagations for LightGCN, 0 for matrix factorisation."""

  def __init__(self, dataset: Dataset, model: str):
    arguments = arguments_of("models", model)
    if model.partition("(")[0] not in ("mf", "lightgcn"):
      raise InputError(f"--model={model}: in PyTorch there are mf and lightgcn")
    self.num_users, self.layers = dataset.num_users, arguments.get("layers", 0)
    self.graph = adjacency(dataset) if self.layers else None
    self.table = torch.randn(dataset.num_users + dataset.num_items, arguments["dim"]) * arguments["init_std"]
    self.table.requires_grad_()
    self.optimizer = torch.optim.Adam([self.table], 1e-3, weight_decay=1e-5, fused=True)

  def nodes(self) -> Tensor:
    return lightgcn(self.table, self.graph, self.layers) if self.layers else self.table

  @torch.no_grad()
  def split(self) -> tuple[Tensor, Tensor]:
    """Vectors of users and of items."""
    nodes = self.nodes()
    return nodes[: self.num_users], nodes[self.num_users :]


def arguments_of(package: str, text: str) -> dict:
  """The arguments of a call, defaults filled in."""
  call = registry.parse(package, text, package)
  defaults = {k: ast.literal_eval(v.default) for k, v in registry.signature(package, call.name).items() if v.default}
  return defaults | dict(call.arguments)


def train_epoch(student: Student, log: tuple[Tensor, Tensor], seen: Seen, batch_size: int, method=None) -> float:
  """One epoch, with targets drawn before; the seconds of drawing."""
  start = time.perf_counter()
  order = torch.randperm(len(log[0]))
  users, positives = (x[order] for x in log)
  negatives = draw_unseen(seen, users, torch.rand(len(users), dtype=torch.float64))
  targets = method.targets(*student.split()) if method else ()
  drawing = time.perf_counter() - start
  for u, i, j in zip(*(x.split(batch_size) for x in (users, positives, negatives)), strict=True):
    student.optimizer.zero_grad()
    nodes = student.nodes()
    loss = bpr(nodes, u, i + student.num_users, j + student.num_users).sum()
    if method:
      who, count = torch.unique(u, return_counts=True)
      items, *others = (x[who] for x in targets)
      loss = loss + (count * method.loss(scores_of(nodes, who, items + student.num_users), *others)).sum()
    loss.backward()
    student.optimizer.step()
  return drawing


def works(dataset: Dataset, settings: interleave.Settings) -> dict[str, Callable[[], interleave.Repeat]]:
  """{name: function that sets up a task}: those tasks of `bench.epoch` that this file has in PyTorch."""
  torch.set_num_threads(interleave.cores())
  log = tuple(torch.from_numpy(x.astype(np.int64)) for x in dataset.train[:2])
  seen = seen_of(*dataset.train[:2], dataset.num_users, dataset.num_items)
  held = dataset.validation
  layout = seen_of(held.users, held.items, dataset.num_users, dataset.num_items)

  @functools.cache
  def learned():
    student, deadline = Student(dataset, settings.model), time.perf_counter() + _WARM_SECONDS
    for _ in range(settings.warmup):
      if time.perf_counter() < deadline:
        train_epoch(student, log, seen, settings.batch_size)
    return student

  def evaluation():
    student = learned()
    held_users = torch.arange(dataset.num_users).repeat_interleave(layout.starts.diff()).numpy()
    metrics = metric_names.usual("interactions", _CUTOFFS)
    by_user = Interactions(held_users, layout.items.numpy())

    def found():
      return protocols.Ranks(by_user, ranks(*student.split(), layout, seen).numpy(), {}, None, 0, None)

    return lambda: protocols.values(found(), metrics, dataset) and {}

  def epoch(kd):
    student = learned()
    method = _method(kd, dataset, seen, settings.teacher_model) if kd else None
    return lambda: {"drawing": train_epoch(student, log, seen, settings.batch_size, method)}

  known = [kd for kd in settings.kds if kd.partition("(")[0] in _METHODS]
  prepared = {"evaluation": evaluation} | {
      f"epoch {kd or 'plain'}": functools.partial(epoch, kd) for kd in ("", *known)}
  return {name: functools.partial(interleave.timed, prepare) for name, prepare in prepared.items()}


def _method(kd, dataset, seen, teacher_model):
  """A method with an untrained teacher's lists."""
  arguments, dim = arguments_of("losses", kd), arguments_of("models", teacher_model)["dim"]
  user, item = torch.randn(dataset.num_users, dim), torch.randn(dataset.num_items, dim)
  if kd.startswith("rrd"):
    lists = top_k(user, item, arguments.pop("depth"), seen)
    return Rrd(lists, seen, **arguments)
  return Rcekd(top_k(user, item, arguments.pop("k")), (user, item), **arguments)


def machine() -> dict[str, str]:
  """What does the work."""
  return {"torch": torch.__version__}
