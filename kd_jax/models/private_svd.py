"""A truncated SVD under differential privacy, in closed form: a teacher whose tables may leave the house."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import numpy as np
import scipy.sparse

from kd_jax.base import Dataset, InputError, Outputs
from kd_jax.models import _accounting
from kd_jax.models._inner_product import inner_product

_RELEASES = 2  # the co-occurrences, then the vectors of users
_MOST_ITEMS = 20_000  # of which all eigenvectors of a matrix [I, I] are computed
NEIGHBOURS = "the same users and items; one user has one training interaction more or less"


class PrivateSVD(nn.Module):
  """The inner product of tables `user` [U, D] and `item` [I, D], both released with noise."""

  inner_product = True
  num_users: int
  num_items: int
  dim: int
  epsilon: float
  delta: float
  cap: int

  def setup(self):
    self.user = self.param("user", nn.initializers.zeros, (self.num_users, self.dim))
    self.item = self.param("item", nn.initializers.zeros, (self.num_items, self.dim))

  def fit(self, dataset: Dataset) -> dict[str, np.ndarray]:
    """Noise is drawn from the operating system: from a known seed, anyone could subtract it."""
    if self.num_items > _MOST_ITEMS:
      raise InputError(f"`model=private_svd`: {self.num_items} items are too many: it decomposes items x items")
    ones, shape = np.ones(len(dataset.train.users)), (self.num_users, self.num_items)
    seen = scipy.sparse.csr_array((ones, (dataset.train.users, dataset.train.items)), shape)
    seen.data[:] = 1  # an interaction that occurs twice is one
    noise = _accounting.noise_multiplier(self.epsilon, self.delta, _RELEASES)
    item = directions(co_occurrences(seen, self.cap, noise, rng := np.random.default_rng()), self.dim)
    user = vectors_of_users(seen, item, noise, rng)
    return {"user": user.astype(np.float32), "item": item.astype(np.float32)}

  def privacy(self) -> dict[str, Any]:
    """What is private, and how it was counted, as JSON values."""
    noise = _accounting.noise_multiplier(self.epsilon, self.delta, _RELEASES)
    return {"mechanism": "Gaussian", "epsilon": self.epsilon, "delta": self.delta, "neighbours": NEIGHBOURS,
            "noise_multipliers": [noise] * _RELEASES,
            "spent": _accounting.spent([noise] * _RELEASES, self.delta), "counted_by": "dp_accounting"}

  def tables(self):
    return self.user, self.item

  def __call__(self, batch, tables=None) -> Outputs:
    user, item = self.tables() if tables is None else tables
    return inner_product(user[batch["users"]], item, batch.get("items"))


def co_occurrences(seen: scipy.sparse.csr_array, cap: int, noise: float, rng: np.random.Generator) -> np.ndarray:
  """sum_u x_u x_u^T / max(n_u, cap) + noise, [I, I] and symmetric; `seen` [U, I] has rows x_u with n_u ones.

  One interaction more changes the upper triangle by at most 1 / sqrt(cap) in L2. If n_u <= cap after it, n_u entries
  change by 1 / cap. If n_u > cap, n_u entries become 1 / n_u, and n_u (n_u - 1) / 2 change from 1 / (n_u - 1) to
  1 / n_u: together 1 / n_u + 1 / (2 n_u (n_u - 1)) squared, which is at most 1 / cap.
  """
  weights = 1 / np.maximum(seen.sum(axis=1), cap)
  found = (seen.T @ (scipy.sparse.diags_array(weights) @ seen)).toarray()
  upper = np.triu(rng.normal(0, noise / math.sqrt(cap), found.shape))
  return found + upper + np.triu(upper, 1).T


def directions(matrix: np.ndarray, dim: int) -> np.ndarray:
  """The eigenvectors [I, D] of the largest eigenvalues of a symmetric matrix [I, I], the largest first."""
  return np.linalg.eigh(matrix)[1][:, ::-1][:, :dim]


def vectors_of_users(seen: scipy.sparse.csr_array, item: np.ndarray, noise: float,
                     rng: np.random.Generator) -> np.ndarray:
  """E[V^T x_u | V^T x_u + noise] for all users, [U, D], with `item` = V [I, D].

  One interaction more changes V^T x_u by a row of V, at most by the longest one in L2. The expectation takes vectors of
  users as normal, with second moments estimated from the noisy ones: it reads nothing else.
  """
  std = noise * np.linalg.norm(item, axis=1).max()
  noisy = seen @ item + rng.normal(0, std, (seen.shape[0], item.shape[1]))
  moments = noisy.T @ noisy / len(noisy)
  values, vectors = np.linalg.eigh(moments)
  return noisy @ (vectors * np.maximum(1 - std**2 / np.maximum(values, np.finfo(float).tiny), 0)) @ vectors.T


def private_svd(num_users: int, num_items: int, dim: int = 16, epsilon: float = 4.0, delta: float = 1e-5,
                cap: int = 20) -> nn.Module:
  """Truncated SVD with the Gaussian mechanism: Dwork, Talwar, Thakurta, Zhang: Analyze Gauss, STOC 2014; for
  recommenders McSherry, Mironov, KDD 2009, https://doi.org/10.1145/1557019.1557090.

  score = <V^T x_u + noise, v_i>: x_u [I] is 1 for the user's training items, else 0, and V [I, D] are the eigenvectors
  of the largest eigenvalues of C = sum_u x_u x_u^T / max(n_u, cap) + noise, n_u the number of the user's items. Without
  noise it is PureSVD (Cremonesi et al., RecSys 2010) with weights of users.

  Both tables, and all that is computed from them alone, are (epsilon, delta)-differentially private together; for data
  sets with the same users and items, in which one user has one training interaction more or less. docs/privacy.md says
  what this does not protect.

  Args:
    dim: width of the tables.
    epsilon: of all releases together, by add or remove of one interaction; half of it, in 1 / variance, for C.
    delta: must be much smaller than 1 / interactions.
    cap: users with more items count less: one interaction changes C by at most 1 / sqrt(cap).

  Departs from the papers: weights and neighbours are of interactions, not of users; no means are subtracted; vectors of
  users are released, too, and are shrunk to their expectation. Every fit draws other noise, and spends epsilon anew.
  Fitting needs the extra `privacy`.
  """
  return PrivateSVD(num_users, num_items, min(dim, num_items), epsilon, delta, cap)
