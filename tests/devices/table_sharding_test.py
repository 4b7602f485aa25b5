"""--shard_tables: each device holds its rows of every table and of its moments, and none ever a whole one."""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from parallel_test import CLOSE, on_devices

DEVICES, USERS, ITEMS, BATCH, DIM = 4, 3002, 2001, 64, 8  # devices do not divide the rows
MODELS = ("mf", "lightgcn")
COLLECTIVES = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"


def virtual(devices):
  flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
  return os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(sys.path)}  # other tests


BESIDE = {"split": functools.partial(on_devices, DEVICES, file=__file__),
          "loops": functools.partial(on_devices, DEVICES, "de", "htd", "freqd", file=__file__)}


@pytest.mark.slow
def test_split_tables_are_trained_as_whole_ones_are(beside):
  done = beside("split")
  assert done.returncode == 0, done.stderr[-3000:]
  found = [json.loads(line) for line in done.stdout.splitlines()]
  assert [(case["model"], case["distilled"]) for case in found] == [(m, d) for m in MODELS for d in (False, True)]
  for case in found:
    # Two tables of the student, each with two moments, and two of the teacher where there is one.
    assert len(case["shares"]) == (8 if case["distilled"] else 6), case
    assert all(rows in ([751] * DEVICES, [501] * DEVICES) for rows in case["shares"]), case
    assert case["largest"] < 1e-5 and max(case["apart"]) < CLOSE, case
    if case["model"] == "mf":  # what devices tell each other in a step is as large as what the batch reads of a table
      assert case["collectives"] and max(case["collectives"]) <= USERS * DIM / 4, case


def compare():
  """Prints a line for every model, plain and distilled by scores and by representations, see `measure`."""
  import conftest
  import jax
  import methods_contract_test as contract

  from kd_jax.losses.de import de
  from kd_jax.losses.rrd import rrd

  contract.BATCH = BATCH
  dataset = conftest.build_dataset(num_users=USERS, num_items=ITEMS, train=1)
  drawn = jax.tree.map(lambda x: x[:8], contract.draw(dataset))
  for model in MODELS:
    for kds in ((), (rrd(k=3, uninteresting=5, depth=9), de(experts=2))):
      models = tuple(f"{model}(dim={dim}, init_std=0.5)" for dim in (DIM, 12))
      run, given, state = contract.build(dataset, jax.tree.map(lambda x: x[0], drawn), *kds, models=models)
      if not kds:
        run, given = run._replace(networks=run.networks[:1], edges=()), given._replace(params={})
      run = run._replace(embedding_l2=0.1 if kds else 0.0)
      targets = contract.sample(dataset, run, given, state.params) if kds else {}
      print(json.dumps({"model": model, "distilled": bool(kds)} | measure(run, given, state, targets, drawn)))


def measure(run, given, state, targets, drawn):
  """Devices' rows of every table; sizes of collectives; how far from one device's state, as a share of its way."""
  import jax

  from kd_jax.devices import parallel, table_sharding
  from kd_jax.training import step

  before, key = jax.tree.map(np.array, state), jax.random.key(6)
  one = jax.jit(step.train_epoch, static_argnames="run")(state, given, targets, drawn, key, run=run)[0]
  split, shared = table_sharding.split(run, given, state.params["networks"])
  shapes = jax.eval_shape(lambda: step.init(key, split, shared, jax.tree.map(lambda x: x[0], drawn)))
  arguments = parallel.place(table_sharding.resize(before, shapes), split), shared, targets, drawn, key
  epoch = jax.jit(parallel.compile_epoch(split, "jit", BATCH)).lower(*arguments).compile()
  several = epoch(*arguments)[0]
  moments = several.opt_state[0]
  held = jax.tree.leaves([x["networks"] for x in (several.params, moments.mu, moments.nu)] + [shared.params])

  def far(a, b):
    return float(np.linalg.norm(np.asarray(a, np.float64) - np.asarray(b, np.float64)))

  ends = zip(*map(jax.tree.leaves, (one, table_sharding.resize(several, one), before)), strict=True)
  return {"shares": [[part.data.shape[0] for part in x.addressable_shards] for x in held],
          "collectives": collectives(epoch),
          "apart": [far(a, b) / max(far(a, c), 1e-30) for a, b, c in ends],
          "largest": max(float(np.abs(np.asarray(a) - b).max()) for a, b in zip(*map(jax.tree.leaves, (
              one.params, table_sharding.resize(several.params, one.params))), strict=True))}


def collectives(compiled):
  """How many numbers each collective of a compiled program returns."""
  returned = re.findall(rf"= (.*?) (?:{COLLECTIVES})(?:-start)?\(", compiled.as_text())
  shapes = [shape for result in returned for shape in re.findall(r"\[([\d,]+)\]", result)]
  return [int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes]


@pytest.mark.slow
def test_devices_do_not_talk_in_loops_of_methods_and_of_ranking(beside):
  """There two could wait for each other in one place and two in another, for ever."""
  done = beside("loops")
  assert done.returncode == 0, done.stderr[-3000:]
  for of_step, of_loops in json.loads(done.stdout):  # training, ranks of held-out items
    assert of_step > 0 and len(of_loops) > 0 and not any(of_loops), (of_step, of_loops)


def count_in_loops(names):
  """Prints how many collectives a step has, and how many each loop or branch in it: of these methods, of ranking."""
  import conftest
  import jax
  import methods_contract_test as contract

  from kd_jax.devices import parallel, table_sharding
  from kd_jax.ranking import rank
  from kd_jax.training import graph

  dataset = conftest.build_dataset(num_users=300, num_items=950, train=1)
  drawn = contract.draw(dataset)
  kds = {name: dataclasses.replace(contract.default(name), learner=name) for name in names}
  models = "mf(dim=64, init_std=0.5)", "mf(dim=16, init_std=0.5)"  # of 64 rows a method's own matrices are split too
  run, given, state = contract.build(dataset, jax.tree.map(lambda x: x[0], drawn), *kds.values(), learners=tuple(kds),
                                     models=models)
  run, given = table_sharding.split(run, given, state.params["networks"])
  tables = table_sharding.place_rows({"params": state.params, "opt_state": state.opt_state})
  state = parallel.place(state._replace(**tables), run)
  epoch = jax.jit(parallel.compile_epoch(run, "jit", contract.BATCH))
  student = dict(run.networks)[names[0]], graph.variables(given, state.params, names[0])
  held = rank.held_out(dataset.validation, [dataset.train], np.arange(950, dtype=np.int32))[0]
  lowered = (epoch.lower(state, given, {}, drawn, jax.random.key(6)),
             rank._ranks.lower(*student, held.items, held.priority, held.groups, held.counts, held.starts))
  print(json.dumps([in_loops(program.compile().as_text()) for program in lowered]))


def in_loops(text):
  """(collectives of the loop over steps, [collectives of every loop or branch inside])."""
  found = re.findall(r"^(ENTRY )?%([\w.\-]+) .*\{\n((?:  .*\n)+)", text, re.MULTILINE)
  lines = {name: body.splitlines() for _, name, body in found}

  def called(line):
    return {name for part in re.findall(r"=\{?((?:%[\w.\-]+(?:, )?)+)", line)
                           for name in re.findall(r"%([\w.\-]+)", part)} & lines.keys()

  def loops(name):
    return [line for line in lines[name] if re.search(r"= .*? (while|conditional)\(", line)]

  def within(names):  # these computations and all that they call
    more = set().union(*(called(line) for name in names for line in lines[name])) - names
    return within(names | more) if more else names

  def count(line):
    return sum(bool(re.search(rf" (?:{COLLECTIVES})(?:-start)?\(", x))
                             for name in within(called(line)) for x in lines[name])

  [entry] = [name for is_entry, name, _ in found if is_entry]
  [steps] = loops(entry)
  return count(steps), [count(line) for name in within(called(steps)) for line in loops(name)]


@pytest.mark.slow
def test_a_split_run_goes_on_with_another_number_of_devices(small, teacher, script, flags, tmp_path):
  from kd_jax.runs import loop
  from kd_jax.storage import checkpoint, run_directory

  distilled = [*small, "--kd=rrd(k=5, uninteresting=5, depth=30)", f"--teacher={teacher}"]
  loop.train(flags(*distilled, f"--workdir={tmp_path}/whole"))
  for devices, epochs in ((4, 1), (2, 3)):
    done = script("train", *distilled, f"--epochs={epochs}", "--shard_tables", f"--workdir={tmp_path}/split",
                  env=virtual(devices))
    assert done.returncode == 0, done.stderr[-2000:]
  whole, split = (run_directory.read_metrics(tmp_path / name) for name in ("whole", "split"))
  assert len(whole) == len(split) == 3
  for a, b in zip(whole, split, strict=True):
    np.testing.assert_allclose(list(b["loss"].values()), list(a["loss"].values()), rtol=1e-5)
    np.testing.assert_allclose(b["validation"]["ndcg@10"], a["validation"]["ndcg@10"], atol=1e-5)
  whole, split = (checkpoint.restore_best(tmp_path / name)[0]["student"] for name in ("whole", "split"))
  for name in whole:  # of the same shape: what was added is not saved
    np.testing.assert_allclose(split[name], whole[name], atol=1e-5)


def test_no_device_holds_a_whole_table_before_it_is_split_nor_whole_targets(small, teacher, tmp_path):
  kd = "de() + rrd(k=5, uninteresting=5, depth=30) + ir_rrd(k=5, uninteresting=5, depth=30)"
  arguments = [*small, "--model=mf(dim=16)", f"--kd={kd}", f"--teacher={teacher}", f"--init_from={teacher}"]
  done = subprocess.run([sys.executable, __file__, *arguments, "--shard_tables", f"--workdir={tmp_path}/run"],
                        env=virtual(DEVICES), capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  assert json.loads(done.stdout.splitlines()[-1]) == [[25] * DEVICES, [56] * DEVICES] * 3  # of 100 users, 222 items


def begin(arguments):
  """Prints devices' rows of tables of a teacher and of a warm start, which come from the host, and of targets."""
  import jax

  from kd_jax import cli
  from kd_jax.runs import epoch, loop, setup

  values = cli.parse_fit(arguments)

  def guard():
    return jax.transfer_guard_device_to_device("disallow_explicit")

  with guard():
    ready = setup.prepare(values)
  draw = epoch.drawer(ready)  # ranks lists, which are not split
  with guard():
    training = loop._begin(ready, draw, {})
  targets, state = training.draw(training.state, 0, 0).targets, training.state
  tables = [x[name][side] for x, name in ((ready.given.params, "teacher"), (state.params["networks"], "student"))
            for side in ("user", "item")] + [fields["items"] for _, fields in sorted(targets.items())]
  print(json.dumps([[part.data.shape[0] for part in x.addressable_shards] for x in tables]))


def test_only_jit_splits_tables(small, script, tmp_path):
  done = script("train", *small, "--shard_tables", "--parallel=pmap", f"--workdir={tmp_path}/run")
  assert done.returncode == 2 and "--shard_tables needs --parallel=jit" in done.stderr
  assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "run").exists()


if __name__ == "__main__":
  arguments = sys.argv[1:]
  (begin if arguments[0].startswith("--") else count_in_loops)(arguments) if arguments else compare()
