"""The section on temperatures in docs/methods.md is complete and says what the losses do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import registry
from kd_jax.base import Outputs
from kd_jax.tables import methods_page
from kd_jax.tables.methods_page import BOTH, BOTH_SCALED, DRAWS, GATE, TEACHER_ONLY, TEMPERATURES

ROWS, CANDIDATES = 4, 6


def of_kind(*kinds):
  return [(name, argument) for argument, methods in TEMPERATURES.items() for name, does in methods.items()
          if does in kinds]


def gradient(name, argument, temperature):
  """To the student's scores, of lists of candidates; the rest of the fields is of no account."""
  rng = np.random.default_rng(0)
  lists = {"rcekd": {"k": 2, "sampled": 2}}.get(name, {})
  kd = registry.build("losses", registry.Call(name, tuple({argument: temperature, **lists}.items())))
  student, teacher = (jnp.asarray(rng.normal(size=(ROWS, CANDIDATES)), jnp.float32) for _ in range(2))
  teacher = jnp.stack([teacher, teacher]) if kd.all_teachers else teacher
  fields = {"shared": jnp.full(ROWS, 0.1), "fresh": jnp.ones((ROWS, 2), bool), "labels": jnp.ones((ROWS, CANDIDATES))}

  def loss(scores):
    outputs = Outputs(scores)
    if kd.adapter is not None:
      params = kd.adapter.init(jax.random.key(0), outputs, Outputs(teacher), fields)
      outputs = kd.adapter.apply(params, outputs, Outputs(teacher), fields)
    return kd.loss(outputs, Outputs(teacher), fields).sum()

  return np.asarray(jax.grad(loss)(student))


def test_every_temperature_of_a_method_is_in_the_table():
  own = {(name, argument) for name in registry.names("losses") for argument in registry.signature("losses", name)
         if "temperature" in argument or argument == "softness"}
  assert own == set(of_kind(BOTH_SCALED, BOTH, TEACHER_ONLY, DRAWS, GATE))


@pytest.mark.parametrize(("name", "argument"), of_kind(BOTH_SCALED, BOTH))
def test_gradients_keep_their_scale_or_fall_by_the_square(name, argument):
  low, high = (np.abs(gradient(name, argument, t)).sum() for t in (100.0, 200.0))
  expected = 1 if TEMPERATURES[argument][name] == BOTH_SCALED else 1 / 4
  assert high / low == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("name", "argument"), of_kind(TEACHER_ONLY))
def test_a_temperature_of_the_teacher_leaves_the_gradients_scale(name, argument):
  low, high, highest = (gradient(name, argument, t) for t in (1.0, 100.0, 200.0))
  np.testing.assert_allclose(high, highest, rtol=0.05, atol=0.01 * np.abs(high).max())
  assert np.abs(low - high).max() > 0.02 * np.abs(high).max()


@pytest.mark.parametrize(("name", "argument"), of_kind(DRAWS))
def test_a_temperature_of_draws_is_not_in_the_loss(name, argument):
  other = {"cd": {"sampled": CANDIDATES}, "unkd": {"pairs": 3}, "rcekd": {"k": 2, "sampled": 2}}.get(name, {"k": 2})
  rng = np.random.default_rng(0)
  student, teacher = (Outputs(jnp.asarray(rng.normal(size=(ROWS, CANDIDATES)), jnp.float32)) for _ in range(2))
  fields = {"shared": jnp.full(ROWS, 0.1), "fresh": jnp.ones((ROWS, 2), bool)}
  found = [registry.build("losses", registry.Call(name, tuple((other | {argument: t}).items()))).loss(
      student, teacher, fields) for t in (1.0, 5.0)]
  assert np.array_equal(*found)


def test_the_page_names_every_method_once_per_temperature():
  page = methods_page.write().split("## Temperatures")[1].split("## bce")[0]
  assert page.count("`") == 2 * len(of_kind(BOTH_SCALED, BOTH, TEACHER_ONLY, DRAWS, GATE))
  assert "**no T^2**" in page
