"""Self-attentive sequential recommendation (SASRec)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.base import InputError, Outputs
from kd_jax.models import _histories
from kd_jax.models._histories import normalise
from kd_jax.models._inner_product import inner_product

SEARCH = "dropout=0.0|0.1|0.2|0.4"

_FAR = -1e9  # a logit whose softmax is exactly zero


class SASRec(nn.Module):
  """The inner product of an item's vector and the state after a user's last items.

  Table `item` [I, D] is used for inputs and for scoring.
  """

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
    """States [R, keep, D] at the last `keep` places, from vectors `x` [R, L, D] with `owners` [R, L]."""
    x = self.drop(x) * (owners > 0)[..., None]
    for n, weights in enumerate(self.weights):
      x = self._block(weights, x, owners, keep if n == self.blocks - 1 else self.length)
    return normalise(x)[:, -keep:] * (owners > 0)[:, -keep:, None]

  def _block(self, weights, x, owners, keep):
    """Applies one block and returns its last `keep` places."""
    normal, x = normalise(x), x[:, -keep:]

    def split(v, w):
      return (v @ weights[w]).reshape(*v.shape[:2], self.heads, self.dim // self.heads)

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

  score = <state, item>. The state is the output of causal self-attention after the user's last training items. Items
  are in the order of timestamps if the data has them, else in the order of the data's rows.

  Args:
    dim: width of item vectors and of all layers.
    length: number of most recent items that are read (paper: 200 on MovieLens-1M, 50 elsewhere).
    blocks: number of pairs of an attention and a feed-forward layer.
    heads: number of attention heads (paper: 1); dim must be a multiple of it.
    dropout: dropout rate of embeddings and layers in training (paper: 0.2 on MovieLens-1M, 0.5 elsewhere). It is
      applied only if the network gets a random key "dropout".

  In training, a batch holds whole histories (`kd_jax.training.sequence_batches`). Each history is cut
  into stretches of `length` from its end. Once an epoch, every item but the first of a history is predicted from the
  items before it in its stretch.

  Departs from the paper: stretches of several users are side by side in a row, and do not attend to each other; the
  authors' rows are padded and hold only the last `length` items of a user. Residual connections and norms are
  x + g(norm(x)), as in the paper; there is a last norm, as in the authors' code; norms have no gain and no bias
  (Xu et al., NeurIPS 2019, https://arxiv.org/abs/1911.07013). Matrices are Glorot uniform, as in the authors' code;
  biases are N(0, 0.01). Raises InputError if heads do not divide dim.
  """
  if dim % heads:
    raise InputError(f"`model=sasrec`: dim={dim} is not a multiple of heads={heads}")
  return SASRec(num_users, num_items, dim, length, blocks, heads, dropout)
