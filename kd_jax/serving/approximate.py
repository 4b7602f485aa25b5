"""An approximate index of item vectors, for inner products: HNSW (Malkov, Yashunin, TPAMI 2020), by faiss."""

from __future__ import annotations

import pathlib

import numpy as np

from kd_jax.base import InputError

_LINKS, _BUILD, _SEARCH = 16, 200, 200  # M, ef_construction, ef of the paper


class Index:
  """The vectors [I, D] of items, to be searched by inner product."""

  def __init__(self, faiss, index):
    self._faiss, self._index = faiss, index

  def search(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """About the `k` items with the largest inner products with `query` [D], best first, and the products."""
    k = min(k, self._index.ntotal)
    parameters = self._faiss.SearchParametersHNSW(efSearch=max(_SEARCH, k))
    products, items = self._index.search(query[None], k, params=parameters)
    found = items[0] >= 0
    return items[0][found], products[0][found]


def build(vectors: np.ndarray, path: pathlib.Path) -> Index:
  """Writes an index of vectors [I, D]. One thread, so that equal vectors give equal files."""
  faiss = _faiss()
  index = faiss.IndexHNSWFlat(vectors.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT)
  index.hnsw.efConstruction = _BUILD
  threads = faiss.omp_get_max_threads()
  faiss.omp_set_num_threads(1)
  index.add(np.ascontiguousarray(vectors, np.float32))
  faiss.omp_set_num_threads(threads)
  path.write_bytes(faiss.serialize_index(index).tobytes())
  return Index(faiss, index)


def read(path: pathlib.Path, count: int, width: int) -> Index:
  """Reads an index of `count` vectors. Raises InputError if it is another one. Verify the file's hash first."""
  faiss = _faiss()
  try:
    index = faiss.deserialize_index(np.frombuffer(path.read_bytes(), np.uint8))
  except RuntimeError as error:
    raise InputError(f"{path}: faiss cannot read it: {error}") from None
  if not isinstance(faiss.downcast_index(index), faiss.IndexHNSWFlat) or (index.ntotal, index.d) != (count, width):
    raise InputError(f"{path}: holds {index.ntotal} vectors of width {index.d}, and the export has {count} of {width}")
  return Index(faiss, index)


def recall(index: Index, queries: np.ndarray, vectors: np.ndarray, k: int) -> float:
  """The mean share of the `k` items with the largest products that the index finds, for queries [n, D]."""
  shares = []
  for query in queries:
    exact = np.argpartition(-(vectors @ query), k - 1)[:k]
    shares.append(len(np.intersect1d(exact, index.search(query, k)[0])) / k)
  return float(np.mean(shares))


def _faiss():
  try:
    import faiss
  except ImportError:
    raise InputError("`index=hnsw`: needs the extra index: pip install 'kd_jax[index]'") from None
  return faiss
