"""`embedding_l2`: the norms of a batch's embeddings, written out in NumPy."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from step_test import D, I, U, a_batch, assert_tables, bpr_by_hand, make_run, run_steps, start, tables

from kd_jax import registry
from kd_jax.base import STUDENT, Interactions
from kd_jax.optimizers.sgd import sgd
from kd_jax.training import graph


def norms_by_hand(params, batch):
  """(half the squared norms of every row's user, positive and mean negative, their gradients), summed, in loops."""
  norms, gradient = 0.0, {k: np.zeros_like(v) for k, v in params.items()}
  for user, items, weight in zip(batch["users"], batch["items"], batch["weight"], strict=True):
    shares = [("user", user, 1.0), ("item", items[0], 1.0)] + [("item", i, 1 / (len(items) - 1)) for i in items[1:]]
    for table, row, share in shares:
      norms += weight * share * np.sum(params[table][row] ** 2) / 2
      gradient[table][row] += weight * share * params[table][row]
  return norms, gradient


def test_l2_of_embeddings_is_of_the_rows_of_a_batch():
  params, batch = tables(0), a_batch(1)
  (loss, gradient), (norms, of_norms) = bpr_by_hand(params, batch), norms_by_hand(params, batch)
  run = make_run(sgd(0.1, 0.0, None))._replace(embedding_l2=0.3)
  found, losses = run_steps(run, start(run, params), 1)
  assert losses[0]["base"] == pytest.approx((loss + 0.3 * norms) / 5, rel=1e-5)
  assert_tables(found, {k: params[k] - 0.1 * (gradient[k] + 0.3 * of_norms[k]) for k in params})


def test_l2_of_embeddings_is_of_those_before_a_graph_propagates_them():
  module = registry.build("models", registry.Call("lightgcn", (("dim", D),)), num_users=U, num_items=I)
  constants = module.constants(SimpleNamespace(train=Interactions(np.arange(U), np.arange(U))))
  given = graph.Given({}, {STUDENT: jax.tree.map(jnp.asarray, constants)})
  params, batch = tables(0), a_batch(1)
  plain = make_run(sgd(0.1, 0.0, None))._replace(networks=((STUDENT, module),))
  moved, with_l2 = (run_steps(run, start(run, params), 1, given)[0]
                    for run in (plain, plain._replace(embedding_l2=0.3)))
  assert_tables(with_l2, {k: moved[k] - 0.1 * 0.3 * norms_by_hand(params, batch)[1][k] for k in params})
