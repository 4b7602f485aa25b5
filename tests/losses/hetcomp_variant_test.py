"""HetComp as the public code of RCE-KD has it: `hetcomp(cutoff=k, first=True, together=True)`."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from conftest import bpr

from kd_jax import registry
from kd_jax.base import STUDENT, TEACHER, Interactions, Ranked
from kd_jax.data import index
from kd_jax.losses.hetcomp import hetcomp
from kd_jax.training import graph, kd_targets

USERS, ITEMS, K, PERIOD = 30, 50, 6, 2


def test_first_items_are_those_of_the_first_rows():
  users, items = np.array([1, 0, 1, 1, 0, 1, 3]), np.array([7, 5, 2, 7, 9, 4, 0])
  found = index.first_seen(users, items, 4, 3)
  assert found.tolist() == [[5, 9, -1], [7, 2, 4], [-1, -1, -1], [0, -1, -1]]


def ndcg(student, teacher):
  gain = [(2 ** math.exp(-i / 10) - 1) / math.log2(i + 2) for i in range(K)]
  return sum(g for g, item in zip(gain, student, strict=True) if item in teacher) / sum(gain)


class Replay:
  """The stages of all users, one user after the other."""

  def __init__(self, lists):
    self.lists, self.stage, self.ordered, self.before = lists, np.zeros(USERS, int), False, None

  def away(self, user, student, stage):
    return 1 - ndcg(student[user], self.lists[user][min(stage, 2)])

  def measure(self, epoch, student):
    if epoch % PERIOD or epoch < PERIOD or self.ordered:
      return
    if self.before is None:
      self.before = np.array([self.away(u, student, 1) for u in range(USERS)])
      return
    for u in np.flatnonzero(self.stage < 2):
      ratio = self.before[u] / max(self.away(u, student, self.stage[u] + 1), 1e-12)
      if ratio > 1.05 * 0.995 ** (epoch // PERIOD) or ratio < 1:
        self.stage[u] += 1
        self.before[u] = self.away(u, student, self.stage[u] + 1)
    self.ordered = round(self.stage.mean(), 2) >= 2


def prepared(train, teachers):
  """(run, sources) of one student with three teachers, whose lists of every user are given."""
  module = registry.build("models", registry.Call("mf", (("dim", 3),)), num_users=USERS, num_items=ITEMS)
  kd = hetcomp(k=K, unseen=5, observed=4, period=PERIOD, cutoff=K, first=True, together=True)
  names = tuple(f"{TEACHER}{i}" for i in range(3))
  run = graph.Run(((STUDENT, module), *((name, module) for name in names)), (STUDENT,),
                  tuple((STUDENT, name) for name in names), ((1.0, kd),), bpr(), optax.sgd(0.1), "sum")
  (edge,) = graph.edges(run)
  given = graph.Given({name: {"user": jnp.ones((USERS, 3)), "item": jnp.ones((ITEMS, 3))} for name in names}, {})
  listed = Ranked(teachers.astype(np.int32), np.zeros(teachers.shape, np.float32))
  return run, given, kd_targets.prepare(run, train, given, ranked=({edge.key: listed}, {})), edge.key


def test_stages_loss_and_observed_items_are_those_of_the_public_code(make_dataset):
  rng = np.random.default_rng(3)
  dataset = make_dataset(num_users=USERS, num_items=ITEMS, train=5)
  shuffled = rng.permutation(len(dataset.train.users))
  train = Interactions(dataset.train.users[shuffled], dataset.train.items[shuffled])
  teachers = np.stack([[rng.permutation(ITEMS)[:K] for _ in range(3)] for _ in range(USERS)])
  run, given, sources, key = prepared(dataset._replace(train=train), teachers)
  memory, replay, seen_switch = kd_targets.initial_memory(run, dataset), Replay(teachers), False
  params = {"networks": {STUDENT: given.params[f"{TEACHER}0"]}, "adapters": {}}
  for epoch in range(30):
    student = teachers[np.arange(USERS), replay.stage].copy()
    for u in range(USERS):  # some users do not agree with their teacher at all
      if u % 3 or epoch < 4:
        student[u] = rng.permutation(ITEMS)[:K] if u % 2 else (student[u] + 1 + u) % ITEMS
    lists = kd_targets.Lists({key: Ranked(jnp.asarray(student, jnp.int32), jnp.zeros((USERS, K)))}, {})
    fields = kd_targets.targets(jax.random.key(epoch), params, given, sources, lists, memory, jnp.int32(epoch),
                                run=run)[key]
    replay.measure(epoch, student)
    assert np.array_equal(fields["stage"], replay.stage)
    assert (np.asarray(fields["ordered"]) == replay.ordered).all()
    seen_switch |= bool(replay.ordered) and epoch > 6
    memory = {key: {name: fields[name] for name in ("stage", "distance")}}
  assert seen_switch
  for u in range(USERS):
    mine = train.items[train.users == u][:4]
    assert np.asarray(fields["items"])[u, K + 5 : K + 9][: len(mine)].tolist() == mine.tolist()
    assert np.asarray(fields["observed"])[u].sum() == len(mine)
