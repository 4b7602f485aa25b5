"""Scores of candidates by inner product, with a gradient that is kind to the cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from kd_jax.base import Array, Outputs

_NUMBERS = 100_000  # gathered at a time: they stay in a core's cache
_FEW = 8  # With fewer candidates there is nothing to save.


def inner_product(query: Array, table: Array, items: Array | None) -> Outputs:
  """Scores `query` [B, D] against rows `items` [B, C] of `table` [I, D], or against all of it."""
  if items is None:
    return Outputs(query @ table.T, query, table)
  return Outputs(gathered_product(query, table, items), query, table[items])


@jax.custom_vjp
def gathered_product(query: Array, table: Array, items: Array) -> Array:
  """einsum("bd,bcd->bc", query, table[items]) without keeping table[items] [B, C, D] in memory."""
  if items.shape[1] < _FEW:
    return _product(query, table, items)
  blocks = _blocks(table, items, query, items)
  scores = jax.lax.map(lambda x: _product(x[0], table, x[1]), blocks)
  return scores.reshape(-1, items.shape[1])[: items.shape[0]]


def _product(query, table, items):
  return jnp.einsum("bd,bcd->bc", query, table[items])


def _forward(query, table, items):
  return gathered_product(query, table, items), (query, table, items)


def _backward(saved, cotangent):
  """One pass over blocks: gather again, then both gradients while the rows are still in cache."""
  query, table, items = saved
  if items.shape[1] < _FEW:
    return *jax.vjp(lambda q, t: _product(q, t, items), query, table)[1](cotangent), None

  def block(table_gradient, x):
    query, items, cotangent = x
    query_gradient = jnp.einsum("bc,bcd->bd", cotangent, table[items])
    updates = (cotangent[:, :, None] * query[:, None]).reshape(-1, query.shape[1])  # [b * C, D]
    return table_gradient.at[items.reshape(-1)].add(updates), query_gradient

  blocks = _blocks(table, items, query, items, cotangent)
  table_gradient, query_gradient = jax.lax.scan(block, jnp.zeros_like(table), blocks)
  return query_gradient.reshape(-1, query.shape[1])[: items.shape[0]], table_gradient, None


def _blocks(table, items, *arrays):
  """Arrays [B, ...] cut into [blocks, rows, ...] that gather about _NUMBERS numbers each.

  Padded with zeros: row 0 of the table, with a zero query and cotangent.
  """
  batch = items.shape[0]
  rows = max(1, min(batch, _NUMBERS // (items.shape[1] * table.shape[1])))
  cut = lambda x: jnp.pad(x, [(0, -batch % rows)] + [(0, 0)] * (x.ndim - 1)).reshape(-1, rows, *x.shape[1:])
  return tuple(cut(x) for x in arrays)


gathered_product.defvjp(_forward, _backward)
