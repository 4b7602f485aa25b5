"""Base losses: what a network learns from the data alone, and what is usual for a kind of data.

Each loss takes the network's outputs and the batch and returns one value per example, [B]. In batches of
interactions the first candidate is the positive; in labelled ones `labels` [B, C] says which are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from kd_jax.base import Array, Batch, Dataset, InputError, Outputs
from kd_jax.metrics import label_metrics, ranked

_SCORES = 2**25  # at a time: 128 MB


def bpr(outputs: Outputs, batch: Batch) -> Array:
  """-log sigmoid(positive - negative), mean over negatives. Rendle et al., UAI 2009."""
  del batch
  return jnp.mean(jax.nn.softplus(outputs.scores[:, 1:] - outputs.scores[:, :1]), axis=1)


def bce(outputs: Outputs, batch: Batch) -> Array:
  """Binary cross-entropy of the positive, plus the mean of the negatives'. He et al., WWW 2017."""
  del batch
  positive = optax.sigmoid_binary_cross_entropy(outputs.scores[:, 0], 1.0)
  return positive + jnp.mean(optax.sigmoid_binary_cross_entropy(outputs.scores[:, 1:], 0.0), axis=1)


def softmax(outputs: Outputs, batch: Batch) -> Array:
  """-log softmax of the positive among it and the negatives (sampled softmax)."""
  del batch
  return -jax.nn.log_softmax(outputs.scores)[:, 0]


def cross_entropy(outputs: Outputs, batch: Batch) -> Array:
  """-log softmax of the positive among all items: `outputs` are of all, none is drawn as negative."""
  positive = jnp.take_along_axis(outputs.scores, batch["items"][:, :1], axis=1)[:, 0]
  return jax.nn.logsumexp(outputs.scores, axis=1) - positive


def product_cross_entropy(outputs: Outputs, batch: Batch) -> Array:
  """`cross_entropy` of scores that are products: [B, I] is never whole where large; its gradient computes it again."""
  size, rows = outputs.query.shape[0], max(1, _SCORES // outputs.items.shape[0])
  parts = next(n for n in range(1, size + 1) if size % n == 0 and size // n <= rows)
  if parts == 1:
    return cross_entropy(outputs, batch)
  # Every part has rows of every device's share of a batch.
  cut = lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)
  part = lambda x: cross_entropy(Outputs(x[0] @ outputs.items.T), {"items": x[1]})
  return jax.lax.map(jax.checkpoint(part), (cut(outputs.query), cut(batch["items"]))).T.reshape(size)


ALL_ITEMS = (cross_entropy, product_cross_entropy)  # losses of the scores of all items
OF_PRODUCTS = {cross_entropy: product_cross_entropy}  # for networks whose scores are inner products


EMBEDDINGS = ("user", "item")  # names of the tables that --embedding_l2 keeps small


def embeddings(module) -> tuple[Array, Array]:
  """The tables [U, D] and [I, D] themselves, before a graph propagates them."""
  return tuple(getattr(module, table) for table in EMBEDDINGS)


def embedding_norms(users: Array, items: Array, batch: Batch) -> Array:
  """Half the squared norms of the embeddings of an interaction's user, its item, and its negatives (their mean).

  He et al., SIGIR 2020, https://arxiv.org/abs/2002.02126, eq. 15, of the rows of a batch as in the authors' code.
  """
  norms = lambda rows: jnp.sum(rows**2, axis=-1) / 2
  of_items = norms(items[batch["items"]])
  negatives = jnp.sum(of_items[:, 1:], axis=1) / max(of_items.shape[1] - 1, 1)
  return norms(users[batch["users"]]) + of_items[:, 0] + negatives


def logistic(outputs: Outputs, batch: Batch) -> Array:
  """Binary cross-entropy, mean over all candidates. With one candidate, logistic regression."""
  return jnp.mean(optax.sigmoid_binary_cross_entropy(outputs.scores, batch["labels"]), axis=1)


def label_softmax(outputs: Outputs, batch: Batch) -> Array:
  """-log softmax over all candidates, mean over the true ones (Mahajan et al., ECCV 2018); 0 if none is true."""
  true = batch["labels"]
  found = -jnp.sum(true * jax.nn.log_softmax(outputs.scores), axis=1)
  return found / jnp.maximum(jnp.sum(true, axis=1), 1)


class Task(NamedTuple):
  """What is usual for a kind of data."""

  losses: dict[str, Callable[[Outputs, Batch], Array]]
  loss: str  # where --loss is not given
  monitor: str  # where --monitor is not given
  metrics: tuple[str, ...]  # names, of ranking metrics without their cut-off


LAST = "epoch"  # as --monitor: the last epoch is the best
INTERACTIONS = Task({"bpr": bpr, "bce": bce, "softmax": softmax, "cross_entropy": cross_entropy}, "bpr", "ndcg@10",
                    ranked.NAMES)
TAGS = Task({"bce": logistic, "softmax": label_softmax}, "bce", "map", label_metrics.TAGS)
CLICKS = Task({"bce": logistic}, "bce", "auc", label_metrics.CLICKS)


def of(dataset: Dataset) -> Task:
  """Interactions, or labelled data: tags, or clicks if there is one label."""
  if dataset.contexts is None:
    return INTERACTIONS
  return TAGS if dataset.num_items > 1 else CLICKS


def choose(dataset: Dataset, loss: str, monitor: str) -> tuple[Callable[[Outputs, Batch], Array], str]:
  """(base loss, metric) of --loss and --monitor, or where they are empty the data's own. Raises InputError."""
  task = of(dataset)
  monitored = [name.strip().partition("@")[0] for name in monitor.split(",")]
  for flag, given, choices in (("loss", [loss], task.losses), ("monitor", monitored, (*task.metrics, LAST))):
    for value in given:
      if value and value not in choices:
        raise InputError(f"--{flag}={value}: for {dataset.name} choose from {', '.join(choices)}")
  return task.losses[loss or task.loss], monitor or task.monitor


def better(metric: str, value: float, than: float) -> bool:
  """Whether a value of a metric is better than another."""
  return value < than if metric in label_metrics.LOWER_IS_BETTER else value > than
