"""What methods with experts share: the gate, its temperature, the numbers of entities in their noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from representation_methods_test import gradient, make

from kd_jax.losses import _experts


@pytest.mark.parametrize("temperature", [1.0, 1e-3, 1e-10])
def test_the_gate_is_finite_down_to_1e_minus_10_and_one_hot_there(temperature):
  logits, noise = 30 * jax.random.normal(jax.random.key(0), (64, 30)), jax.random.gumbel(jax.random.key(1), (64, 30))

  def gate(x):
    return _experts.gumbel_softmax(x, noise, temperature)

  weights, found = gate(logits), jax.grad(lambda x: jnp.sum(gate(x)[:, 0]))(logits)
  assert np.isfinite(weights).all() and np.isfinite(found).all()
  np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
  if temperature == 1e-10:
    np.testing.assert_array_equal(weights, np.eye(30)[np.argmax(logits + noise, axis=1)])


def test_the_temperature_falls_geometrically_and_stays_at_its_end():
  found = [float(_experts.annealed(jnp.int32(e), 1.0, 1e-10, 100)) for e in (0, 50, 99, 100, 250)]
  np.testing.assert_allclose(found, [1, 1e-5, 1e-10 ** 0.99, 1e-10, 1e-10], rtol=1e-4)


@pytest.mark.parametrize("name", ["de", "htd"])
def test_training_at_the_last_temperature_is_finite(name):
  m = make(name, {"epochs": 1}, epoch=5)
  value, _, found = gradient(m)
  assert np.isfinite(value) and np.isfinite(found).all()


def test_entities_are_named_the_same_when_each_devices_users_come_first():
  batch = {"users": jnp.array([4, 5, 6, 7]), "items": jnp.array([1, 2, 3, 4, 5, 6])}
  is_user = jnp.array([True, True, False, False, False] * 2)
  assert _experts.entity(batch | {"is_user": is_user}).tolist() == [8, 10, 3, 5, 7, 12, 14, 9, 11, 13]
