"""A small export that is written without training, for tests of serving."""

import datetime
import json

import jax
import numpy as np

from kd_jax.serving import as_onnx, as_stablehlo, layout
from kd_jax.storage import sealed

USERS, ITEMS, WIDTH, LISTED = 40, 60, 5, 10


def tables(seed=0, counts=(USERS, ITEMS)):
  """Vectors of users and of items."""
  rng = np.random.default_rng(seed)
  return tuple(rng.normal(size=(n, WIDTH)).astype(np.float32) for n in counts)


def histories():
  """{user: items}: user 5 has all but two items, user 6 none."""
  rng = np.random.default_rng(9)
  found = {user: rng.choice(ITEMS, rng.integers(3, 9), replace=False).tolist() for user in range(USERS)}
  return found | {5: list(range(2, ITEMS)), 6: []}


def best(scores, excluded, k):
  """The k best items that are not excluded, by a sort in Python; no two scores are equal."""
  left = [item for item in range(len(scores)) if item not in set(excluded)]
  return sorted(left, key=lambda item: -scores[item])[:k]


def write_export(directory, seed=0, titles=None, users="u{}", counts=(USERS, ITEMS)):
  """Writes an export of random vectors, with ids u0, ... and i0, ..., and the formats stablehlo, onnx, npz."""
  user, item = tables(seed, counts)
  known, scores = histories(), user[:4] @ item.T
  golden = {"users": np.arange(4, dtype=np.int32), "items": np.array(
      [best(scores[u], known[u], LISTED) for u in range(4)], np.int32)}
  golden["scores"] = np.take_along_axis(scores, golden["items"], axis=1)
  rows = [known.get(u, []) for u in range(counts[0])]
  arrays = {"history_starts": np.cumsum([0, *map(len, rows)]), "history_items": np.concatenate([*rows, []]),
            "popularity": np.bincount(np.concatenate(rows).astype(int), minlength=counts[1]),
            "priority": np.random.default_rng(3).permutation(counts[1])}
  metadata = {"version": layout.VERSION, "formats": list(layout.FORMATS), "inputs": "query", "length": None,
              "model": "mf(dim=5)", "data": "random()", "synthetic": True, "history": "train", "exclude_seen": True,
              "compress": "", "weights": ["user", "item"], "program": ["item"], "vectors": "item", "index": None,
              "written": datetime.date.today().isoformat(), "jax": jax.__version__}
  with sealed.writing(directory, layout.KIND, metadata) as folder:
    weights = {"user": user, "item": item}
    as_stablehlo.write(folder / "program.stablehlo", lambda weights, query: query @ weights["item"].T, weights,
                       {"query": (f"b, {WIDTH}", np.float32)})
    layout.write_ids(folder, [users.format(u) for u in range(counts[0])], [f"i{i}" for i in range(counts[1])],
                     titles or {})
    layout.write_arrays(folder, weights, arrays, golden)
    as_onnx.write(folder, weights)
  return directory


def seal_again(directory, **changed):
  """Makes the manifest fit the files as they are now, as somebody who means harm would."""
  metadata = json.loads((directory / "manifest.json").read_text())["metadata"] | changed
  files = {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
  with sealed.writing(directory, layout.KIND, metadata) as folder:
    for path, content in files.items():
      if path.name not in ("manifest.json", "manifest.sha256"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(content)
