"""Artifacts are whole or absent, and no changed byte is accepted."""

import json
import os
import stat
import subprocess
import sys
import time

import numpy as np
import pytest

from kd_jax.base import InputError
from kd_jax.storage import sealed

FILES = {"a.bin": b"abcdef", "sub/b.txt": b"hello\n", "empty": b""}


def make(directory, files=FILES, kind="thing", metadata=None):
  with sealed.writing(directory, kind, metadata or {"x": 1}) as temporary:
    for name, data in files.items():
      (temporary / name).parent.mkdir(parents=True, exist_ok=True)
      (temporary / name).write_bytes(data)


def resign(directory, change):
  """A changed manifest with the right hash of it, as somebody who means harm would write."""
  content = json.loads((directory / "manifest.json").read_text())
  change(content)
  (directory / "manifest.json").write_text(json.dumps(content))
  digest = sealed.hash_file(directory / "manifest.json")
  (directory / "manifest.sha256").write_text(f"{digest}  manifest.json\n")


def run_child(code, argument):
  return subprocess.Popen([sys.executable, "-c", code, argument], stdout=subprocess.PIPE, text=True)


def test_round_trip_and_replacement_leave_nothing_beside(tmp_path):
  make(tmp_path / "t")
  make(tmp_path / "t", {"only": b"1"}, metadata={"x": 2})
  assert sealed.read(tmp_path / "t", "thing") == {"x": 2}
  assert os.listdir(tmp_path) == ["t"]
  assert sorted(os.listdir(tmp_path / "t")) == ["manifest.json", "manifest.sha256", "only"]


def test_manifest_is_checkable_with_sha256sum(tmp_path):
  make(tmp_path / "t")
  subprocess.run(["sha256sum", "--check", "--quiet", "manifest.sha256"], cwd=tmp_path / "t", check=True)


def test_every_flipped_bit_truncation_and_added_byte_is_refused(tmp_path):
  make(tmp_path / "t")
  paths = [p for p in (tmp_path / "t").rglob("*") if p.is_file()]
  assert len(paths) == 5
  for path in paths:
    data = path.read_bytes()
    changed = [data[:i] + bytes([data[i] ^ (1 << i % 8)]) + data[i + 1 :] for i in range(len(data))]
    changed += [data[:i] for i in range(len(data))] + [data + b"\0"]
    for bad in changed:
      path.write_bytes(bad)
      with pytest.raises(InputError, match=r"\.json|\.sha256" if "manifest" in path.name else path.name):
        sealed.read(tmp_path / "t", "thing")
    path.write_bytes(data)


def swap(root):
  os.rename(root / "a.bin", root.parent / "x")
  os.rename(root / "sub/b.txt", root / "a.bin")
  os.rename(root.parent / "x", root / "sub/b.txt")


def link(root):
  os.rename(root / "a.bin", root.parent / "outside")
  (root / "a.bin").symlink_to(root.parent / "outside")


CHANGES = [
  (lambda root: (root / "a.bin").unlink(), r"a\.bin: missing"),
  (lambda root: (root / "sub/new").write_text("x"), "sub/new: not listed"),
  (lambda root: (root / ".hidden").write_text("x"), r"\.hidden: not listed"),
  (lambda root: (root / "sub/.lock").write_text("x"), r"sub/\.lock: not listed"),
  (swap, r"a\.bin is .*expected"),
  (link, r"a\.bin: neither a file"),
  (lambda root: (root / "d").symlink_to("/"), "d: neither a file"),
  (lambda root: os.mkfifo(root / "pipe"), "pipe: neither a file"),
  (lambda root: (root / "manifest.json").unlink(), "no thing here"),
  (lambda root: (root / "manifest.sha256").unlink(), "manifest.sha256"),
  (lambda root: resign(root, lambda c: c["files"].update({"../x": {}})), r"\.\./x: missing"),
  (lambda root: resign(root, lambda c: c["files"].update({"/etc/passwd": {}})), "/etc/passwd: missing"),
  (lambda root: resign(root, lambda c: c["files"].update({"a.bin": 1})), r"a\.bin is"),
  (lambda root: resign(root, lambda c: c.update(version=99)), "version"),
  (lambda root: resign(root, lambda c: c.update(kind="other")), "other"),
  (lambda root: resign(root, lambda c: c.pop("files")), "not a manifest"),
]


@pytest.mark.parametrize("change, message", CHANGES)
def test_other_changes_are_refused(tmp_path, change, message):
  make(tmp_path / "t")
  change(tmp_path / "t")
  with pytest.raises(InputError, match=message) as error:
    sealed.read(tmp_path / "t", "thing")
  assert "\n" not in str(error.value)


def test_an_exception_leaves_what_was_there(tmp_path):
  make(tmp_path / "t")
  for target in ("t", "fresh"):
    with pytest.raises(KeyError), sealed.writing(tmp_path / target, "thing", {}) as temporary:
      (temporary / "half").write_text("x")
      raise KeyError
  assert sealed.read(tmp_path / "t", "thing") == {"x": 1}
  assert os.listdir(tmp_path) == ["t"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_one_line_with_the_path(tmp_path):
  with pytest.raises(InputError, match=r"/t: .*No space left"):
    with sealed.writing(tmp_path / "t", "thing", {}), open("/dev/full", "w") as file:
      file.write("x")
  assert os.listdir(tmp_path) == []


def test_foreign_directories_are_not_replaced(tmp_path):
  for name in ("mine", "empty"):
    (tmp_path / name).mkdir()
  (tmp_path / "mine/thesis.txt").write_text("x")
  make(tmp_path / "other", kind="other")
  make(tmp_path / "empty")
  for name in ("mine", "other", "mine/thesis.txt"):
    with pytest.raises(InputError, match="exists and is no 'thing'"):
      make(tmp_path / name)
  assert (tmp_path / "mine/thesis.txt").read_text() == "x"


def test_kill_between_the_renames_puts_the_old_one_back(tmp_path):
  make(tmp_path / ".t.old")
  make(tmp_path / ".t.tmp", metadata={"x": 2})
  assert sealed.names(tmp_path) == ["t"]
  assert sealed.read(tmp_path / "t", "thing") == {"x": 1}
  make(tmp_path / "t", metadata={"x": 3})
  assert os.listdir(tmp_path) == ["t"]


def test_kill_before_the_old_one_is_deleted_keeps_the_new_one(tmp_path):
  make(tmp_path / ".t.old", metadata={"x": "old"})
  make(tmp_path / "t", metadata={"x": "new"})
  make(tmp_path / ".t.old", metadata={"x": "old"})
  assert sealed.read(tmp_path / "t", "thing") == {"x": "new"}
  make(tmp_path / "t")
  assert os.listdir(tmp_path) == ["t"]


def test_failing_second_rename_keeps_the_old_one(tmp_path, monkeypatch):
  make(tmp_path / "t")
  rename = os.rename

  def failing(source, target):
    rename(source if source.suffix != ".tmp" else tmp_path / "nothing", target)

  monkeypatch.setattr(os, "rename", failing)
  with pytest.raises(InputError, match="No such file"):
    make(tmp_path / "t", metadata={"x": 2})
  assert sealed.read(tmp_path / "t", "thing") == {"x": 1}


REPLACE_FOREVER = """
import sys
from kd_jax.storage import sealed
n = 0
while True:
  n += 1
  with sealed.writing(sys.argv[1], "thing", {"n": n}) as temporary:
    for i in range(5):
      (temporary / str(i)).write_text(str(n) * 1000)
  print(n, flush=True)
"""


def test_kill_9_at_random_moments_never_loses_a_confirmed_artifact(tmp_path):
  rng = np.random.default_rng(0)
  for _ in range(8):
    child = run_child(REPLACE_FOREVER, tmp_path / "t")
    confirmed = int(child.stdout.readline())
    time.sleep(float(rng.uniform(0, 0.05)))
    child.kill()
    confirmed = max([confirmed, *map(int, child.stdout.read().split("\n")[:-1])])
    child.wait()
    n = sealed.read(tmp_path / "t", "thing")["n"]
    assert n in (confirmed, confirmed + 1)
    assert (tmp_path / "t" / "3").read_text() == str(n) * 1000
  make(tmp_path / "t")
  assert os.listdir(tmp_path) == ["t"]


HOLD = """
import sys, time
from kd_jax.storage import sealed
with sealed.lock(sys.argv[1]):
  print("held", flush=True)
  time.sleep(60)
"""


def test_lock_names_the_holder_and_dies_with_it(tmp_path):
  child = run_child(HOLD, tmp_path)
  assert child.stdout.readline() == "held\n"
  try:
    with pytest.raises(InputError, match=f"in use by process {child.pid}$"), sealed.lock(tmp_path):
      pass
  finally:
    child.kill()
    child.wait()
  with sealed.lock(tmp_path):
    assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_a_second_writer_is_refused_and_the_first_one_ends(tmp_path):
  with sealed.writing(tmp_path / "t", "thing", {}):
    with pytest.raises(InputError, match=f"in use by process {os.getpid()}"):
      make(tmp_path / "t")
  sealed.read(tmp_path / "t", "thing")


def test_write_json_atomic(tmp_path):
  path = tmp_path / "new" / "r.json"
  sealed.write_json_atomic(path, "old")
  with open(path) as reader:
    sealed.write_json_atomic(path, {"b": 1.5})
    assert reader.read() == '"old"\n'  # the file of a reader does not change under it
  for error, bad_path, value in ((TypeError, path, object()), (InputError, path / "x", 1)):
    with pytest.raises(error):
      sealed.write_json_atomic(bad_path, value)
  assert json.loads(path.read_text()) == {"b": 1.5}
  assert os.listdir(path.parent) == ["r.json"]


def test_a_device_or_a_pipe_is_not_replaced_by_a_file(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  with pytest.raises(InputError, match="pipe: a device or a pipe, not a file"):
    sealed.write_json_atomic(tmp_path / "pipe", {})
  assert os.listdir(tmp_path) == ["pipe"] and stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "[" * 100_000])
def test_a_manifest_with_a_right_hash_and_a_number_that_is_none_is_refused(tmp_path, number):
  target = tmp_path / "artifact"
  with sealed.writing(target, "kind", {"size": 17171717}):
    pass
  manifest = target / "manifest.json"
  manifest.write_text(manifest.read_text().replace("17171717", number))
  (target / "manifest.sha256").write_text(f"{sealed.hash_file(manifest)}  manifest.json\n")
  with pytest.raises(InputError, match=r"manifest\.json: not JSON"):
    sealed.read(target, "kind")


def test_hash_array_tells_values_dtypes_and_shapes_apart():
  x = np.arange(6, dtype=np.int32)
  different = [x, x.astype(np.int64), x.reshape(2, 3), x[::-1], x.astype(np.float32), x[:0], x.astype(str)]
  assert len({sealed.hash_array(y) for y in different}) == len(different)
  assert sealed.hash_array(np.zeros(2, np.int32)) != sealed.hash_array(np.zeros(2, np.float32))
  same = [x, x.astype(">i4"), np.repeat(x, 2)[::2]]
  assert len({sealed.hash_array(y) for y in same}) == 1
  ids = np.array(["a", "bb", "a much longer one"])
  assert sealed.hash_array(ids[:2]) == sealed.hash_array(np.array(["a", "bb"]))
  assert sealed.hash_array(np.array(["ab", "c"])) != sealed.hash_array(np.array(["a", "bc"]))
  with pytest.raises(TypeError):
    sealed.hash_array(np.array([None]))


def test_an_array_is_one_array(tmp_path):
  np.save(tmp_path / "one.npy", np.arange(3))
  assert sealed.read_array(tmp_path / "one.npy").tolist() == [0, 1, 2]
  with (tmp_path / "several.npy").open("wb") as file:
    np.savez(file, a=np.arange(3))
  with pytest.raises(sealed.NOT_ARRAYS, match=r"several\.npy: holds several arrays"):
    sealed.read_array(tmp_path / "several.npy")
