"""Four devices give one device's result, under jit and under pmap, for a plain run and for every method."""

import functools
import json
import os
import subprocess
import sys

import pytest

DEVICES, BATCH, CLOSE = 4, 256, 1e-4


def test_four_devices_give_the_result_of_one():
  # Compiling is nearly all of the time here, hence without LLVM's costly passes.
  flags = f"--xla_force_host_platform_device_count={DEVICES} --xla_llvm_disable_expensive_passes=true"
  done = subprocess.run([sys.executable, __file__], env=os.environ | {"XLA_FLAGS": flags}, capture_output=True,
                        text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout.splitlines()[-1])
  from kd_jax import lookup

  assert found["devices"] == DEVICES
  assert {name for name, _ in found["apart"]} == {"plain", "plain, mean", *lookup.names("losses")}
  assert {mode for _, mode in found["apart"]} == {"jit", "pmap"}
  for (name, mode), apart in zip(found["apart"], found["values"], strict=True):
    assert apart < CLOSE, f"{name} under {mode}: {apart:.1e} of the epoch's movement"


def compare():
  """Prints the largest relative difference between one device and four, by method and mode."""
  import conftest
  import jax
  import methods_contract_test as contract

  from kd_jax import lookup, parallel, train

  dataset = conftest.build_dataset(num_users=1000, num_items=950, train=3)
  drawn = contract.draw(dataset)
  cases = {"plain": None, "plain, mean": None} | {name: contract.default(name) for name in lookup.names("losses")}
  apart = {}
  for name, kd in cases.items():
    run, given, state = contract.build(dataset, kd or contract.default("kl"), jax.tree.map(lambda x: x[0], drawn))
    if kd is None:
      run = run._replace(kds=(), edges=(), reduction="mean" if "mean" in name else "sum")
    targets = contract.sample(dataset, run, given, state.params)
    rng = jax.random.key(6)
    one = jax.jit(functools.partial(train.train_epoch, run=run))(state, given, targets, drawn, rng)
    for mode in ("jit", "pmap"):
      copy = jax.tree.map(lambda x: x.copy(), state)
      four = parallel.compile_epoch(run, mode, BATCH)(copy, given, targets, drawn, rng)
      apart[name, mode] = largest(one, four, state)
  print(json.dumps({"devices": jax.device_count(), "apart": list(apart), "values": list(apart.values())}))


def largest(one, four, start):
  """Of every table, its distance as a share of the way it went; of every loss, the relative difference."""
  import jax
  import numpy as np

  far = lambda a, b: float(np.linalg.norm(np.asarray(a) - np.asarray(b)))
  shares = [far(a, b) / max(far(a, s), 1e-9) for a, b, s in
            zip(*(jax.tree.leaves(x) for x in (one[0].params, four[0].params, start.params)), strict=True)]
  losses = [abs(float(one[1][k]) - float(four[1][k])) / abs(float(one[1][k])) for k in one[1]]
  assert set(one[1]) == set(four[1])
  return max(shares + losses)


@pytest.mark.parametrize("devices", [3, 4])
def test_a_batch_that_does_not_divide_is_refused(devices, monkeypatch):
  import jax

  from kd_jax import parallel
  from kd_jax.base import InputError

  monkeypatch.setattr(jax, "device_count", lambda: devices)
  with pytest.raises(InputError, match=f"--batch_size=10: not divisible by the {devices} devices"):
    parallel.compile_epoch.__wrapped__(None, "jit", 10)


if __name__ == "__main__":
  compare()
