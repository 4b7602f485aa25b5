"""A trained recommender as one program file, which runs without the model code.

The program (jax.export: StableHLO with weights) runs on cpu, cuda and tpu. A program is executable code, so its hash is
checked before it is parsed. A few recommendations of the training code are stored with it; `load` compares them with
the output of the program.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from kd_jax.base import InputError
from kd_jax.storage import sealed

KIND = "export"
PLATFORMS = ("cpu", "cuda", "tpu")
_PROGRAM, _GOLDEN = "model.jaxexport", "golden.npz"
_GOLDEN_USERS = 8


def write(
  directory: str | os.PathLike,
  recommend: Callable[[Any], tuple[Any, Any]],
  *,
  user_ids: np.ndarray,
  item_ids: np.ndarray,
  top_k: int,
  metadata: dict[str, Any],
) -> None:
  """Exports `recommend(users [b] int32) -> (item indices [b, top_k] int32, scores [b, top_k])`.

  `recommend` must be traceable by JAX, with its weights as constants, preferably NumPy arrays. `user_ids` [U] and
  `item_ids` [I] are strings. `metadata` is JSON; further entries are added. Raises InputError if an id occurs twice,
  or the path cannot be written; ValueError if `recommend` returns wrong shapes.
  """
  ids = {"user_ids": np.asarray(user_ids, dtype=str), "item_ids": np.asarray(item_ids, dtype=str)}
  for name, values in ids.items():
    if len(np.unique(values)) != len(values):
      raise InputError(f"{directory}: {name} holds an id twice")
  (b,) = export.symbolic_shape("b")
  function = jax.jit(recommend)
  program = export.export(function, platforms=PLATFORMS)(jax.ShapeDtypeStruct((b,), np.int32))
  shapes = [x.shape for x in program.out_avals]
  if shapes != [(b, top_k)] * 2:
    raise ValueError(f"recommend returns shapes {shapes}, expected (b, {top_k}) twice")
  users = np.unique(np.linspace(0, len(ids["user_ids"]) - 1, _GOLDEN_USERS).astype(np.int32))
  items, scores = (np.asarray(x) for x in function(users))
  content = {**metadata, "top_k": top_k, "jax": jax.__version__, "platforms": list(PLATFORMS)}
  with sealed.writing(directory, KIND, content) as temporary:
    (temporary / _PROGRAM).write_bytes(program.serialize())
    for name, values in ids.items():
      np.save(temporary / f"{name}.npy", values, allow_pickle=False)
    np.savez(temporary / _GOLDEN, users=users, items=items, scores=scores)


def load(directory: str | os.PathLike) -> tuple[Callable[..., Any], dict[str, Any]]:
  """(recommend, metadata) of an export. Verifies its files, and compares its output for the stored users.

  `recommend(users, k=None)` takes a list of b user ids, and returns b lists of at most k item ids, best first, and
  their scores [b, k] (-inf if a list is shorter). The default and maximum of k is "top_k" in the metadata. It raises
  InputError for an unknown user, or if k is out of range.

  Raises InputError if a file is damaged, this version of jax cannot read the program, or its output differs.
  """
  metadata = sealed.read(directory, KIND)
  path = os.path.join(directory, "")
  with open(path + _PROGRAM, "rb") as file:
    program = file.read()
  try:
    user_ids, item_ids = (np.load(f"{path}{x}.npy", allow_pickle=False) for x in ("user_ids", "item_ids"))
    with np.load(path + _GOLDEN, allow_pickle=False) as file:
      golden = {name: file[name] for name in ("users", "items", "scores")}
    top_k, version = int(metadata["top_k"]), str(metadata["jax"])
    index = {name: number for number, name in enumerate(user_ids.tolist())}
  except sealed.NOT_ARRAYS as error:
    raise InputError(f"{directory}: not an export: {error}") from None
  call = _deserialize(directory, program, version)
  _replay(directory, call, golden, version)

  def recommend(users: Sequence[str], k: int | None = None) -> tuple[list[list[str]], np.ndarray]:
    k = top_k if k is None else k
    if not 1 <= k <= top_k:
      raise InputError(f"k={k} is outside 1..{top_k}, the length of the exported lists")
    for user in users:
      if user not in index:
        raise InputError(f"unknown user {str(user)[:100]!r}: the export knows {len(index)} users")
    items, scores = _padded(call, np.array([index[user] for user in users], np.int32))
    if items.size and (items.min() < -1 or items.max() >= len(item_ids)):
      raise InputError(f"{directory}: the program names an item outside 0..{len(item_ids) - 1}")
    return [[str(item_ids[i]) for i in row if i >= 0] for row in items[:, :k]], scores[:, :k]

  return recommend, metadata


def latency(
  recommend: Callable[[np.ndarray], Any],
  num_users: int,
  batch_sizes: Sequence[int] = (1, 256),
  *,
  repeats: int = 100,
) -> dict[int, tuple[float, float]]:
  """{batch size: (median, 95th percentile) in milliseconds} of `recommend(users [b] int32)`.

  Each call gets other random users. Times include waiting for the result, but not compilation. For a loaded export:
  `latency(lambda users: recommend(user_ids[users]), len(user_ids))`.
  """
  rng, result = np.random.default_rng(0), {}
  for size in batch_sizes:
    draws = rng.integers(num_users, size=(repeats + 3, size)).astype(np.int32)
    times = []
    for users in draws:
      start = time.perf_counter()
      jax.block_until_ready(recommend(users))
      times.append(1e3 * (time.perf_counter() - start))
    median, slow = np.percentile(times[3:], [50, 95])  # the first calls compile and warm caches
    result[size] = (float(median), float(slow))
  return result


def _deserialize(directory, program, version):
  try:
    exported = export.deserialize(bytearray(program))
  except Exception as error:  # many types of exceptions are possible for a too new or too old format
    raise _unreadable(directory, version, error) from error
  if exported.disabled_safety_checks:
    raise InputError(f"{directory}: the program was exported with safety checks disabled")
  return jax.jit(exported.call)


def _unreadable(directory, version, error):
  reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
  return InputError(f"{directory}: exported by jax {version}, jax {jax.__version__} cannot run it: {reason}")


def _replay(directory, call, golden, version):
  """Compares with the stored output of the training code. Items with almost equal scores may be in another order."""
  try:
    items, scores = (np.asarray(x) for x in call(golden["users"]))
  except Exception as error:
    raise _unreadable(directory, version, error) from error

  def near(x, y):
    return np.isclose(x, y, rtol=1e-4, atol=1e-5)

  if scores.shape == golden["scores"].shape == items.shape == golden["items"].shape:
    tied = np.zeros(scores.shape, bool)
    tied[:, 1:] |= near(golden["scores"][:, 1:], golden["scores"][:, :-1])
    tied[:, :-1] |= tied[:, 1:]
    tied[:, -1] = True  # the last item may be tied with the first unlisted item, which is unknown
    if near(scores, golden["scores"]).all() and ((items == golden["items"]) | tied).all():
      return
  raise InputError(f"{directory}: the program answers differently from the training code (golden users)")


def _padded(call, users):
  """Runs a batch, padded to a power of two: every new batch size needs a compilation."""
  size = 1 << (len(users) - 1).bit_length()
  items, scores = call(np.pad(users, (0, size - len(users))))
  return np.asarray(items)[: len(users)], np.asarray(scores)[: len(users)]
