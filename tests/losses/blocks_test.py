"""Block-sparse sums against dense float64 arithmetic, every gradient too, and that what has no weight is not read."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import quickly
from representation_methods_test import HTD, htd_reference, make, of_rows, with_noise

from kd_jax.losses import _blocks, _experts

E, DS, DT, NUM = 23, 4, 6, 5


@pytest.fixture
def small(monkeypatch):
  """Blocks so small that a few entities take several blocks and several turns."""
  monkeypatch.setattr(_blocks, "ROWS", 4)
  monkeypatch.setattr(_blocks, "BLOCKS", 3)


def experts(rows=E, seed=0):
  rng = np.random.default_rng(seed)
  s, t = (rng.normal(size=(rows, d)).astype(np.float32) for d in (DS, DT))
  noise, module = rng.gumbel(size=(rows, NUM)).astype(np.float32), _experts.Experts(NUM)
  return module, module.init(jax.random.key(seed), s, t, noise, 1.0)["params"], s, t, noise


def dense(params, s, t, noise, temperature, ct):
  """(mixture, gradients of sum(ct * mixture) to parameters and students): all experts, derived by hand."""
  p = {k: np.float64(v) for k, v in params.items()}
  s, t, ct = np.float64(s), np.float64(t), np.float64(ct)
  logits = t @ p["gate"] + p["gate_bias"]
  chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  z = np.log(chance) + noise
  g = np.exp((z - z.max(1, keepdims=True)) / temperature)
  g /= g.sum(1, keepdims=True)
  before = np.einsum("ed,mdh->emh", s, p["w1"]) + p["b1"]
  hidden = np.maximum(before, 0)
  each = np.einsum("emh,mht->emt", hidden, p["w2"]) + p["b2"]
  d_each, d_g = g[:, :, None] * ct[:, None], np.einsum("emt,et->em", each, ct)
  d_before = np.einsum("emt,mht->emh", d_each, p["w2"]) * (before > 0)
  d_z = g * (d_g - (g * d_g).sum(1, keepdims=True)) / temperature
  d_logits = d_z - chance * d_z.sum(1, keepdims=True)
  gradients = {"w1": np.einsum("ed,emh->mdh", s, d_before), "b1": d_before.sum(0), "b2": d_each.sum(0),
               "w2": np.einsum("emh,emt->mht", hidden, d_each), "gate": t.T @ d_logits, "gate_bias": d_logits.sum(0)}
  return (g[:, :, None] * each).sum(1), gradients, np.einsum("emh,mdh->ed", d_before, p["w1"])


@pytest.mark.parametrize("temperature", [1.0, 0.1, 1e-2, 1e-10])
def test_experts_and_all_their_gradients_are_those_of_dense_arithmetic(small, temperature):
  module, params, s, t, noise = experts()
  ct = np.random.default_rng(1).normal(size=(E, DT)).astype(np.float32)

  @quickly
  def both(p, s):
    found, pull = jax.vjp(lambda p, s: module.apply({"params": p}, s, t, noise, temperature)[0], p, s)
    return found, pull(ct)

  found, (gradients, to_student) = both(params, s)
  value, *expected = dense(params, s, t, noise, temperature, ct)
  np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(to_student, expected[1], rtol=1e-4, atol=1e-5)
  for name, gradient in expected[0].items():
    np.testing.assert_allclose(gradients[name], gradient, rtol=1e-3, atol=1e-4 * max(1, np.abs(gradient).max()),
                               err_msg=name)


def test_an_expert_without_weight_is_not_computed():
  """Dense arithmetic would give 0 * nan."""
  module, params, s, t, noise = experts()
  noise[:, 3] = -50
  broken = params | {"w2": params["w2"].at[3].set(np.nan)}
  apply = quickly(lambda p, temperature: module.apply({"params": p}, s, t, noise, temperature)[0])
  np.testing.assert_array_equal(apply(broken, 0.1), apply(params, 0.1))
  assert np.isnan(apply(broken, 10.0)).all()


def test_a_gate_that_is_not_a_number_is_not_hidden():
  module, params, s, t, noise = experts()
  broken = params | {"gate": params["gate"].at[0, 0].set(np.nan)}
  assert np.isnan(quickly(module.apply)({"params": broken}, s, t, noise, 1e-10)[0]).all()


def test_turns_follow_the_number_of_pairs_that_count(small):
  _, _, _, _, noise = experts()
  for temperature, least, most in ((1.0, E * NUM, E * NUM), (1e-2, E, 1.5 * E), (1e-10, E, E)):
    member = np.asarray(_experts.kept(_experts.gumbel_softmax(jnp.zeros((E, NUM)), noise, temperature), temperature))
    assert least <= member.sum() <= most and member.any(1).all()
    expected = -(-sum(-(-n // 4) for n in member.sum(0)) // 3)
    assert _blocks.turns(_blocks.groups(member).blocks) == expected


@pytest.mark.parametrize("member", [
  np.random.default_rng(0).random((11, 3)) < 0.5, np.eye(1, 4, 2, dtype=bool).repeat(9, 0), np.zeros((5, 2), bool),
  np.ones((8, 2), bool), np.zeros((0, 3), bool)])
def test_every_member_is_in_one_block_of_its_group_and_nobody_else(small, member):
  where = _blocks.groups(jnp.asarray(member))
  found = []
  for turn in range(int(_blocks.turns(where.blocks)) + 1):  # one more than needed holds nobody
    group, number = _blocks.of_turn(turn, where.blocks)
    found += [(int(e), int(g)) for g, row in zip(group, _blocks.entities(where, group, number), strict=True)
              for e in row if e < len(member)]
  assert sorted(found) == sorted(zip(*(x.tolist() for x in np.nonzero(member)), strict=True))


def test_many_seeds_at_once_are_each_alone(small):
  """One takes all experts, one a single expert: the turns are those of the longer."""
  module, params, s, t, noise = experts()

  def value(temperature):
    return jax.value_and_grad(
        lambda p: jnp.sum(module.apply({"params": p}, s, t, noise, temperature)[0] ** 2))(params)

  together, alone = quickly(jax.vmap(value))(jnp.array([1.0, 1e-3])), [quickly(value)(x) for x in (1.0, 1e-3)]

  def branches(function, x):
    return len(re.findall(r"= cond\[", str(jax.make_jaxpr(function)(x))))

  assert branches(jax.vmap(value), jnp.ones(2)) == branches(value, 1.0) > 0  # and not both, of which one is selected
  jax.tree.map(lambda x, *y: np.testing.assert_allclose(x, np.stack(y), rtol=1e-4, atol=1e-4), together, *alone)


def test_no_entities_give_no_rows_and_no_gradient():
  module, params, s, t, noise = experts(rows=0)
  gradient = quickly(jax.grad(lambda p: module.apply({"params": p}, s, t, noise, 1.0)[0].sum()))(params)
  assert not any(np.any(x) for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize("positive_only", [True, False])
def test_htd_compares_all_blocks_of_a_group(monkeypatch, positive_only):
  monkeypatch.setattr(_blocks, "ROWS", 2)
  monkeypatch.setattr(_blocks, "BLOCKS", 2)
  m = with_noise(make("htd", HTD | {"groups": 2, "positive_only": positive_only}))
  value, gradient = quickly(jax.value_and_grad(lambda s: jnp.sum(of_rows(m.kd, m.params, s, m.t, m.batch))))(m.s)
  np.testing.assert_allclose(value, htd_reference(m, np.float64(m.s)), rtol=1e-5)
  step, s = 1e-5 * np.random.default_rng(1).normal(size=m.s.shape), np.float64(m.s)
  expected = (htd_reference(m, s + step) - htd_reference(m, s - step)) / 2
  np.testing.assert_allclose(np.sum(gradient * step), expected, rtol=1e-3)
