"""Two towers over features: user and item vectors fused from ids, categorical fields and content vectors."""

from __future__ import annotations

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Dataset, Features, FeatureSpec, InputError, Outputs
from kd_jax.models._inner_product import inner_product

_FUSIONS = ("gate", "attention")
_ABSENT = -1e9  # a logit whose softmax is exactly zero


class Tower(nn.Module):
  """One side: [E, D] from E rows of what is known of each."""

  count: int
  features: FeatureSpec
  dim: int
  ids: bool
  fusion: str
  hidden: tuple[int, ...]
  id_dropout: float
  init_std: float

  @nn.compact
  def __call__(self, known: dict) -> jnp.ndarray:
    """`known`: "trained" [E] bool, "categories" [E, F], and a content vector [E, width] of each name."""
    normal, found = nn.initializers.normal(self.init_std), []
    if self.ids:
      kept = known["trained"]
      if self.id_dropout and self.has_rng("dropout"):
        kept = kept & jax.random.bernoulli(self.make_rng("dropout"), 1 - self.id_dropout, kept.shape)
      found.append((self.param("ids", normal, (self.count, self.dim)), kept))
    for field, (name, size) in enumerate(zip(self.features.fields, self.features.sizes, strict=True)):
      table = self.param(f"field_{name}", normal, (size, self.dim))
      found.append((table[known["categories"][:, field]], jnp.ones(self.count, bool)))
    for name, width in self.features.vectors:
      found.append((self.project(name, width, known[name]), jnp.any(known[name] != 0, axis=1)))
    present = jnp.stack([there for _, there in found], axis=1)  # [E, M]
    parts = jnp.stack([part for part, _ in found], axis=1) * present[..., None]  # [E, M, D]
    return parts[:, 0] if len(found) == 1 else jnp.sum(self.weights(parts, present)[..., None] * parts, axis=1)

  def project(self, name, width, x):
    """A content vector in the towers' space: linear, after hidden layers if there are some."""
    sizes = list(itertools.pairwise((width, *self.hidden, self.dim)))
    for n, shape in enumerate(sizes):
      x = x @ self.param(f"{name}_kernel{n}", nn.initializers.lecun_normal(), shape)
      x = x + self.param(f"{name}_bias{n}", nn.initializers.normal(self.init_std), shape[1:])
      x = x if n == len(sizes) - 1 else jax.nn.relu(x)
    return x

  def weights(self, parts, present):
    """The weight [E, M] of every part."""
    modalities = parts.shape[1]
    lecun = nn.initializers.lecun_normal()
    if self.fusion == "gate":
      kernel = self.param("gate_kernel", lecun, (modalities * self.dim, modalities))
      bias = self.param("gate_bias", nn.initializers.normal(self.init_std), (modalities,))
      return jax.nn.sigmoid(parts.reshape(self.count, -1) @ kernel + bias)
    logits = jnp.einsum("emd,md->em", parts, self.param("attention", lecun, (modalities, self.dim)))
    return jax.nn.softmax(jnp.where(present, logits, _ABSENT), axis=1)


class TwoTower(nn.Module):
  """The product of a user's and an item's fused vector."""

  inner_product = True
  num_users: int
  num_items: int
  user_features: FeatureSpec
  item_features: FeatureSpec
  dim: int
  ids: bool
  fusion: str
  hidden: tuple[int, ...]
  id_dropout: float
  init_std: float

  def setup(self):
    own = (self.dim, True, self.fusion, self.hidden, 0.0, self.init_std)
    self.user = Tower(self.num_users, self.user_features, *own)
    content = bool(self.item_features.fields or self.item_features.vectors)
    self.item = Tower(self.num_items, self.item_features, self.dim, self.ids, self.fusion, self.hidden,
                      self.id_dropout if content else 0.0, self.init_std)

  def constants(self, dataset: Dataset) -> dict[str, dict[str, np.ndarray]]:
    """What is known of each user and each item; content vectors at unit length."""
    return {"user": _known(dataset.user_features, dataset.train.users, self.num_users),
            "item": _known(dataset.item_features, dataset.train.items, self.num_items)}

  def tables(self):
    return tuple(tower(self.get_variable("constants", side)) for side, tower in
                 (("user", self.user), ("item", self.item)))

  def __call__(self, batch, tables=None) -> Outputs:
    user, item = self.tables() if tables is None else tables
    return inner_product(user[batch["users"]], item, batch.get("items"))


def _known(features: Features | None, trained, count) -> dict[str, np.ndarray]:
  known = {"trained": np.bincount(trained, minlength=count) > 0}
  if features is None:
    return known
  if features.categories is not None:
    known["categories"] = features.categories
  unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
  return known | {name: unit(x) for name, x in features.vectors.items()}


def two_tower(
    num_users: int, num_items: int, user_features: FeatureSpec | None = None,
    item_features: FeatureSpec | None = None, dim: int = 64, ids: bool = True, fusion: str = "gate",
    hidden: tuple[int, ...] = (), id_dropout: float = 0.5, init_std: float = 0.1) -> nn.Module:
  """Two-tower model with content: ids may be left out in training, as in DropoutNet (Volkovs, Yu, Poutanen, NIPS 2017).

  score = <p_u, q_i>; p and q are fused from parts e_1 .. e_M [D]: an embedding of the id, one of every
  categorical field, and a projection of every content vector.

  gate: sum of g_m e_m with g_m = sigmoid(w_m . [e_1; ..; e_M] + b_m), one gate for each part.
  attention: sum of a_m e_m with a = softmax of <a learnt vector of part m, e_m> over the parts that are there.

  A part that is not there is zero: the content of an item whose vector is all zeros, and the id of a user
  or item without training interactions, which says nothing. So cold items are scored by their content.

  Args:
    dim: width D of parts and of both representations.
    ids: whether items have an embedding of their id; False: content alone. Users always have one.
    fusion: gate or attention; without effect where there is a single part.
    hidden: widths of ReLU layers between a content vector and its projection; empty: linear.
    id_dropout: in training, the probability that the id of an item is left out of a batch, so that its
      content learns to speak for it; without effect where items have no content.
    init_std: embeddings and biases ~ N(0, init_std), kernels are LeCun normal.

  Departs from DropoutNet: ids are embeddings learnt with the rest, not the factors of a trained model, and
  they are dropped alone, for items. Raises InputError for a wrong argument, and
  for ids=False without features of items.
  """
  none = FeatureSpec((), (), ())
  user_features, item_features = user_features or none, item_features or none
  if fusion not in _FUSIONS:
    raise InputError(f"--model=two_tower: fusion={fusion!r}: choose from {', '.join(_FUSIONS)}")
  if not 0 <= id_dropout < 1:
    raise InputError(f"--model=two_tower: id_dropout={id_dropout}: at least 0 and less than 1")
  if not all(isinstance(n, int) and n > 0 for n in hidden):
    raise InputError(f"--model=two_tower: hidden={hidden}: widths of layers, as (128,), or () for none")
  if not ids and not item_features.fields and not item_features.vectors:
    raise InputError("--model=two_tower: ids=False leaves nothing of an item: the data has no features of items; "
                     "give --features=FILE.npz")
  return TwoTower(num_users, num_items, user_features, item_features, dim, ids, fusion, hidden, id_dropout, init_std)
