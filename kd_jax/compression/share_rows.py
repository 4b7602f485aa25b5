"""Weight sharing: users and items share rows of a smaller table. Only for tables of users and items."""

from __future__ import annotations

import numpy as np

from kd_jax.base import Compressor

_ROUNDS = 50  # of alternating least squares
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # of Fibonacci hashing: 2^64 / golden ratio


def hashed(share: float = 0.25) -> Compressor:
  """Row i becomes row hash(i) of a table with `share` of the rows: the mean of all rows with this hash.

  The mean is weighted by training interactions + 1. Weinberger, Dasgupta, Langford, Smola, Attenberg: Feature hashing
  for large scale multitask learning, ICML 2009.
  """

  def packed(x, popularity):
    buckets = max(1, round(share * len(x)))
    place, weights = places(len(x), buckets), popularity + 1.0
    sums, total = np.zeros((buckets, x.shape[1])), np.bincount(place, weights, minlength=buckets)
    np.add.at(sums, place, weights[:, None] * x)
    return {"rows": (sums / np.maximum(total, 1)[:, None]).astype(np.float32)}

  return Compressor(lambda matrices, popularity: {name: packed(matrices[name], counts)
                                                  for name, counts in popularity.items() if share < 1},
                    lambda parts, shape: parts["rows"][places(shape[0], len(parts["rows"]))])


def places(count: int, buckets: int) -> np.ndarray:
  """The bucket of every row 0 .. count - 1, by Fibonacci hashing (Knuth, vol. 3, 6.4). Nothing is stored."""
  hashes = np.arange(count, dtype=np.uint64) * _GOLDEN  # modulo 2^64
  return ((hashes >> np.uint64(32)) * np.uint64(buckets) >> np.uint64(32)).astype(np.int64)


def quotient_remainder(remainders: int = 64) -> Compressor:
  """Row i becomes Q[i // m] + R[i % m], with m = `remainders`: all rows differ, though few are stored.

  Q and R are the least-squares fit to the table. For tables with more rows than that. Shi, Mudigere, Naumov, Yang:
  Compositional embeddings using complementary partitions, KDD 2020, with the operation "add".
  """

  def packed(x):
    quotient, remainder = np.divmod(np.arange(len(x)), remainders)
    q, r = np.zeros((quotient[-1] + 1, x.shape[1])), np.zeros((remainders, x.shape[1]))
    for _ in range(_ROUNDS):
      q = _mean_by(quotient, x - r[remainder], len(q))
      r = _mean_by(remainder, x - q[quotient], len(r))
    return {"quotients": q.astype(np.float32), "remainders": r.astype(np.float32)}

  def unpack(parts, shape):
    quotient, remainder = np.divmod(np.arange(shape[0]), remainders)
    return parts["quotients"][quotient] + parts["remainders"][remainder]

  return Compressor(lambda matrices, popularity: {name: packed(matrices[name]) for name in popularity if (
      -(-len(matrices[name]) // remainders) + remainders < len(matrices[name]))}, unpack)


def _mean_by(group, x, count):
  sums = np.zeros((count, x.shape[1]))
  np.add.at(sums, group, x)
  return sums / np.maximum(np.bincount(group, minlength=count), 1)[:, None]
