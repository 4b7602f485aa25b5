"""Shared by methods on representations: experts with a gate, numbers of entities, unit vectors."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.base import Array, Batch
from kd_jax.losses import _blocks

CHUNK = 512  # Rows at a time if each row needs much memory; the backward pass computes them again.


def unit(x: Array) -> Array:
  """Scales rows to length 1; a row of zeros stays zero, and its gradient is finite."""
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-16))


def by_row(function, rows):
  """Applies `function` to every row of the pytree `rows`, CHUNK rows at a time; stores no intermediate results."""
  return jax.lax.map(jax.checkpoint(function), rows, batch_size=CHUNK)


def by_side(batch: Batch, x: Array) -> tuple[Array, Array]:
  """Splits the rows `x` [M + N, ...] of an adapter into ([M, ...] of users, [N, ...] of items)."""
  return x[: batch["users"].shape[0]], x[batch["users"].shape[0] :]


def entity(batch: Batch) -> Array:
  """One number per entity, [M + N], for any order of rows: with pmap, each device's users precede its items."""
  user, item = (jnp.maximum(jnp.cumsum(x) - 1, 0) for x in (batch["is_user"], ~batch["is_user"]))
  items = batch["items"] if batch["items"].size else batch["users"]  # if there are no items, all entities are users
  return jnp.where(batch["is_user"], 2 * batch["users"][user], 2 * items[item] + 1)


def uniform(fan_in: int):
  """U(-1, 1) / sqrt(fan_in), as in torch.nn.Linear; LeCun et al., Efficient BackProp, 1998."""
  return lambda rng, shape, dtype=jnp.float32: jax.random.uniform(rng, shape, dtype, -1, 1) / fan_in**0.5


def annealed(epoch: Array, start: float, end: float, epochs: int) -> Array:
  """Falls geometrically from `start` at epoch 0 to `end` at epoch `epochs`; `end` after that."""
  passed = jnp.minimum(epoch / epochs, 1.0)
  return jnp.exp((1 - passed) * jnp.log(start) + passed * jnp.log(end))


def gumbel_softmax(logits: Array, noise: Array, temperature: Array) -> Array:
  """softmax((log softmax(logits) + noise) / temperature) over the last axis. Jang et al., ICLR 2017.

  The maximum is subtracted before the division: at temperature 1e-10, the other logits become large negative numbers
  (-1e10 or less), which are still finite.
  """
  z = jax.nn.log_softmax(logits) + noise
  return jax.nn.softmax((z - jax.lax.stop_gradient(z.max(axis=-1, keepdims=True))) / temperature)


def gumbel(rng: Array, ids: Array, n: int) -> Array:
  """Gumbel noise [E, n]; it depends on the key and the entity only, so it is the same on one device and on many."""
  return jax.vmap(lambda i: jax.random.gumbel(jax.random.fold_in(rng, i), (n,)))(ids)


def kept(gate: Array, temperature: Array) -> Array:
  """Which experts have an effect on an entity in float32, [E, num] bool; at least one has.

  Without an expert of weight g, the output changes by g. The gradient of the gate's logits is divided by the
  temperature, so it changes by g / temperature. The rounding error of float32 is eps times the largest weight in the
  output, and eps / temperature in that gradient. The experts that are left out have a smaller effect, all together.
  """
  gate = jax.lax.stop_gradient(gate)
  return ~(gate <= jnp.finfo(gate.dtype).eps / gate.shape[1] * jnp.minimum(temperature, 1))  # NaN: keep all


def _weighted(x, g, w1, b1, w2, b2):
  """[R, dt]: the output of one expert for rows x [R, ds], times its weights g [R]."""
  hidden = nn.relu(x @ w1 + b1) * g[:, None]
  return hidden @ w2 + g[:, None] * b2


def _places(where, i):
  expert, number = _blocks.of_turn(i, where.blocks)
  entity = _blocks.entities(where, expert, number)
  return entity, entity, (entity, expert[:, None]), expert, expert, expert, expert


class Experts(nn.Module):
  """MLPs [ds, (ds + dt) // 2, dt] for users or for items, mixed by a gate that reads the teacher's vectors.

  If only a few experts have an effect on an entity (one at temperature 1e-10), only these are computed; if most have
  an effect, all are computed.
  """

  num: int

  @nn.compact
  def __call__(self, student, teacher, noise, temperature):
    """(mixture [E, dt], log-probabilities of the gate [E, num]); student [E, ds], teacher [E, dt]."""
    (_, ds), dt = student.shape, teacher.shape[1]
    width = (ds + dt) // 2
    w1 = self.param("w1", uniform(ds), (self.num, ds, width))
    b1 = self.param("b1", uniform(ds), (self.num, width))
    w2 = self.param("w2", uniform(width), (self.num, width, dt))
    b2 = self.param("b2", uniform(width), (self.num, dt))
    gate = self.param("gate", uniform(dt), (dt, self.num)), self.param("gate_bias", uniform(dt), (self.num,))
    logits = teacher @ gate[0] + gate[1]
    weights = gumbel_softmax(logits, noise, temperature)
    where = _blocks.groups(kept(weights, temperature))

    def dense(total, expert):  # One expert at a time, recomputed for the gradient: memory for one hidden layer.
      return total + jax.checkpoint(_weighted)(student, *expert), None

    mixture = jax.lax.cond(  # If most pairs count, blocks are slower than the dense computation.
        _blocks.in_any(2 * jnp.sum(where.size) > weights.size),
        lambda: jax.lax.scan(dense, jnp.zeros_like(teacher), (weights.T, w1, b1, w2, b2))[0],
        lambda: _blocks.summed(jax.vmap(_weighted), _places, len(student), where, _blocks.turns(where.blocks),
                              student, weights, w1, b1, w2, b2))
    return mixture, jax.nn.log_softmax(logits)


class ExpertsOfBothSides(nn.Module):
  """Experts for users and experts for items, at the temperature of the current epoch."""

  num: int
  start: float
  end: float
  epochs: int

  @nn.compact
  def __call__(self, student, teacher, batch):
    """(mixture [M + N, dt], group [M + N]).

    The group is the arg-max of the gate without noise; groups of items are numbered after groups of users.
    """
    rng, temperature = self.make_rng("noise"), annealed(batch["epoch"], self.start, self.end, self.epochs)
    rows = zip(*(by_side(batch, x) for x in (student.query, teacher.query)), strict=True)
    mixtures, groups = [], []
    for side, (name, (s, t)) in enumerate(zip(("users", "items"), rows, strict=True)):
      noise = gumbel(jax.random.fold_in(rng, side), batch[name], self.num)
      mixture, gate = Experts(self.num, name=name)(s, t, noise, temperature)
      mixtures.append(mixture)
      groups.append(jnp.argmax(gate, axis=1) + side * self.num)
    return jnp.concatenate(mixtures), jnp.concatenate(groups)
