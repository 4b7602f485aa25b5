"""Counted arithmetic against arithmetic by hand."""

import jax
import jax.numpy as jnp
import pytest

from kd_jax.bench import roofline

A, B = jnp.ones((3, 5)), jnp.ones((5, 7))
PRODUCT = 2 * 3 * 5 * 7


def test_a_product_costs_three_with_both_gradients_and_two_with_one():
  assert roofline.with_gradient(lambda a, b: jnp.sum(a @ b), (A, B)) == 3 * PRODUCT
  assert roofline.with_gradient(lambda a: jnp.sum(a @ B), (A,)) == 2 * PRODUCT


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint])
def test_what_is_computed_again_counts_once(wrap):
  assert roofline.with_gradient(wrap(lambda a, b: jnp.sum(jnp.tanh(a @ b))), (A, B)) == 3 * PRODUCT


def test_a_loop_counts_every_turn_and_a_condition_its_dearer_branch():
  def loop(a):
    return jax.lax.scan(lambda total, row: (total + jnp.sum(row @ B), None), 0.0, jnp.stack([a] * 4))[0]

  assert roofline.with_gradient(loop, (A,)) == 4 * 2 * PRODUCT

  def branches(a):
    return jax.lax.cond(a[0, 0] > 0, lambda: jnp.sum(a @ B), lambda: jnp.sum(a))

  assert roofline.with_gradient(branches, (A,)) == 2 * PRODUCT


def test_a_loop_of_unknown_length_is_not_counted_as_one_turn():
  def loop(a):
    return jax.lax.fori_loop(0, jnp.int32(a[0, 0]), lambda i, x: x + jnp.sum(a @ B), 0.0)

  assert roofline.with_gradient(loop, (A,)) == 0


def test_indices_have_no_gradient():
  assert roofline.with_gradient(lambda a, i: jnp.sum(a[i] @ B), (A, jnp.array([0, 2]))) == 2 * (2 * 2 * 5 * 7)


def test_the_speed_is_that_of_the_fastest_product(monkeypatch):
  clock = iter([0.0, 3.0, 10.0, 11.0, 20.0, 22.0])  # three products: 3, 1 and 2 seconds
  monkeypatch.setattr(roofline.time, "perf_counter", lambda: next(clock))
  assert roofline.rate(64, 3) == 2 * 64**3
