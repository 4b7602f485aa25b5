"""Two towers over features: they fuse user and item vectors from ids, categorical fields and content vectors."""

from __future__ import annotations

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax.base import Dataset, Features, FeatureSpec, InputError, Outputs
from kd_jax.models._inner_product import inner_product

SEARCH = "id_dropout=uniform(0.0, 0.9); init_std=log(1e-3, 1)"

_FUSIONS = ("gate", "attention")
_ABSENT = -1e9  # a logit whose softmax is exactly zero


class Tower(nn.Module):
  """The tower of one side: representations [E, D] of E users or items from their ids and features."""

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
    """`known` has "trained" [E] bool, "categories" [E, F], and each content vector [E, width] under its name."""
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
    """Projects a content vector to width D: linear, after hidden layers if there are any."""
    sizes = list(itertools.pairwise((width, *self.hidden, self.dim)))
    for n, shape in enumerate(sizes):
      x = x @ self.param(f"{name}_kernel{n}", nn.initializers.lecun_normal(), shape)
      x = x + self.param(f"{name}_bias{n}", nn.initializers.normal(self.init_std), shape[1:])
      x = x if n == len(sizes) - 1 else jax.nn.relu(x)
    return x

  def weights(self, parts, present):
    """The weight [E, M] of every part in the fusion."""
    modalities = parts.shape[1]
    lecun = nn.initializers.lecun_normal()
    if self.fusion == "gate":
      kernel = self.param("gate_kernel", lecun, (modalities * self.dim, modalities))
      bias = self.param("gate_bias", nn.initializers.normal(self.init_std), (modalities,))
      return jax.nn.sigmoid(parts.reshape(self.count, -1) @ kernel + bias)
    logits = jnp.einsum("emd,md->em", parts, self.param("attention", lecun, (modalities, self.dim)))
    return jax.nn.softmax(jnp.where(present, logits, _ABSENT), axis=1)


class TwoTower(nn.Module):
  """The inner product of a user's and an item's fused vector."""

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
    """Features of all users and items, and which have interactions; content vectors have length 1."""
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

  def unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)

  return known | {name: unit(x) for name, x in features.vectors.items()}


def two_tower(
    num_users: int, num_items: int, user_features: FeatureSpec | None = None,
    item_features: FeatureSpec | None = None, dim: int = 64, ids: bool = True, fusion: str = "gate",
    hidden: tuple[int, ...] = (), id_dropout: float = 0.5, init_std: float = 0.1) -> nn.Module:
  """Two-tower model with content: ids may be left out in training, as in DropoutNet (Volkovs, Yu, Poutanen, NIPS 2017).

  score = <p_u, q_i>. p and q are fused from parts e_1 .. e_M [D]: an embedding of the id, an embedding of every
  categorical field, and a projection of every content vector.

  gate: sum of g_m e_m with g_m = sigmoid(w_m . [e_1; ..; e_M] + b_m), one gate for each part.
  attention: sum of a_m e_m with a = softmax of <a learned vector of part m, e_m> over the parts that are present.

  A missing part is zero. The content of an item is missing if its vector is all zeros; the id of a user or item is
  missing if it has no training interactions, because its embedding is untrained. So cold items are scored by their
  content.

  Args:
    dim: width D of parts and of both representations.
    ids: whether items have an embedding of their id; False: content only. Users always have one.
    fusion: "gate" or "attention"; without effect if there is only one part.
    hidden: widths of ReLU layers between a content vector and its projection; empty: linear.
    id_dropout: in training, the probability that the id of an item is left out of a batch, so that the model learns
      to score items by content; without effect if items have no content.
    init_std: embeddings and biases ~ N(0, init_std), kernels are LeCun normal.

  Departs from DropoutNet: ids are embeddings that are learned together with the other parameters, not factors of a
  trained model; only ids are dropped, and only for items. Raises InputError for a wrong argument, and for ids=False if
  the data has no item features.
  """
  none = FeatureSpec((), (), ())
  user_features, item_features = user_features or none, item_features or none
  if fusion not in _FUSIONS:
    raise InputError(f"`model=two_tower`: fusion={fusion!r}: choose from {', '.join(_FUSIONS)}")
  if not 0 <= id_dropout < 1:
    raise InputError(f"`model=two_tower`: id_dropout={id_dropout}: must be at least 0 and less than 1")
  if not all(isinstance(n, int) and n > 0 for n in hidden):
    raise InputError(f"`model=two_tower`: hidden={hidden}: give widths of layers, e.g. (128,), or () for none")
  if not ids and not item_features.fields and not item_features.vectors:
    raise InputError("`model=two_tower`: ids=False leaves nothing to describe items: the data has no item features; "
                     "give `features=FILE.npz`")
  return TwoTower(num_users, num_items, user_features, item_features, dim, ids, fusion, hidden, id_dropout, init_std)
