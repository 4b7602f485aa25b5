"""Hierarchical sequential transduction units (HSTU)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.base import InputError, Outputs
from kd_jax.models import _histories
from kd_jax.models._histories import normalise
from kd_jax.models._inner_product import inner_product


class HSTU(nn.Module):
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
    glorot, normal = nn.initializers.glorot_uniform(), nn.initializers.normal(0.02)
    self.item = self.param("item", glorot, (self.num_items, self.dim))
    self.place = self.param("place", glorot, (self.length, self.dim))
    self.weights = [(self.param(f"inner{n}", normal, (self.dim, 4 * self.dim)),
                     self.param(f"distance{n}", normal, (self.length,)),
                     self.param(f"outer{n}", glorot, (self.dim, self.dim)),
                     self.param(f"outer_bias{n}", normal, (self.dim,))) for n in range(self.blocks)]
    self.drop = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))

  def __call__(self, batch, tables=None) -> Outputs:
    item = self.tables() if tables is None else tables
    read = _histories.read(self, batch)
    x = self.drop(item[read.items] * self.dim**0.5 + self.place[read.places])
    keep = self.length if "place" in batch else 1
    for n, weights in enumerate(self.weights):
      x = self._block(weights, x, read.owners, keep if n == self.blocks - 1 else self.length)
    states = normalise(x) * (read.owners > 0)[:, -keep:, None]
    return inner_product(states.reshape(-1, self.dim), item, batch.get("items"))

  def _block(self, weights, x, owners, keep):
    """One block at the last `keep` places."""
    inner, distance, outer, bias = weights
    gate, value, query, key = jnp.split(jax.nn.silu(normalise(x) @ inner), 4, axis=-1)
    split = lambda v: v.reshape(*v.shape[:2], self.heads, -1)
    logits = jnp.einsum("bqhd,bkhd->bhqk", split(query[:, -keep:]), split(key))
    place = jnp.arange(self.length)
    logits += distance[jnp.maximum(place[-keep:, None] - place, 0)]
    attention = jax.nn.silu(logits) / self.length * _histories.sees(owners, keep)[:, None]
    mixed = jnp.einsum("bhqk,bkhd->bqhd", attention, split(value)).reshape(-1, keep, self.dim)
    return x[:, -keep:] + self.drop(normalise(mixed) * gate[:, -keep:]) @ outer + bias


def hstu(num_users: int, num_items: int, dim: int = 64, length: int = 50, blocks: int = 2, heads: int = 1,
         dropout: float = 0.2) -> nn.Module:
  """HSTU: Zhai et al., "Actions Speak Louder than Words", ICML 2024, https://arxiv.org/abs/2402.17152.

  score = <norm(x), item>, x after the last of `blocks` that each, for the places of a history, take
  U, V, Q, K = split(silu(norm(x) W)), attend by A = silu(Q K' + r) / length without a softmax, r a bias of the
  distance between two places and A zero for later ones, and add W' (norm(A V) * U) + b to x.

  Args:
    dim: width of everything.
    length: most recent items that are read.
    blocks: layers.
    heads: of attention; dim is a multiple of it.
    dropout: of embeddings and of what a block adds, in training: where the frame passes a random key "dropout".

  In training a batch holds whole histories (`kd_jax.sequences`), as for sasrec.

  Departs: the bias knows places, not times; the authors' public code has both. Vectors of places are added to
  those of items, as there. Norms have no gain and bias, as there. Raises InputError if heads do not divide dim.
  """
  if dim % heads:
    raise InputError(f"--model=hstu: dim={dim} is no multiple of heads={heads}")
  return HSTU(num_users, num_items, dim, length, blocks, heads, dropout)
