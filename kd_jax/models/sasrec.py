"""Self-attentive sequential recommendation (SASRec)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.base import InputError, Outputs
from kd_jax.models import _histories
from kd_jax.models._histories import normalise
from kd_jax.models._inner_product import inner_product

_FAR = -1e9  # a logit whose softmax is exactly zero


class SASRec(nn.Module):
  """The state after a user's last items, times an item's vector. Table `item` [I, D], used at both ends."""

  inner_product = reads_sequences = True
  constants, tables = _histories.constants, _histories.tables
  num_users: int
  num_items: int
  dim: int
  length: int
  blocks: int
  heads: int
  dropout: float

  def setup(self):
    glorot, normal = nn.initializers.glorot_uniform(), nn.initializers.normal(0.01)
    self.item = self.param("item", glorot, (self.num_items, self.dim))
    self.place = self.param("place", glorot, (self.length, self.dim))
    square, row = (self.dim, self.dim), (self.dim,)
    shapes = {"query": square, "key": square, "value": square, "inner": square, "inner_bias": row,
              "outer": square, "outer_bias": row}
    self.weights = [{name: self.param(f"{name}{n}", normal if shape == row else glorot, shape)
                     for name, shape in shapes.items()} for n in range(self.blocks)]
    self.drop = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))

  def __call__(self, batch, tables=None) -> Outputs:
    item = self.tables() if tables is None else tables
    read = _histories.read(self, batch)
    x = item[read.items] * self.dim**0.5 + self.place[read.places]
    states = self.encode(x, read.owners, keep=self.length if "place" in batch else 1)
    return inner_product(states.reshape(-1, self.dim), item, batch.get("items"))

  def encode(self, x, owners, keep: int):
    """States [R, keep, D] at the last `keep` places of vectors `x` [R, L, D] with their `owners` [R, L]."""
    x = self.drop(x) * (owners > 0)[..., None]
    for n, weights in enumerate(self.weights):
      x = self._block(weights, x, owners, keep if n == self.blocks - 1 else self.length)
    return normalise(x)[:, -keep:] * (owners > 0)[:, -keep:, None]

  def _block(self, weights, x, owners, keep):
    """One block at the last `keep` places."""
    normal, x = normalise(x), x[:, -keep:]
    split = lambda v, w: (v @ weights[w]).reshape(*v.shape[:2], self.heads, self.dim // self.heads)
    query = split(normal[:, -keep:], "query")
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, split(normal, "key")) * query.shape[-1] ** -0.5
    logits = jnp.where(_histories.sees(owners, keep)[:, None], logits, _FAR)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), split(normal, "value"))
    x = x + self.drop(mixed.reshape(x.shape))
    inner = jax.nn.relu(normalise(x) @ weights["inner"] + weights["inner_bias"])
    return (x + self.drop(inner @ weights["outer"] + weights["outer_bias"])) * (owners > 0)[:, -keep:, None]


def sasrec(num_users: int, num_items: int, dim: int = 64, length: int = 50, blocks: int = 2, heads: int = 1,
           dropout: float = 0.2) -> nn.Module:
  """SASRec: Kang, McAuley, ICDM 2018, https://arxiv.org/abs/1808.09781, eqs. 1-6.

  score = <state, item>, the state of causal self-attention after the user's last training items, ordered by
  time stamp if the data has them, else as in the source.

  Args:
    dim: width of everything.
    length: most recent items that are read (paper: 200 on MovieLens-1M, 50 elsewhere).
    blocks: attention and feed-forward pairs.
    heads: of attention; dim is a multiple of it. The paper's is 1.
    dropout: of embeddings and layers in training (paper: 0.2 on MovieLens-1M, 0.5 elsewhere). It happens only
      where the frame passes a random key "dropout" to the network.

  In training a batch holds whole histories (`kd_jax.sequences`), each in stretches of `length` from its end;
  every item but the first of a history is predicted once an epoch from those before it in its stretch.

  Departs: stretches of several users lie side by side in a row, where they do not see each other; the authors'
  rows are padded and hold a user's last `length` items only. Residuals and norms are the paper's x + g(norm(x))
  and a last norm as in the authors' code; norms have no gain and bias (Xu et al., NeurIPS 2019,
  https://arxiv.org/abs/1911.07013). Matrices are Glorot uniform as in the authors' code, biases N(0, 0.01).
  Raises InputError if heads do not divide dim.
  """
  if dim % heads:
    raise InputError(f"--model=sasrec: dim={dim} is no multiple of heads={heads}")
  return SASRec(num_users, num_items, dim, length, blocks, heads, dropout)
