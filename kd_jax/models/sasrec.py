"""Self-attentive sequential recommendation (SASRec)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Dataset, InputError, Outputs
from kd_jax.models.scoring import inner_product

_FAR = -1e9  # a logit whose softmax is exactly zero


class SASRec(nn.Module):
  """The state after a user's last items, times an item's vector. Table `item` [I, D], used at both ends."""

  inner_product = True
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

  def constants(self, dataset: Dataset) -> dict[str, np.ndarray]:
    """Histories one after the other: items[starts[u]:starts[u + 1]] [N], oldest first."""
    users, times = dataset.train.users, dataset.train.timestamps
    order = np.argsort(users, kind="stable") if times is None else np.lexsort((times, users))
    starts = np.searchsorted(users[order], np.arange(self.num_users + 1)).astype(np.int32)
    return {"starts": starts, "items": dataset.train.items[order]}

  def tables(self):
    return self.item

  def __call__(self, batch, tables=None) -> Outputs:
    item = self.tables() if tables is None else tables
    history, valid = self.history(batch["users"], batch.get("position"))
    states = self.encode(item[history] * self.dim**0.5, valid, keep=1)  # [B, 1, D]
    return inner_product(states[:, 0], item, batch.get("items"))

  def history(self, users, position=None):
    """(last items [B, L] of each history, cut before `position` [B] if given; which are real [B, L])."""
    starts, items = (jnp.asarray(self.get_variable("constants", k)) for k in ("starts", "items"))
    end = starts[users + 1] if position is None else starts[users] + position
    place = end[:, None] + jnp.arange(-self.length, 0)
    return items[jnp.maximum(place, 0)], place >= starts[users][:, None]

  def encode(self, x, valid, keep: int):
    """States [B, keep, D] at the last `keep` places of item vectors `x` [B, L, D], `valid` [B, L]."""
    x = self.drop(x + self.place) * valid[..., None]
    for n, weights in enumerate(self.weights):
      x = self._block(weights, x, valid, keep if n == self.blocks - 1 else self.length)
    return _normalise(x)[:, -keep:] * valid[:, -keep:, None]

  def _block(self, weights, x, valid, keep):
    """One block at the last `keep` places."""
    normal, x = _normalise(x), x[:, -keep:]
    split = lambda v, w: (v @ weights[w]).reshape(*v.shape[:2], self.heads, self.dim // self.heads)
    query = split(normal[:, -keep:], "query")
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, split(normal, "key")) * query.shape[-1] ** -0.5
    past = jnp.tril(jnp.ones((self.length, self.length), bool))[-keep:]
    logits = jnp.where(past & valid[:, None, None], logits, _FAR)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), split(normal, "value"))
    x = x + self.drop(mixed.reshape(x.shape))
    inner = jax.nn.relu(_normalise(x) @ weights["inner"] + weights["inner_bias"])
    return (x + self.drop(inner @ weights["outer"] + weights["outer_bias"])) * valid[:, -keep:, None]


def _normalise(x):
  """Zero mean and unit variance along the last axis; zeros stay zeros."""
  x = x - x.mean(-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-8)


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

  In training, a row's history ends before its positive if the batch has `position` [B], the positive's place
  (from 0) in its user's history, in this model's order; with an empty history the scores are zero. Without
  `position` the whole history is read, as at scoring time: the positive is in it, the task reconstruction.

  Departs: a batch holds single positions, not all of a user's, so an epoch costs about `length` times the
  authors'. Residuals and norms are the paper's x + g(norm(x)) and a last norm as in the authors' code; norms
  have no gain and bias (Xu et al., NeurIPS 2019, https://arxiv.org/abs/1911.07013). Matrices are Glorot
  uniform as in the authors' code, biases N(0, 0.01). Raises InputError if heads do not divide dim.
  """
  if dim % heads or blocks < 1 or length < 1:
    raise InputError(f"--model=sasrec: dim={dim} is no multiple of heads={heads}, or blocks or length < 1")
  return SASRec(num_users, num_items, dim, length, blocks, heads, dropout)
