"""An export answers as the training code does, in a process that knows nothing of it, or is refused."""

import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax.base import InputError
from kd_jax.serving import program
from kd_jax.storage import sealed

NUM_USERS, NUM_ITEMS, DIM, K = 30, 50, 4, 6
USERS = np.array([f"u{i}" for i in range(NUM_USERS)])
ITEMS = np.array([f"item {i}" for i in range(NUM_ITEMS)])


def make(seed=0):
  rng = np.random.default_rng(seed)
  users, items = (rng.normal(size=(n, DIM)).astype(np.float32) for n in (NUM_USERS, NUM_ITEMS))
  seen = rng.random((NUM_USERS, NUM_ITEMS)) < 0.2
  seen[5] = True  # nobody is left to recommend to user 5
  seen[5, :2] = False

  def recommend(index):
    scores = jnp.asarray(users)[index] @ jnp.asarray(items).T
    scores, found = jax.lax.top_k(jnp.where(jnp.asarray(seen)[index], -jnp.inf, scores), K)
    return jnp.where(jnp.isfinite(scores), found, -1).astype(jnp.int32), scores

  return recommend


def write(directory, recommend=None, **changed):
  arguments = {"user_ids": USERS, "item_ids": ITEMS, "top_k": K, "metadata": {"model": "mf(dim=4)"}} | changed
  program.write(directory, recommend or make(), **arguments)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  directory = tmp_path_factory.mktemp("export") / "e"
  write(directory)
  return directory


@pytest.fixture
def copy(written, tmp_path):
  return shutil.copytree(written, tmp_path / "e")


def resign(directory, **changed):
  """Makes the manifest fit the changed files, as somebody who means harm would."""
  metadata = json.loads((directory / "manifest.json").read_text())["metadata"] | changed
  with sealed.writing(directory, program.KIND, metadata) as temporary:
    for path in directory.glob("*.np?"):
      shutil.copy(path, temporary)
    shutil.copy(directory / "model.jaxexport", temporary)


FRESH = """
import json, sys
from kd_jax.serving import program
recommend, metadata = program.load(sys.argv[1])
assert metadata["model"] == "mf(dim=4)"
items, scores = recommend([f"u{i}" for i in range(30)])
loaded = [name for name in sys.modules if name.split(".")[0] in ("flax", "orbax", "optax", "kd_jax")]
print(json.dumps([items, scores.tolist(), sorted(loaded)]))
"""


def test_fresh_process_without_model_code_gives_the_same(written):
  out = subprocess.run([sys.executable, "-c", FRESH, written], capture_output=True, text=True, check=True)
  items, scores, loaded = json.loads(out.stdout)
  assert loaded == ["kd_jax", "kd_jax.base", "kd_jax.serving", "kd_jax.serving.program", "kd_jax.storage",
                    "kd_jax.storage.sealed"]
  expected, expected_scores = (np.asarray(x) for x in jax.jit(make())(np.arange(NUM_USERS)))
  assert items == [[f"item {i}" for i in row if i >= 0] for row in expected]
  assert len(items[5]) == 2
  np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)


def test_requests(written):
  recommend, metadata = program.load(written)
  assert metadata["jax"] == jax.__version__ and metadata["top_k"] == K
  full = recommend(USERS.tolist())
  for users in (["u3"], ["u9", "u9", "u0"], USERS[::-1].tolist()):
    items, scores = recommend(users, k=2)
    assert items == [full[0][int(user[1:])][:2] for user in users]
    assert scores.shape == (len(users), 2)
  assert recommend([])[0] == [] and recommend([])[1].shape == (0, K)
  for k in (0, K + 1):
    with pytest.raises(InputError, match=f"k={k} is outside 1..{K}"):
      recommend(["u1"], k)
  with pytest.raises(InputError, match=r"unknown user 'u1\\n': the export knows 30"):
    recommend(["u1", "u1\n"])


def test_another_program_than_the_golden_answers_is_refused(copy, tmp_path):
  write(tmp_path / "other", make(1))
  os.replace(tmp_path / "other" / "model.jaxexport", copy / "model.jaxexport")
  resign(copy)
  with pytest.raises(InputError, match="answers differently"):
    program.load(copy)


@pytest.mark.parametrize(
  "items, scores, accepted",
  [
    ([4, 1, 2, 3], [9, 5, 5, 1], True),
    ([4, 2, 1, 3], [9, 5, 5, 1], True),  # items 1 and 2 are tied
    ([4, 1, 2, 7], [9, 5, 5, 1], True),  # 7 may be tied with 3
    ([1, 4, 2, 3], [9, 5, 5, 1], False),
    ([7, 1, 2, 3], [9, 5, 5, 1], False),
    ([4, 1, 2, 3], [9, 5, 5, 1.01], False),
    ([4, 1, 2, 3], [9, 5, 5, np.nan], False),
    ([4, 1, 2], [9, 5, 5], False),
  ],
)
def test_only_near_ties_may_change_places(items, scores, accepted):
  golden = {"users": None, "items": np.array([[4, 1, 2, 3]]), "scores": np.array([[9, 5, 4.999999, 1]])}

  def replay():
    program._replay("directory", lambda _: (np.array([items]), np.array([scores])), golden, "1")

  if accepted:
    return replay()
  with pytest.raises(InputError, match="answers differently"):
    replay()


def test_damage_is_refused_before_parsing(copy, monkeypatch):
  monkeypatch.setattr(program.export, "deserialize", lambda *_: pytest.fail("parsed"))
  data = (copy / "model.jaxexport").read_bytes()
  for bad in (data[:-1], data[:100] + bytes([data[100] ^ 1]) + data[101:]):
    (copy / "model.jaxexport").write_bytes(bad)
    with pytest.raises(InputError, match=r"model\.jaxexport is"):
      program.load(copy)


def test_a_program_of_a_newer_jax_is_one_line(copy):
  (copy / "model.jaxexport").write_bytes(b"\x10" * 200)
  resign(copy, jax="99.1")
  with pytest.raises(InputError, match=r"exported by jax 99\.1, jax .* cannot run it") as error:
    program.load(copy)
  assert "\n" not in str(error.value)


def test_a_program_without_safety_checks_is_refused(copy):
  disabled = [jax.export.DisabledSafetyCheck.platform()]
  unchecked = jax.export.export(jax.jit(make()), disabled_checks=disabled)(np.zeros(8, np.int32))
  (copy / "model.jaxexport").write_bytes(unchecked.serialize())
  resign(copy)
  with pytest.raises(InputError, match="safety checks disabled"):
    program.load(copy)


def test_pickled_ids_are_refused(copy):
  np.save(copy / "user_ids.npy", np.array(["x", None], object), allow_pickle=True)
  resign(copy)
  with pytest.raises(InputError, match="not an export"):
    program.load(copy)


def test_wrong_calls_are_refused(tmp_path):
  with pytest.raises(InputError, match="user_ids holds an id twice"):
    write(tmp_path / "e", user_ids=np.array(["a"] * NUM_USERS))
  with pytest.raises(ValueError, match=r"expected \(b, 7\)"):
    write(tmp_path / "e", top_k=7)
  assert os.listdir(tmp_path) == []


def test_latency():
  calls = []
  result = program.latency(calls.append, 10, (1, 4), repeats=5)
  assert list(result) == [1, 4] and all(0 <= median <= slow for median, slow in result.values())
  assert {x.shape for x in calls} == {(1,), (4,)} and all(x.dtype == np.int32 and x.max() < 10 for x in calls)
