"""Checkpoints resume exactly, and nothing that differs is restored."""

import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kd_jax.base import InputError
from kd_jax.storage import checkpoint, sealed


def make(seed=0, shape=(5, 3)):
  rng = np.random.default_rng(seed)
  params = {"a": {"w": jnp.asarray(rng.normal(size=shape), jnp.float32)}, "b": jnp.ones(4, jnp.bfloat16)}
  optimizer = optax.adam(1e-3).init(params)
  optimizer = jax.tree.map(lambda x: x + jnp.asarray(seed + 1).astype(x.dtype), optimizer)
  state = {
    "params": params,
    "optimizer": optimizer,
    "key": jax.random.key_data(jax.random.key(seed)),
    "step": jnp.int32(7),
    "rate": jnp.float32(0.1),
    "done": jnp.bool_(True),
    "order": np.arange(3, dtype=np.int64),
    "count": 5,
    "nothing": None,
    "adapter": {},
    "empty_state": optax.identity().init(params),
    "pair": (jnp.zeros(2), [jnp.ones(1)]),
  }
  return state, params


def assert_same(x, y):
  assert jax.tree.structure(x) == jax.tree.structure(y)
  for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
    a, b = np.asarray(a), np.asarray(b)
    assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def damage(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def keep(run_dir, epoch):
  """Copies a checkpoint out of the way of the next save and back."""
  source = run_dir / "checkpoints" / f"{epoch:06d}"
  os.rename(source, run_dir / "kept")
  return lambda: os.rename(run_dir / "kept", source)


def test_round_trip_keeps_bits_types_and_only_the_newest(tmp_path, capfd):
  (state, best), other = make(0), make(1)
  checkpoint.save(tmp_path, 1, *other, {"epoch": 1})
  checkpoint.save(tmp_path, 2, state, best, {"metric": 0.1})
  assert os.listdir(tmp_path / "checkpoints") == ["000002"]
  epoch, *trees, metadata = checkpoint.restore(tmp_path, *other)
  assert (epoch, metadata, checkpoint.latest(tmp_path)) == (2, {"metric": 0.1}, 2)
  assert_same(trees, [state, best])
  assert isinstance(trees[0]["optimizer"][0], optax.ScaleByAdamState)
  assert isinstance(trees[0]["params"]["b"], jax.Array) and isinstance(trees[0]["order"], np.ndarray)
  assert not trees[0]["step"].committed  # else jit could not use it together with a sharded batch
  assert tuple(capfd.readouterr()) == ("", "")


def test_restore_best_needs_no_template(tmp_path):
  state, best = make()
  checkpoint.save(tmp_path, 3, state, best, {"m": 1})
  params, metadata = checkpoint.restore_best(tmp_path)
  assert metadata == {"m": 1} and isinstance(params["a"]["w"], np.ndarray)
  assert_same(params, best)
  shapes = jax.eval_shape(lambda: best)
  assert_same(checkpoint.restore_best(tmp_path, shapes)[0], best)
  with pytest.raises(InputError, match=r"\['b'\] is bfloat16\[4\] .* nothing"):
    checkpoint.restore_best(tmp_path, {"a": best["a"]})


def test_trees_without_leaves(tmp_path):
  checkpoint.save(tmp_path, 1, {"optimizer": optax.EmptyState()}, {}, {})
  assert checkpoint.restore(tmp_path, {"optimizer": optax.EmptyState()}, {})[1:3] == (
    {"optimizer": optax.EmptyState()},
    {},
  )
  assert checkpoint.restore_best(tmp_path)[0] == {}


def test_relative_run_dir(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  checkpoint.save("run", 1, *make(), {})
  assert checkpoint.latest(tmp_path / "run") == 1
  assert checkpoint.newest_manifest("run") == tmp_path / "run/checkpoints/000001/manifest.json"
  assert_same(checkpoint.restore_best("run")[0], make()[1])


def test_replaced_template_leaves_are_refused(tmp_path):
  state, best = make()
  checkpoint.save(tmp_path, 1, state, best, {})
  sgd = optax.sgd(0.1, momentum=0.9).init(best)
  cases = [
    (make(shape=(5, 4))[0], r"\['a'\]\['w'\] is float32\[5, 3\] in the checkpoint and float32\[5, 4\]"),
    (make(shape=(3, 5))[0], r"\['a'\]\['w'\]"),
    ({**state, "step": jnp.int32(7)[None]}, r"\['step'\] is int32\[\] .*int32\[1\]"),
    ({**state, "step": jnp.float32(7)}, r"\['step'\] is int32\[\] .*float32\[\]"),
    ({**state, "rate": jnp.bfloat16(7)}, r"\['rate'\]"),
    ({**state, "key": state["key"].astype(jnp.int32)}, r"\['key'\]"),
    ({**state, "order": state["order"].astype(np.int32)}, r"\['order'\]"),
    ({**state, "more": jnp.zeros(2)}, r"\['more'\] is nothing .* float32\[2\]"),
    ({k: v for k, v in state.items() if k != "done"}, r"\['done'\] is bool\[\] .* nothing"),
    ({**state, "optimizer": sgd}, r"\['optimizer'\]"),
    ({**state, "nothing": jnp.zeros(())}, r"\['nothing'\]"),
  ]
  for template, message in cases:
    with pytest.raises(InputError, match=message) as error:
      checkpoint.restore(tmp_path, template, best)
    assert "flags" in str(error.value) and "\n" not in str(error.value)
  with pytest.raises(InputError, match=r"/best: leaf"):
    checkpoint.restore(tmp_path, state, {})


def test_damage_falls_back_to_an_older_one_or_stops(tmp_path, capfd):
  (state, best), newer = make(0), make(1)
  checkpoint.save(tmp_path, 1, state, best, {"e": 1})
  put_back = keep(tmp_path, 1)
  checkpoint.save(tmp_path, 2, *newer, {"e": 2})
  damage(next((tmp_path / "checkpoints" / "000002" / "state" / "d").iterdir()))  # orbax would not notice
  with pytest.raises(InputError, match=r"000002/.*sha256.*no older one"):
    checkpoint.restore(tmp_path, state, best)
  put_back()
  epoch, restored, _, metadata = checkpoint.restore(tmp_path, state, best)
  assert (epoch, metadata) == (1, {"e": 1})
  assert_same(restored, state)
  lines = capfd.readouterr().err.splitlines()
  assert len(lines) == 1 and "000002" in lines[0] and "epoch 1" in lines[0]
  checkpoint.save(tmp_path, 2, *newer, {})
  assert checkpoint.restore(tmp_path, state, best)[0] == 2


def test_a_flipped_bit_in_any_file_is_refused(tmp_path):
  state, best = make()
  checkpoint.save(tmp_path, 1, state, best, {})
  paths = [p for p in tmp_path.rglob("*") if p.is_file()]
  assert len(paths) > 10
  for path in paths:
    before = path.read_bytes()
    damage(path)
    with pytest.raises(InputError, match="manifest" if "manifest" in path.name else path.name):
      checkpoint.restore(tmp_path, state, best)
    with pytest.raises(InputError):
      checkpoint.restore_best(tmp_path)
    path.write_bytes(before)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
  state, best = make()
  checkpoint.save(tmp_path, 1, state, best, {})

  def full(*_):
    raise ValueError("RESOURCE_EXHAUSTED: No space left on device\n" + "details\n" * 60)

  monkeypatch.setattr(checkpoint.ocp.StandardCheckpointer, "save", full)
  with pytest.raises(InputError, match=r"000002: cannot be written: .*No space") as error:
    checkpoint.save(tmp_path, 2, state, best, {})
  assert "\n" not in str(error.value)
  assert os.listdir(tmp_path / "checkpoints") == ["000001"]
  assert checkpoint.restore(tmp_path, state, best)[0] == 1


def test_file_size_limit_is_reported_and_survived(tmp_path):
  code = """
import resource, signal, sys
import jax.numpy as jnp, numpy as np
from kd_jax.base import InputError
from kd_jax.storage import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
tree = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(300, 300)), jnp.float32)}
checkpoint.save(sys.argv[1], 1, tree, {}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
  checkpoint.save(sys.argv[1], 2, tree, {}, {})
except InputError as error:
  print(error)
print(checkpoint.restore(sys.argv[1], tree, {})[0])
"""
  out = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
  lines = out.stdout.splitlines()
  assert len(lines) == 2 and "000002" in lines[0] and "File too large" in lines[0] and lines[1] == "1", out
  assert out.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGALRM])
def test_a_signal_while_writing_is_raised_after_it(tmp_path, monkeypatch, capfd, number):
  """Of all three, SIGALRM is the one by which `devices.signals` raises an interrupt again."""
  def stop(*_):
    waited.append("raised")
    raise KeyboardInterrupt

  class Interrupted(checkpoint.ocp.StandardCheckpointer):
    def save(self, *args):
      super().save(*args)
      waited.clear()  # orbax waits for what was before, too
      os.kill(os.getpid(), number)

    def wait_until_finished(self):
      super().wait_until_finished()
      waited.append("written")

  before, waited = signal.signal(number, stop), []
  monkeypatch.setattr(checkpoint.ocp, "StandardCheckpointer", Interrupted)
  try:
    with pytest.raises(KeyboardInterrupt):
      checkpoint.save(tmp_path, 1, {"a": np.ones(3)}, {"b": np.ones(3)}, {})
  finally:
    signal.signal(number, before)
  assert waited[0] == "written" and capfd.readouterr().err == "" and not list((tmp_path / "checkpoints").glob(".*tmp"))


def test_no_checkpoint_and_half_deleted_ones(tmp_path):
  state, best = make()
  with pytest.raises(InputError, match="no checkpoint"):
    checkpoint.restore(tmp_path, state, best)
  assert checkpoint.latest(tmp_path) is None
  for name in ("000009", "000004", ".000003.tmp"):
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
  (tmp_path / "checkpoints" / "000004" / "rest").write_text("x")
  (tmp_path / "checkpoints" / "notes.txt").write_text("x")
  assert checkpoint.latest(tmp_path) == 9  # what is damaged is not absent
  with pytest.raises(InputError, match=r"000009: no checkpoint here.*there is no older one; remove .*checkpoints"):
    checkpoint.restore(tmp_path, state, best)
  checkpoint.save(tmp_path, 4, state, best, {})
  assert sorted(os.listdir(tmp_path / "checkpoints")) == ["000004", "notes.txt"]
  assert checkpoint.restore(tmp_path, state, best)[0] == 4


SAVE_FOREVER = """
import itertools, sys
import numpy as np
from kd_jax.storage import checkpoint
for epoch in itertools.count((checkpoint.latest(sys.argv[1]) or 0) + 1):
  tree = {"w": np.full((400, 50), epoch, np.float32), "epoch": np.int32(epoch)}
  checkpoint.save(sys.argv[1], epoch, tree, tree, {"epoch": epoch})
  print(epoch, flush=True)
"""


def test_kill_9_resumes_from_a_confirmed_checkpoint(tmp_path):
  rng = np.random.default_rng(1)
  template = {"w": np.zeros((400, 50), np.float32), "epoch": np.int32(0)}
  for _ in range(3):
    command = [sys.executable, "-c", SAVE_FOREVER, tmp_path]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    confirmed = int(child.stdout.readline())
    time.sleep(float(rng.uniform(0, 0.3)))
    child.send_signal(signal.SIGKILL)
    confirmed = max([confirmed, *map(int, child.communicate()[0].split("\n")[:-1])])
    epoch, state, best, metadata = checkpoint.restore(tmp_path, template, template)
    assert epoch in (confirmed, confirmed + 1) and metadata == {"epoch": epoch}
    for tree in (state, best):
      assert (tree["w"] == epoch).all() and tree["epoch"] == epoch


def test_placed_as_the_template_is(tmp_path):
  state, best = make()
  checkpoint.save(tmp_path, 1, state, best, {})
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  placed = checkpoint.restore_best(tmp_path, jax.device_put(best, sharding))[0]
  assert placed["a"]["w"].sharding == sharding
  assert sealed.names(tmp_path / "checkpoints") == ["000001"]
