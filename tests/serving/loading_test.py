"""Exports that are damaged, truncated, swapped, forged or expired are refused, and never crash their reader."""

import datetime
import os
import shutil
import stat
import time

import jax
import numpy as np
import pytest
import small_export as small

from kd_jax import serving
from kd_jax.base import InputError
from kd_jax.fault import csv_files
from kd_jax.serving import approximate, as_stablehlo, golden, layout, loading
from kd_jax.storage import sealed


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  return small.write_export(tmp_path_factory.mktemp("written") / "e")


@pytest.fixture
def copy(written, tmp_path):
  return shutil.copytree(written, tmp_path / "e")


@pytest.fixture
def never_run(monkeypatch):
  """Fails the test if anything of an export is parsed or run."""
  for owner, name in ((loading, "_try"), (loading, "_score"), (as_stablehlo.export, "deserialize"), (np, "load")):
    monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("run"))


def flipped(content):
  return content[:-20] + bytes([content[-20] ^ 1]) + content[-19:]


@pytest.mark.parametrize("damage", [flipped, lambda content: content[:-1], lambda content: content + b"\0"],
                         ids=["flipped", "truncated", "longer"])
def test_damage_of_any_file_is_refused_before_anything_runs(damage, copy, never_run):
  for path in sorted(path for path in copy.rglob("*") if path.is_file()):
    before = path.read_bytes()
    path.write_bytes(damage(before))
    with pytest.raises(InputError, match=str(path.parent)):
      serving.load(copy)
    path.write_bytes(before)


def test_swapped_missing_and_added_files_are_refused(copy, tmp_path, never_run):
  other = small.write_export(tmp_path / "other", seed=1)
  name = copy / "weights" / "item.npy"
  shutil.copy(other / "weights" / "item.npy", name)
  with pytest.raises(InputError, match=r"item\.npy is"):
    serving.load(copy)
  name.unlink()
  with pytest.raises(InputError, match=r"item\.npy: missing"):
    serving.load(copy)
  shutil.copytree(other, copy, dirs_exist_ok=True)
  (copy / "more").write_text("x")
  with pytest.raises(InputError, match="more: not listed"):
    serving.load(copy)


@pytest.mark.parametrize("format", layout.FORMATS)
def test_other_weights_than_those_of_the_stored_answers_are_refused(format, copy, tmp_path):
  other = small.write_export(tmp_path / "other", seed=1)
  shutil.copy(other / "weights" / "item.npy", copy / "weights" / "item.npy")
  small.seal_again(copy)
  with pytest.raises(InputError, match="answers differently from the training code"):
    serving.load(copy, format, trial=False)


def test_an_expired_program_is_refused_before_it_runs(copy, monkeypatch):
  old = (datetime.date.today() - datetime.timedelta(days=181)).isoformat()
  small.seal_again(copy, written=old, jax="0.1")
  monkeypatch.setattr(loading, "_score", lambda *_: pytest.fail("run"))
  with pytest.raises(InputError, match=r"expired: exported 181 days ago by jax 0\.1"):
    serving.load(copy, "stablehlo")
  monkeypatch.undo()
  assert serving.load(copy, "npz").recommend("u1").items  # arrays do not expire
  small.seal_again(copy, jax=jax.__version__)
  assert serving.load(copy, "stablehlo", trial=False).recommend("u1").items  # this version of jax wrote it


@pytest.mark.parametrize("format", ["stablehlo", "onnx"])
def test_a_forged_program_is_tried_in_a_process_of_its_own(format, copy):
  path = copy / layout.PROGRAMS[format]
  rng, content = np.random.default_rng(0), bytearray(path.read_bytes())
  for place in rng.integers(len(content), size=len(content) // 20 + 5):
    content[place] ^= int(rng.integers(1, 256))
  path.write_bytes(bytes(content))
  small.seal_again(copy)
  with pytest.raises(InputError) as error:
    serving.load(copy, format)
  assert str(copy) in str(error.value) and "\n" not in str(error.value)


def script(tmp_path, text):
  path = tmp_path / "python"
  path.write_text(f"#!/bin/sh\n{text}\n")
  path.chmod(path.stat().st_mode | stat.S_IXUSR)
  return os.fspath(path)


def test_a_program_that_crashes_or_hangs_is_refused(copy, tmp_path, monkeypatch):
  monkeypatch.setattr(loading.sys, "executable", script(tmp_path, "kill -SEGV $$"))
  with pytest.raises(InputError, match=r"its program crashed \(status -11\)"):
    serving.load(copy, "stablehlo")
  monkeypatch.setattr(loading.sys, "executable", script(tmp_path, "exec sleep 60"))
  monkeypatch.setattr(loading, "_TRIAL_SECONDS", 0.3)
  start = time.monotonic()
  with pytest.raises(InputError, match=r"did not answer within 0\.3 seconds"):
    serving.load(copy, "onnx")
  assert time.monotonic() - start < 20
  assert serving.load(copy, "npz").recommend("u1").items  # arrays need no trial


def test_a_program_that_is_whole_passes_its_trial(written):
  assert serving.load(written).recommend("u1") == serving.load(written, "stablehlo", trial=False).recommend("u1")


def test_a_program_without_safety_checks_is_refused(copy):
  unchecked = jax.export.export(jax.jit(lambda w, q: q @ w[0].T), disabled_checks=[
      jax.export.DisabledSafetyCheck.platform()])([np.zeros((small.ITEMS, small.WIDTH), np.float32)],
                                                  np.zeros((1, small.WIDTH), np.float32))
  (copy / "program.stablehlo").write_bytes(unchecked.serialize())
  small.seal_again(copy)
  with pytest.raises(InputError, match="safety checks disabled"):
    serving.load(copy, "stablehlo", trial=False)


def test_pickled_arrays_are_refused(copy):
  np.save(copy / "popularity.npy", np.array([1, None], object), allow_pickle=True)
  small.seal_again(copy)
  with pytest.raises(InputError, match="not an export"):
    serving.load(copy)


FORGED = [{"inputs": "x"}, {"formats": []}, {"formats": ["npz", 3]}, {"weights": ["../x"]}, {"weights": "user"},
          {"weights": ["item"]}, {"vectors": "nothing"}, {"exclude_seen": 1}, {"version": 1}, {"written": 3},
          {"inputs": "history", "length": -1}, {"program": ["user_"]}, {"model": None}]


@pytest.mark.parametrize("changed", FORGED, ids=str)
def test_a_forged_manifest_is_refused(changed, copy):
  small.seal_again(copy, **changed)
  with pytest.raises(InputError, match=str(copy)):
    serving.load(copy, "npz")


@pytest.mark.parametrize("name, value", [
    ("history_starts", np.arange(small.USERS + 1, dtype=np.int64)[::-1]), ("history_items", np.full(9, 60, np.int32)),
    ("priority", np.zeros(small.ITEMS, np.int32)), ("popularity", np.zeros(3, np.int64)),
    ("weights/user", np.zeros((small.USERS, 4), np.float32)), ("weights/item", np.zeros((2, 5), np.float32)),
    ("weights/item", np.zeros((small.ITEMS, 5), np.int8)), ("weights/user", np.array(["a"]))])
def test_arrays_that_do_not_fit_are_refused(name, value, copy):
  np.save(copy / f"{name}.npy", value, allow_pickle=False)
  small.seal_again(copy)
  with pytest.raises(InputError, match="not an export"):
    serving.load(copy, "npz")


@pytest.mark.parametrize("name", ["history_items", "priority", "weights/user"])
def test_several_arrays_under_the_name_of_one_are_refused(name, copy):
  with (copy / f"{name}.npy").open("wb") as file:
    np.savez(file, a=np.zeros(3, np.int32))
  small.seal_again(copy)
  with pytest.raises(InputError, match=f"not an export: {name.rpartition('/')[2]}.npy: holds several arrays"):
    serving.load(copy, "npz")


def test_random_forgeries_are_refused_by_name_or_harmless(written, tmp_path):
  """Of a file, or of an entry of the manifest; hashes fit again. No other exception than InputError comes."""
  rng, refused = np.random.default_rng(0), 0
  files = [path.relative_to(written) for path in sorted(written.rglob("*"))
           if path.is_file() and not path.name.startswith(("manifest", "program"))]
  values = (None, -1, 1.5, "x", [], {}, True, 10**12, "../x", ["item"], "history", "set", "2020-01-01")
  for case in range(60):
    folder = shutil.copytree(written, tmp_path / str(case))
    changed, name = {}, files[rng.integers(len(files))]
    if rng.random() < 0.5:
      (folder / name).write_bytes(csv_files.mutated(rng, (folder / name).read_bytes()))
    else:
      metadata = sealed.read(folder, layout.KIND)
      changed = {list(metadata)[rng.integers(len(metadata))]: values[rng.integers(len(values))]}
    small.seal_again(folder, **changed)
    try:
      serving.load(folder, "npz").recommend("u1")
    except InputError as error:
      refused += 1
      assert str(folder) in str(error), (name, changed)
  assert 20 < refused < 60


@pytest.mark.parametrize("ids", [b"{}", b"[1]", b'["u0", "u0"]', b"[", b"[" * 100_000, b"\xff"])
def test_ids_that_are_none_are_refused(ids, copy):
  (copy / "users.json").write_bytes(ids)
  small.seal_again(copy)
  with pytest.raises(InputError, match=r"users\.json"):
    serving.load(copy, "npz")


@pytest.mark.parametrize("items, scores, accepted", [
    ([4, 1, 2, 3], [9, 5, 5, 1], True),
    ([4, 2, 1, 3], [9, 5, 5, 1], True),  # items 1 and 2 are tied
    ([4, 1, 2, 7], [9, 5, 5, 1], True),  # 7 may be tied with 3
    ([1, 4, 2, 3], [9, 5, 5, 1], False),
    ([7, 1, 2, 3], [9, 5, 5, 1], False),
    ([4, 1, 2, 3], [9, 5, 5, 1.01], False),
    ([4, 1, 2, 3], [9, 5, 5, np.nan], False),
    ([4, 1, 2], [9, 5, 5], False)])
def test_only_near_ties_may_change_places(items, scores, accepted):
  expected = np.array([4, 1, 2, 3]), np.array([9, 5, 4.999999, 1])
  assert golden.agrees(np.array(items), np.array(scores), *expected) is accepted


def test_a_format_is_chosen_or_named(written, monkeypatch):
  with pytest.raises(InputError, match=r"`format=coreml`: .* has stablehlo, onnx, npz"):
    serving.load(written, "coreml")
  with pytest.raises(InputError, match=r"`index`: .* has none"):
    serving.load(written, index=True)
  monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError, match="needs one of jax, onnxruntime, numpy"):
    serving.load(written)


def test_an_index_finds_nearly_all_and_leaves_out_what_is_excluded(tmp_path):
  pytest.importorskip("faiss", reason="pip install 'kd_jax[index]'")
  rng = np.random.default_rng(0)
  vectors = rng.normal(size=(2000, 16)).astype(np.float32)
  index = approximate.build(vectors, tmp_path / "index.faiss")
  queries, shares = rng.normal(size=(50, 16)).astype(np.float32), []
  for query in queries:
    exact = sorted(range(2000), key=lambda item: -float(vectors[item] @ query))[:10]
    items, scores = index.search(query, 10)
    np.testing.assert_allclose(scores, vectors[items] @ query, rtol=1e-4)
    shares.append(len({*exact} & {*items.tolist()}) / 10)
  assert np.mean(shares) > 0.95 and approximate.recall(index, queries, vectors, 10) == pytest.approx(np.mean(shares))
  read = approximate.read(tmp_path / "index.faiss", 2000, 16)
  assert read.search(queries[0], 10)[0].tolist() == index.search(queries[0], 10)[0].tolist()
  with pytest.raises(InputError, match="holds 2000 vectors of width 16, and the export has 1000 of 16"):
    approximate.read(tmp_path / "index.faiss", 1000, 16)


def test_lists_from_an_index_are_those_of_all_items(written, tmp_path):
  pytest.importorskip("faiss", reason="pip install 'kd_jax[index]'")
  folder = shutil.copytree(written, tmp_path / "e")
  approximate.build(small.tables()[1], folder / layout.INDEX)
  small.seal_again(folder, index={"recall@10": 1.0})
  near, exact = serving.load(folder, "npz", index=True), serving.load(folder, "npz")
  for user in ("u1", "u5", "u6", "nobody"):  # u5 has two items left, of which the index may find none
    a, b = near.recommend(user), exact.recommend(user)
    assert a.items == b.items and a.source == b.source
    np.testing.assert_allclose(a.scores, b.scores, rtol=1e-5)


def test_an_index_that_finds_too_few_is_not_believed(written):
  exact = serving.load(written, "npz")

  class Few:
    def search(self, query, k):
      return np.arange(12), (small.tables()[1] @ query)[:12]

  few = serving.recommender.Recommender(exact.contents, exact._score, Few())
  assert few.recommend("u1", k=12).items == exact.recommend("u1", k=12).items
  known = [int(item[1:]) for item in few.recommend("u0", k=2).items]
  assert known == [item for item in range(12) if item not in small.histories()[0]][:2]
