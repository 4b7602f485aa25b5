"""Recurrent networks for recommendation (GRU4Rec)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.base import Outputs
from kd_jax.models import _histories
from kd_jax.models._inner_product import inner_product

SEARCH = "dropout=0.0|0.1|0.2|0.4"


class GRU4Rec(nn.Module):
  """The inner product of an item's vector and a linear map of the state after a user's last items.

  Table `item` [I, D] is used for inputs and for scoring.
  """

  inner_product = reads_sequences = True
  constants, tables = _histories.constants, _histories.tables
  num_users: int
  num_items: int
  dim: int
  length: int
  layers: int
  dropout: float

  def setup(self):
    glorot, normal = nn.initializers.glorot_uniform(), nn.initializers.normal(0.01)
    dim = self.dim
    self.item = self.param("item", glorot, (self.num_items, dim))
    self.weights = [(self.param(f"input{n}", glorot, (dim, 3 * dim)), self.param(f"bias{n}", normal, (3 * dim,)),
                     self.param(f"gates{n}", glorot, (dim, 2 * dim)), self.param(f"state{n}", glorot, (dim, dim)))
                    for n in range(self.layers)]
    self.outer = self.param("outer", glorot, (dim, dim))
    self.outer_bias = self.param("outer_bias", normal, (dim,))
    self.drop = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))

  def __call__(self, batch, tables=None) -> Outputs:
    item = self.tables() if tables is None else tables
    read = _histories.read(self, batch)
    before = jnp.pad(read.owners, ((0, 0), (1, 0)))[:, :-1]
    goes_on = (read.owners == before) & (read.owners > 0)
    x = self.drop(item[read.items] * self.dim**0.5)
    for weights in self.weights:
      x = _recur(weights, x, goes_on)
    x, owners = (x, read.owners) if "place" in batch else (x[:, -1:], read.owners[:, -1:])
    states = (self.drop(x) @ self.outer + self.outer_bias) * (owners > 0)[..., None]
    return inner_product(states.reshape(-1, self.dim), item, batch.get("items"))


def _recur(weights, x, goes_on):
  """States [R, L, D] of inputs [R, L, D].

  Each state follows from the previous state where `goes_on` [R, L] is True, and from zero elsewhere.
  """
  inner, bias, gates, candidate = weights

  def step(state, given):
    x, goes_on = given  # [R, 3 D], [R]
    state = state * goes_on[:, None]
    update, reset, new = jnp.split(x, 3, axis=-1)
    by_update, by_reset = jnp.split(state @ gates, 2, axis=-1)
    update, reset = jax.nn.sigmoid(update + by_update), jax.nn.sigmoid(reset + by_reset)
    state = (1 - update) * state + update * jnp.tanh(new + (reset * state) @ candidate)
    return state, state

  by_time = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (x @ inner + bias, goes_on))
  return jnp.moveaxis(jax.lax.scan(step, jnp.zeros_like(x[:, 0]), by_time)[1], 0, 1)


def gru4rec(num_users: int, num_items: int, dim: int = 64, length: int = 50, layers: int = 1,
            dropout: float = 0.2) -> nn.Module:
  """GRU4Rec: Hidasi, Karatzoglou, Baltrunas, Tikk, ICLR 2016, https://arxiv.org/abs/1511.06939.

  score = <W h + b, item>, where h is the state of gated recurrent units after the user's last training items. With
  input x, h' = (1 - z) h + z tanh(W x + U (r h)), where z and r are sigmoids of their own linear maps of x and h.

  Args:
    dim: width of item vectors and of all layers.
    length: number of most recent items that are read.
    layers: number of recurrent layers; the paper's best model has one.
    dropout: dropout rate of the embeddings and of the last state, in training. It is
      applied only if the network gets a random key "dropout".

  In training, a batch holds whole histories (`kd_jax.training.sequence_batches`), as for sasrec. A
  user's history is one session, cut into stretches of `length`.

  Departs from the paper: the state is zero at the start of every stretch; the same item vectors are used for inputs and
  for scoring; base losses and negatives are those of the training loop.
  """
  return GRU4Rec(num_users, num_items, dim, length, layers, dropout)
