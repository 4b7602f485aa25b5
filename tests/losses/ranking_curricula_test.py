"""Curricula, weights of positions, and how methods that distil rankings relate to each other."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.base import ROWS, InputError, Outputs, Ranked, View
from kd_jax.losses.bce import bce
from kd_jax.losses.bd import bd
from kd_jax.losses.cd import cd
from kd_jax.losses.dcd import dcd
from kd_jax.losses.dllm2rec import dllm2rec
from kd_jax.losses.ensemble import ensemble
from kd_jax.losses.gated import gated
from kd_jax.losses.hetcomp import hetcomp, overlap
from kd_jax.losses.kl import kl
from kd_jax.losses.listnet import listnet
from kd_jax.losses.mse import mse
from kd_jax.losses.rd import rd


def sigmoid(x):
  return 1 / (1 + math.exp(-x))


def view_of(teacher=None, student=None, unseen=None, popularity=None, epoch=0, previous=None):
  def as_list(x):
    return None if x is None else Ranked(jnp.asarray(x, jnp.int32), -jnp.arange(np.shape(x)[-1]) * 1.0)

  def one(x):
    return None if x is None else jnp.asarray(x, jnp.int32)

  return View(jnp.int32(0), as_list(teacher), as_list(student), one(unseen), jnp.int32(epoch), previous or {},
              one(popularity), priority=None if popularity is None else jnp.arange(len(popularity)))


def overlap_reference(student, teacher):
  gain = [(2 ** math.exp(-i / 10) - 1) / math.log2(i + 2) for i in range(len(student))]
  return sum(g for g, item in zip(gain, student, strict=True) if item in teacher) / sum(gain)


def test_hetcomps_discrepancy():
  rng = np.random.default_rng(0)
  for _ in range(5):
    student, teacher = rng.permutation(30)[:12], rng.permutation(30)[:12]
    assert float(overlap(jnp.array(student), jnp.array(teacher))) == pytest.approx(
        overlap_reference(student.tolist(), teacher.tolist()), rel=1e-5)
  assert float(overlap(jnp.arange(9), jnp.arange(9))) == pytest.approx(1)


@pytest.mark.parametrize("cutoff", [0, 10])
def test_hetcomp_moves_through_the_curriculum_as_the_published_procedure(cutoff):
  """60 epochs of a student that comes nearer to the teachers, replayed with loops and plain numbers."""
  k, period, threshold = 10, 5, 1.05
  rng = np.random.default_rng(1)
  teachers = np.stack([rng.permutation(40)[:k] for _ in range(4)])
  kd = hetcomp(k=k, unseen=5, observed=3, period=period, threshold=threshold, cutoff=cutoff)
  cutoff = cutoff or k // 2
  stage, distance, student = 0, 0.0, rng.permutation(40)[:k]
  previous, stages = {"stage": jnp.int32(0), "distance": jnp.float32(0)}, []
  sample = jax.jit(kd.sample)
  for epoch in range(60):
    if epoch % period == 0:  # the student's list is of that epoch
      goal = teachers[min(stage + 1, 3)] if rng.random() < 0.7 else rng.permutation(40)
      student = np.array([*goal[: rng.integers(0, k)], *[i for i in student if i not in goal], *goal])
      student = student[np.sort(np.unique(student, return_index=True)[1])][:k]

      def away(v, s=student):
        return 1 - overlap_reference(s[:cutoff].tolist(), teachers[min(v, 3)][:cutoff].tolist())

      if epoch == period:
        distance = away(1)
      elif epoch > period and stage < 3:
        ratio = distance / away(stage + 1) if away(stage + 1) else math.inf
        if ratio > threshold * 0.995 ** (epoch // period) or ratio < 1:
          stage += 1
          distance = away(stage + 1)
    view = view_of(teachers, student, np.arange(5), np.ones(40), epoch, previous)
    found = sample(jax.random.key(0), view._replace(seen=jnp.array([30, 31, -1])))
    previous = {"stage": found["stage"], "distance": found["distance"]}
    assert int(found["stage"]) == stage and float(found["distance"]) == pytest.approx(distance, abs=1e-5)
    assert found["items"][:k].tolist() == teachers[stage].tolist()
    assert found["items"][k + 5 : k + 8].tolist() == [30, 31, 0]
    assert found["observed"].tolist() == [True, True, False]
    elsewhere = found["items"][k + 8 :][found["counted"]].tolist()
    assert sorted(elsewhere) == sorted(set(teachers.flatten().tolist()) - set(teachers[stage].tolist()))
    assert bool(found["ordered"]) == (stage == 3)
    stages.append(stage)
  assert stages[0] == 0 and stages[-1] == 3 and len(set(stages)) == 4


def test_hetcomp_changes_to_the_order_for_all_users_at_once():
  """200 users, two stages. 198 of them at the last stage are .99, which is not the last one; 199 are, as .995 is 1."""
  kd = hetcomp(k=4, unseen=2, observed=1, period=5, together=True)
  lists = np.stack([np.arange(4), np.arange(4, 8)])
  sample = jax.jit(jax.vmap(kd.sample, in_axes=(None, 0), axis_name=ROWS))

  def at(stages, epoch, student=(20, 21, 22, 23)):
    previous = {"stage": jnp.asarray(stages), "distance": jnp.full(len(stages), 0.5)}
    views = [view_of(lists, student, (30, 31), np.ones(40), epoch)] * len(stages)
    views = jax.tree.map(lambda *x: jnp.stack(x), *views)._replace(previous=previous, seen=jnp.full((200, 1), 9))
    return sample(jax.random.key(0), views)

  last, first = np.ones(200, np.int32), np.arange(200)
  assert not at(last - (first < 2), 3)["ordered"].any() and at(last - (first < 1), 3)["ordered"].all()
  moved = at(last - (first < 2), 10)  # d_0 / d = .5 / 1 < 1: both move, and all users learn the order
  assert moved["stage"].all() and moved["ordered"].all()
  stays = at(last - (first < 1), 10)  # all users learn the order already
  assert stays["stage"].tolist() == (last - (first < 1)).tolist() and stays["ordered"].all()


def test_dllm2recs_weights_by_hand():
  kd = dllm2rec(k=2)
  teacher = Ranked(jnp.array([4, 7]), jnp.array([math.log(3), 0.0]))
  view = view_of(student=[7, 1], unseen=[9])._replace(teacher=teacher)
  first = 0.3 / (1 + math.exp(-1)) + 0.5 * 0.75
  second = 0.3 / (1 + math.e) + 0.5 * 0.25 + 0.1
  found = kd.sample(jax.random.key(0), view)
  assert found["importance"].tolist() == pytest.approx([first / (first + second), second / (first + second)], rel=1e-5)
  assert found["items"].tolist() == [4, 7, 9]


def test_rds_discrepancy_of_what_the_student_ranks_first_is_zero():
  kd = rd(k=2, dynamic_samples=3)
  fields = {"num_items": jnp.array([100.0]), "epoch": 10}
  scores = jnp.array([[5.0, -5.0, 0.0, 0.0, 0.0]])  # the second is below all random items
  assert float(kd.loss(Outputs(scores), Outputs(None), fields)[0]) == pytest.approx(-math.log(sigmoid(-5)), rel=1e-5)
  satisfied = jnp.array([[5.0, 5.0, 0.0, 0.0, 0.0]])
  gradient = jax.grad(lambda s: kd.loss(Outputs(s), Outputs(None), fields).sum())(satisfied)
  assert np.isfinite(gradient).all() and not np.any(gradient)


# Relations between methods


def candidates_of(k=6):
  rng = np.random.default_rng(4)
  return jnp.asarray(rng.normal(size=(2, k)), jnp.float32), jnp.asarray(rng.normal(size=(3, 2, k)), jnp.float32)


def test_listnet_is_kl_plus_the_teachers_entropy():
  s, t = candidates_of()

  def slope(kd):
    return jax.grad(lambda x: kd.loss(Outputs(x), Outputs(t[0]), {}).sum())(s)

  np.testing.assert_allclose(slope(listnet(temperature=2.0)) * 4, slope(kl(temperature=2.0)), rtol=1e-5, atol=1e-7)


def test_an_ensemble_of_one_is_kl_and_of_equals_too():
  s, t = candidates_of()
  alone = kl(temperature=2.0).loss(Outputs(s), Outputs(t[0]), {})
  for times in (1, 3):
    found = ensemble(temperature=2.0).loss(Outputs(s), Outputs(jnp.stack([t[0]] * times)), {})
    np.testing.assert_allclose(found, alone, rtol=1e-5)


def test_the_gate_starts_as_the_mean_and_learns_which_teacher_agrees():
  s, t = candidates_of()
  kd = gated()
  params = kd.adapter.init(jax.random.key(0), Outputs(s), Outputs(t), {})["params"]

  def total(params, teachers=t):
    return kd.loss(kd.adapter.apply({"params": params}, Outputs(s), Outputs(teachers), {}), Outputs(teachers), {}).sum()

  target = jnp.mean(jax.nn.sigmoid(t), axis=0)
  np.testing.assert_allclose(total(params), bce().loss(Outputs(s), Outputs(jnp.log(target / (1 - target))), {}).sum(),
                             rtol=1e-5)
  liked, disliked = jnp.full_like(s, 3.0), jnp.full_like(s, -3.0)
  agrees = jnp.stack([jnp.where(s > 0, liked, disliked), jnp.where(s > 0, disliked, liked), jnp.zeros_like(s)])
  gradient = jax.grad(lambda p: total(p, agrees))(params)
  assert gradient["bias"][0, 0, 0] < gradient["bias"][2, 0, 0] < gradient["bias"][1, 0, 0]


def test_an_item_of_two_teachers_lists_counts_once():
  view = view_of(np.array([[1, 2, 3], [3, 1, 4]]))
  for factory in (ensemble, gated):
    fields = factory(k=3).sample(jax.random.key(0), view)
    assert fields["items"].tolist() == [1, 2, 3, 3, 1, 4]
    assert fields["counted"].tolist() == [True, True, True, False, False, True]


@pytest.mark.parametrize(("factory", "options"), [(cd, {"guide": "both"}), (dcd, {"side": "left"}),
                                                   (mse, {"candidates": "some"}), (ensemble, {"candidates": "all"}),
                                                   (bd, {"learner": "teacher"})])
def test_words_that_are_no_choice_are_refused(factory, options):
  with pytest.raises(InputError, match="choose from"):
    factory(**options)
