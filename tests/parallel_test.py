"""Four devices give one device's result, under jit and under pmap, for a plain run and for every method."""

import functools
import json
import os
import subprocess
import sys

import pytest

DEVICES, BATCH, CLOSE = 4, 256, 1e-4


def test_four_devices_give_the_result_of_one():
  # Compiling is nearly all of the time here, hence without XLA's costly passes.
  flags = f"--xla_force_host_platform_device_count={DEVICES} --xla_backend_optimization_level=0"
  done = subprocess.run([sys.executable, __file__], env=os.environ | {"XLA_FLAGS": flags}, capture_output=True,
                        text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout.splitlines()[-1])
  from kd_jax import lookup

  assert found["devices"] == DEVICES
  names, plain = set(lookup.names("losses")), {"plain sum", "plain mean"}
  assert {name for mode, name, _ in found["apart"] if mode == "pmap"} == names | plain
  together = " ".join(name for mode, name, _ in found["apart"] if mode == "jit").split()
  assert set(together) == names | set(" ".join(plain).split()), "under jit the methods are trained together"
  for mode, name, apart in found["apart"]:
    assert apart < CLOSE, f"{name} under {mode}: {apart:.1e} of the epoch's movement"


def compare():
  """Prints how far four devices are from one: [(mode, methods, largest relative difference)]."""
  import conftest
  import jax
  import methods_contract_test as contract

  from kd_jax import lookup, parallel, train

  dataset = conftest.build_dataset(num_users=1000, num_items=950, train=3)
  drawn = contract.draw(dataset)
  names = lookup.names("losses")
  groups = {}
  for name in names:
    kd = contract.default(name)
    groups.setdefault((kd.all_teachers, kd.adapter is not None), []).append(name)
  apart, rng, first = [], jax.random.key(6), jax.tree.map(lambda x: x[0], drawn)

  def measure(names, run, given, state, targets, modes):
    one = jax.jit(functools.partial(train.train_epoch, run=run))(state, given, targets, drawn, rng)
    for mode in modes:
      copy = jax.tree.map(lambda x: x.copy(), state)
      four = parallel.compile_epoch(run, mode, BATCH)(copy, given, targets, drawn, rng)
      apart.append((mode, names, largest(one, four, state)))

  run, given, state = contract.build(dataset, first)
  for reduction in ("sum", "mean"):
    measure(f"plain {reduction}", run._replace(reduction=reduction), given, state, {}, ("jit", "pmap"))
  for chosen in groups.values():
    run, given, state = contract.build(dataset, first, *map(contract.default, chosen))
    targets = contract.sample(dataset, run, given, state.params)
    measure(" ".join(chosen), run, given, state, targets, ("jit",))
    for place, name in enumerate(chosen):
      own = {f"0:{k.partition(':')[2]}": v for k, v in targets.items() if k.startswith(f"{place}:")}
      measure(name, *contract.build(dataset, first, contract.default(name)), own, ("pmap",))
  print(json.dumps({"devices": jax.device_count(), "apart": apart}))


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
