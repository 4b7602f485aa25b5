"""Hierarchical sequential transduction units (HSTU)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.base import Array, InputError, Outputs
from kd_jax.models import _histories
from kd_jax.models._histories import normalise
from kd_jax.models._inner_product import inner_product

SEARCH = "dropout=0.0|0.1|0.2|0.4; temperature=log(0.02, 0.2)"

SCORES = ("cosine", "inner_product")


class HSTU(nn.Module):
  """The similarity of an item's vector and the state after a user's last items.

  Table `item` [I, D] is used for inputs and for scoring. Scores are inner products in both forms: for cosines, states
  and items have length 1 / sqrt(temperature).
  """

  inner_product = reads_sequences = True
  constants = _histories.constants
  num_users: int
  num_items: int
  dim: int
  length: int
  blocks: int
  heads: int
  dropout: float
  score: str
  temperature: float

  def setup(self):
    glorot, normal = nn.initializers.glorot_uniform(), nn.initializers.normal(0.02)
    self.item = self.param("item", glorot, (self.num_items, self.dim))
    self.place = self.param("place", glorot, (self.length, self.dim))
    self.weights = [(self.param(f"inner{n}", normal, (self.dim, 4 * self.dim)),
                     self.param(f"distance{n}", normal, (self.length,)),
                     self.param(f"outer{n}", glorot, (self.dim, self.dim)),
                     self.param(f"outer_bias{n}", normal, (self.dim,))) for n in range(self.blocks)]
    self.drop = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))

  def tables(self) -> tuple[Array, Array]:
    """The item vectors [I, D] for inputs, and for scoring."""
    return self.item, self._scaled(self.item) if self.score == "cosine" else self.item

  def __call__(self, batch, tables=None) -> Outputs:
    item, scored = self.tables() if tables is None else tables
    read = _histories.read(self, batch)
    x = self.drop(item[read.items] * self.dim**0.5 + self.place[read.places])
    keep = self.length if "place" in batch else 1
    for n, weights in enumerate(self.weights):
      x = self._block(weights, x, read.owners, keep if n == self.blocks - 1 else self.length)
    states = (self._scaled(x) if self.score == "cosine" else normalise(x)) * (read.owners > 0)[:, -keep:, None]
    return inner_product(states.reshape(-1, self.dim), scored, batch.get("items"))

  def _scaled(self, x):
    """Vectors of length 1 / sqrt(temperature); zeros stay zeros."""
    return x * jax.lax.rsqrt(self.temperature * jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))

  def _block(self, weights, x, owners, keep):
    """Applies one block and returns its last `keep` places."""
    inner, distance, outer, bias = weights
    gate, value, query, key = jnp.split(jax.nn.silu(normalise(x) @ inner), 4, axis=-1)

    def split(v):
      return v.reshape(*v.shape[:2], self.heads, -1)

    logits = jnp.einsum("bqhd,bkhd->bhqk", split(query[:, -keep:]), split(key))
    place = jnp.arange(self.length)
    logits += distance[jnp.maximum(place[-keep:, None] - place, 0)]
    attention = jax.nn.silu(logits) / self.length * _histories.sees(owners, keep)[:, None]
    mixed = jnp.einsum("bhqk,bkhd->bqhd", attention, split(value)).reshape(-1, keep, self.dim)
    return x[:, -keep:] + self.drop(normalise(mixed) * gate[:, -keep:]) @ outer + bias


def hstu(num_users: int, num_items: int, dim: int = 64, length: int = 50, blocks: int = 2, heads: int = 1,
         dropout: float = 0.2, score: str = "cosine", temperature: float = 0.05) -> nn.Module:
  """HSTU: Zhai et al., "Actions Speak Louder than Words", ICML 2024, https://arxiv.org/abs/2402.17152.

  score = cos(x, item) / temperature, where x is the output of the last block at the last place of a history. A block
  computes U, V, Q, K = split(silu(norm(x) W)) at every place, and the attention A = silu(Q K' + r) / length without a
  softmax. r is a bias for the distance between two places, and A is zero for later places. The block adds
  W' (norm(A V) * U) + b to x.

  Args:
    dim: width of item vectors and of all layers.
    length: number of most recent items that are read.
    blocks: number of layers.
    heads: number of attention heads; dim must be a multiple of it.
    dropout: dropout rate of the embeddings and of the term that a block adds, in training. It is
      applied only if the network gets a random key "dropout".
    score: "cosine", as in the authors' code, or "inner_product": <norm(x), item>, as in sasrec.
    temperature: of the cosines; without effect on inner products.

  In training, a batch holds whole histories (`kd_jax.training.sequence_batches`), as for sasrec.

  Departs from the paper: the bias depends on places, not on times; the authors' public code has both. As in that code,
  vectors of places are added to vectors of items, and norms have no gain and no bias. Departs from that code, and from
  RCE-KD's: there, cosines are divided by the temperature in the base loss only (a sampled softmax); here, scores that
  are distilled are divided too, so a method's own temperature has to be greater, by 1 / 0.05, for the same targets.
  Raises InputError for a wrong argument.
  """
  if score not in SCORES:
    raise InputError(f"`model=hstu`: score={score!r}: choose from {', '.join(SCORES)}")
  if dim % heads:
    raise InputError(f"`model=hstu`: dim={dim} is not a multiple of heads={heads}")
  return HSTU(num_users, num_items, dim, length, blocks, heads, dropout, score, temperature)
