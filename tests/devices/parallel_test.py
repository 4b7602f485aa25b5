"""Several devices give the result of one, under jit and pmap: plain runs, every method, mutual learners, sequences."""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import pytest

BATCH, CLOSE = 256, 3e-5
PLAIN, MUTUAL = ("plain sum", "plain mean"), ("student", "peer")
SEQUENCES, SAMPLED = ("sequences",), ("sampled items",)


CASES = {2: ("rrd", "rkd"), 4: (), 8: ("rrd", "de")}  # methods on so many devices; (): everything


def on_devices(devices, *arguments, file=__file__):
  """The finished process of a test file that is run as a program on virtual devices.

  Compiling is nearly all of its time, hence without XLA's costly passes.
  """
  flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
  found = {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(sys.path)}  # other tests
  return subprocess.run([sys.executable, file, *arguments], env=os.environ | found, capture_output=True, text=True)


BESIDE = {devices: functools.partial(on_devices, devices, *names) for devices, names in CASES.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "names"), CASES.items())
def test_several_devices_give_the_result_of_one(devices, names, beside):
  done = beside(devices)
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout.splitlines()[-1])
  from kd_jax import registry

  assert found["devices"] == devices
  of_labels = {n for n in registry.names("losses") if registry.build("losses", registry.Call(n)).labels}
  expected = {*names} or {*registry.names("losses"), *PLAIN, *MUTUAL, *SEQUENCES, *SAMPLED} - of_labels
  for mode in ("jit", "pmap"):
    assert {name for way, name, _ in found["apart"] if way == mode} == expected
  for mode, name, apart in found["apart"]:
    assert apart < CLOSE, f"{name} under {mode}: {apart:.1e} of the epoch's movement"


@pytest.mark.slow
def test_many_steps_on_virtual_devices_do_not_hang(script, small, tmp_path):
  """XLA's thread pool starves when steps that talk to each other are queued without waiting: the loop waits."""
  done = script("train", *small, "--epochs=300", "--eval_every=300", f"--workdir={tmp_path}/run",
                env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"})
  assert done.returncode == 0, done.stderr[-2000:]
  assert (tmp_path / "run/metrics.jsonl").read_text().count("\n") == 300


def compare(names):
  """Prints how far the devices are from one, for methods `names` or everything: [(mode, learner, difference)].

  A method has a learner of its own, named after it, so that one program trains many of them apart.
  """
  import conftest
  import jax
  import methods_contract_test as contract
  import optax

  from kd_jax import registry
  from kd_jax.base import PEER
  from kd_jax.devices import parallel
  from kd_jax.losses.bd import bd
  from kd_jax.losses.kl import kl
  from kd_jax.training import step

  dataset = conftest.build_dataset(num_users=1000, num_items=950, train=3)
  drawn = contract.draw(dataset)
  apart, rng, first = [], jax.random.key(6), jax.tree.map(lambda x: x[0], drawn)

  def measure(run, given, state, drawn=drawn):
    state = state._replace(step=state.step + 3 * drawn["weight"].shape[0])  # epoch 3: schedules have moved
    targets = contract.sample(dataset, run, given, state.params) if run.kds else {}
    one = jax.jit(functools.partial(step.train_epoch, run=run))(state, given, targets, drawn, rng)
    for mode in ("jit", "pmap"):
      copy = jax.tree.map(lambda x: x.copy(), state)
      several = parallel.compile_epoch(run, mode, BATCH)(copy, given, targets, drawn, rng)
      apart.extend((mode, name, largest(name, one, several, state)) for name in run.learners)

  for name, reduction in zip(() if names else PLAIN, () if names else ("sum", "mean"), strict=True):
    run, given, state = contract.build(dataset, first, learners=(name,))
    measure(run._replace(reduction=reduction), given, state)
  kds = {name: dataclasses.replace(contract.default(name), learner=name) for name in names or registry.names("losses")
         if not contract.default(name).labels}
  for together in (False, True):
    chosen = tuple(name for name, kd in kds.items() if kd.all_teachers == together)
    measure(*contract.build(dataset, first, *(kds[name] for name in chosen), learners=chosen))
  if not names:
    of_both_sides = contract.default("rrd"), contract.default("ir_rrd")
    measure(*contract.build(dataset, first, *of_both_sides, learners=SAMPLED))
    weight = optax.linear_schedule(0.0, 100.0, 10)
    run, given, state = contract.build(dataset, first, learners=MUTUAL)
    measure(run._replace(edges=(MUTUAL, MUTUAL[::-1]), kds=(
        (weight, kl(candidates="full")), (weight, bd()), (weight, bd(learner=PEER)))), given, state)
    packed = contract.draw(dataset, length=4, kd_per="user")
    models = "sasrec(dim=8, length=4, blocks=1, dropout=0.0)", "gru4rec(dim=12, length=3)"
    kds = kl(candidates="full"), contract.default("rkd")
    measure(*contract.build(dataset, jax.tree.map(lambda x: x[0], packed), *kds, learners=SEQUENCES, models=models),
            packed)
  print(json.dumps({"devices": jax.device_count(), "apart": apart}))


def largest(name, one, several, start):
  """Of every table and moment of a learner, its distance as a share of the way it went; of losses, relative."""
  import jax
  import numpy as np

  def far(a, b):
    return float(np.linalg.norm(np.asarray(a, np.float64) - np.asarray(b, np.float64)))

  def own(state):
    return {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(
        (state.params, state.opt_state)) if f"['{name}']" in jax.tree_util.keystr(path)
                         or f":{name}<-" in jax.tree_util.keystr(path)}

  before, expected, found = own(start), own(one[0]), own(several[0])
  assert len(found) >= 6 and set(one[1]) == set(several[1])  # two tables, each with two moments
  shares = [far(x, found[path]) / max(far(x, before[path]), 1e-30) for path, x in expected.items()]
  losses = [abs(float(several[1][key]) / float(x) - 1) for key, x in one[1].items()
            if key == "base" or f":{name}<-" in key]
  return max(shares + losses)


@pytest.mark.parametrize("devices", [3, 4])
def test_a_batch_that_does_not_divide_is_refused(devices, monkeypatch):
  import jax

  from kd_jax.base import InputError
  from kd_jax.devices import parallel

  monkeypatch.setattr(jax, "device_count", lambda: devices)
  with pytest.raises(InputError, match=f"`batch_size=10`: not divisible by the {devices} devices"):
    parallel.compile_epoch.__wrapped__(None, "jit", 10)


@pytest.mark.parametrize("own", [("--parallel=pmap",), ("--sweep=parallel=pmap",)])
def test_several_processes_train_with_jit_alone(own, small, monkeypatch, tmp_path):
  import jax

  from kd_jax import cli
  from kd_jax.base import InputError
  from kd_jax.runs import setup, sweep

  monkeypatch.setattr(jax, "process_count", lambda: 2)
  definition = cli.define(cli.FIT, sweep=cli.flag("string", "", ""))
  values = definition.parse([*small, *own, f"--workdir={tmp_path}/run"])
  [(_, [point])] = sweep.points(cli.options_of(cli.FitOptions, values), values.sweep, 1)
  with pytest.raises(InputError, match="`parallel=pmap`: several processes train with `parallel=jit`"):
    setup.prepare(point)


if __name__ == "__main__":
  compare(sys.argv[1:])
