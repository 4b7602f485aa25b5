"""Neural matrix factorisation (NeuMF)."""

from __future__ import annotations

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.base import InputError, Outputs

SEARCH = "init_std=log(1e-3, 1)"

_BLOCK = 1_500_000  # numbers of a layer that are in memory at a time


class NeuMF(nn.Module):
  """<h, [GMF; MLP]> of a user and an item.

  In tables `user` and `item`, the first dim columns are for GMF, the others for MLP.
  """

  inner_product = False
  num_users: int
  num_items: int
  dim: int
  layers: int
  init_std: float

  def setup(self):
    normal, glorot = nn.initializers.normal(self.init_std), nn.initializers.glorot_uniform()
    widths = [self.dim * 2**n for n in range(self.layers, -1, -1)]  # of the MLP: input, hidden, output
    columns = self.dim + widths[1]
    self.user = self.param("user", normal, (self.num_users, columns))
    self.item = self.param("item", normal, (self.num_items, columns))
    shapes = enumerate(itertools.pairwise(widths))
    self.kernels = [self.param(f"kernel{n}", glorot, shape) for n, shape in shapes]
    self.biases = [self.param(f"bias{n}", normal, (width,)) for n, width in enumerate(widths[1:])]
    self.head = self.param("head", nn.initializers.lecun_uniform(), (2 * self.dim, 1))

  def tables(self):
    """For users and items: representations, and their part of the first hidden layer before its ReLU."""
    of_user, of_item = jnp.split(self.kernels[0], 2)
    user = self.user[:, self.dim :] @ of_user + self.biases[0]  # [U, H]
    return (self.user, user), (self.item, self.item[:, self.dim :] @ of_item)

  def __call__(self, batch, tables=None) -> Outputs:
    users, (table, hidden) = self.tables() if tables is None else tables
    query, own = (x[batch["users"]] for x in users)
    layers = tuple(zip(self.kernels[1:], self.biases[1:], strict=True))

    def score(q, o, t, h):
      return _score(layers, self.head[:, 0], q, o, t, h)

    items = batch.get("items")
    if items is None:  # one user at a time: its layers [I, H] fit in a cache
      return Outputs(jax.lax.map(lambda x: score(*x, table, hidden), (query, own)), query, table)

    def listed(x):
      return score(x[0], x[1], table[x[2]], hidden[x[2]])

    rows = max(1, _BLOCK // (items.shape[1] * hidden.shape[1]))
    if rows >= items.shape[0]:
      return Outputs(jax.vmap(lambda *x: listed(x))(query, own, items), query, table[items])
    scores = jax.lax.map(jax.checkpoint(listed), (query, own, items), batch_size=rows)
    return Outputs(scores, query, table[items])


def _score(layers, head, query, own, table, hidden):
  """Scores [C] of one user, `query` [E] and `own` [H], for candidates `table` [C, E] and `hidden` [C, H]."""
  dim = head.shape[0] // 2
  x = jax.nn.relu(own + hidden)
  for kernel, bias in layers:
    x = jax.nn.relu(x @ kernel + bias)
  return table[:, :dim] @ (head[:dim] * query[:dim]) + x @ head[dim:]


def neumf(num_users: int, num_items: int, dim: int = 8, layers: int = 3, init_std: float = 0.01) -> nn.Module:
  """NeuMF: He, Liao, Zhang, Nie, Hu, Chua, WWW 2017, https://arxiv.org/abs/1708.05031, eq. 12.

  score = <h, [p_GMF * q_GMF; MLP([p_MLP; q_MLP])]>; ReLU layers halve in width down to `dim` (sec. 3.3). The paper
  trains it with `loss=bce` and `negatives=4` and uses sigmoid(score) as probability.

  Args:
    dim: number of predictive factors: width of the GMF embeddings and of the last hidden layer.
    layers: number of hidden layers, at least 1; the MLP embeddings are dim * 2^(layers - 1) wide (sec. 4.1).
    init_std: embeddings and biases ~ N(0, init_std) (sec. 4.1); kernels are Glorot uniform and h is LeCun
      uniform, as in the authors' code.

  Representations are the GMF and MLP embeddings side by side; scores are not inner products of representations. Departs
  from the paper: the GMF and MLP parts are not pre-trained (the paper's NeuMF without pre-training). There is no bias
  beside h, as in eq. 12 and unlike the authors' code. Raises InputError for fewer than one layer.
  """
  if not isinstance(layers, int) or layers < 1:
    raise InputError(f"`model=neumf`: layers={layers}: must be an integer of at least 1")
  return NeuMF(num_users, num_items, dim, layers, init_std)
