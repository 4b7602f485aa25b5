"""Several runs at once are the runs that they would be alone; sweeps and seeds name their runs."""

import functools
import itertools

import jax
import numpy as np
import pytest
from loop_test import RRD, outcome
from parallel_test import on_devices

from kd_jax import cli
from kd_jax.base import InputError
from kd_jax.runs import loop, sweep
from kd_jax.storage import checkpoint, run_directory

LATE = {"learning_rate": "3e-2", "epochs": "8", "patience": "2"}  # seeds stop at different epochs


@pytest.fixture
def given(small, tmp_path):
  """given("name", "--flag", ...): parsed flags of the training script, --workdir in the test's folder."""
  definition = cli.define(cli.FIT, seeds=cli.flag("integer", 1, "", above=0), sweep=cli.flag("string", "", ""))
  return lambda name, *own: definition.parse([*small, f"--workdir={tmp_path / name}", *own])


def points(values):
  return sweep.points(cli.options_of(cli.FitOptions, values), values.sweep, values.seeds)


def train(values):
  return loop.train(cli.options_of(cli.FitOptions, values))


def together(values):
  every = [one for _, several in points(values) for one in several]
  return every, loop.train_many(every)


@pytest.mark.parametrize("own", [(), (RRD,)], ids=["plain", "distilled"])
def test_seeds_at_once_are_the_seeds_alone_bit_for_bit(given, teacher, tmp_path, own):
  own = [*own, *([f"--teacher={teacher}"] if own else []), *(f"--{k}={v}" for k, v in LATE.items())]
  every, results = together(given("all", "--seeds=3", "--seed=5", *own))
  stopped = set()
  for seed, point, result in zip((5, 6, 7), every, results, strict=True):
    train(given(f"alone{seed}", f"--seed={seed}", *own))
    assert point.workdir == str(tmp_path / "all" / f"seed{seed}")
    assert outcome(tmp_path / "all" / f"seed{seed}") == outcome(tmp_path / f"alone{seed}")
    assert result == run_directory.read_json(tmp_path / "all" / f"seed{seed}" / run_directory.RESULT)
    stopped.add(result["epochs"])
  assert len(stopped) > 1


def test_runs_that_stand_at_different_epochs_go_on_together(given, tmp_path):
  for seed, epochs in ((0, 2), (1, 4)):
    train(given(f"all/seed{seed}", f"--seed={seed}", f"--epochs={epochs}"))
  together(given("all", "--seeds=3", "--epochs=5"))
  for seed in range(3):
    train(given(f"alone{seed}", f"--seed={seed}", "--epochs=5"))
    assert outcome(tmp_path / "all" / f"seed{seed}") == outcome(tmp_path / f"alone{seed}")


def test_a_sweep_is_every_combination(given, tmp_path):
  found = points(given("all", "--sweep=learning_rate=1e-2|1e-3; kd=kl(k=5)|0.1*rrd(k=5, depth=30)", "--seeds=2"))
  assert [name for name, _ in found] == [
      f"learning_rate={rate},kd={kd}" for rate in ("1e-2", "1e-3") for kd in ("kl(k=5)", "0.1*rrd(k=5, depth=30)")]
  one = found[3][1][1]
  assert (one.learning_rate, one.kd, one.seed) == (1e-3, "0.1*rrd(k=5, depth=30)", 1)
  assert one.workdir == str(tmp_path / "all" / "learning_rate=1e-3_kd=0.1_rrd_k=5_depth=30_seed1")
  assert len({one.workdir for _, several in found for one in several}) == 8


def test_a_sweep_trains_its_points_and_ranks_them(given, tmp_path):
  values = given("all", "--sweep=learning_rate=1e-9|3e-2", "--epochs=3")
  _, results = together(values)
  train(given("alone", "--learning_rate=3e-2", "--epochs=3"))
  assert outcome(tmp_path / "all" / "learning_rate=3e-2_seed0") == outcome(tmp_path / "alone")
  first, second = sweep.summary([name for name, _ in points(values)], [[r] for r in results])
  best = run_directory.read_json(tmp_path / "alone" / run_directory.RESULT)["validation"]["ndcg@10"]
  assert first == f"learning_rate=3e-2: validation ndcg@10 {best:.4f}" and second.startswith("learning_rate=1e-9")


def test_a_run_that_diverges_leaves_the_others_alone(given, small, script, tmp_path):
  own = ["--optimizer=sgd", "--epochs=4"]
  sweep_of = [*small, *own, "--sweep=learning_rate=3e-2|1e+06|1e-2", f"--workdir={tmp_path / 'all'}"]
  diverged = tmp_path / "all" / "learning_rate=1e+06_seed0"
  done = script("train", *sweep_of)
  assert done.returncode == 2, done.stderr
  *_, first, second, last = done.stdout.splitlines()
  assert {first[:19], second[:19]} == {"learning_rate=3e-2:", "learning_rate=1e-2:"}
  assert last == "learning_rate=1e+06: 1 of 1 runs diverged"
  said = done.stderr.splitlines()[-1]
  assert said.startswith(f"train.py: 1 of 3 runs diverged: {diverged}: epoch ")
  for rate in ("3e-2", "1e-2"):
    train(given(f"alone{rate}", f"--learning_rate={rate}", *own))
    assert outcome(tmp_path / "all" / f"learning_rate={rate}_seed0") == outcome(tmp_path / f"alone{rate}")
  with pytest.raises(InputError, match=r"alone: epoch \d: a loss is not finite") as error:
    train(given("alone", "--learning_rate=1e+06", *own))
  assert said.endswith(cli.as_flags(str(error.value)).replace(str(tmp_path / "alone"), str(diverged)))
  assert {path.name for path in diverged.iterdir()} == {path.name for path in (tmp_path / "alone").iterdir()}
  assert not (diverged / run_directory.RESULT).exists()
  finished, again, other = together(given("all", *sweep_of[len(small):-1]))[1]  # those that finished are reused
  assert cli.as_flags(str(again)) == said.partition("diverged: ")[2] and {"validation"} < finished.keys() & other.keys()


def test_a_run_whose_scores_are_not_finite_is_named_and_keeps_its_checkpoint(given, tmp_path, monkeypatch):
  values = given("all", "--seeds=2", "--epochs=5")
  together(given("all", "--seeds=2", "--epochs=2"))
  validate, number = loop._validate, itertools.count(1)

  def fail_once(ready, layout, params):
    if next(number) == 4:
      raise InputError("the scores are not finite")
    return validate(ready, layout, params)

  monkeypatch.setattr(loop, "_validate", fail_once)
  every, results = together(values)
  [n] = [n for n, result in enumerate(results) if isinstance(result, InputError)]
  assert str(results[n]).startswith(f"{every[n].workdir}: epoch 4: the scores are not finite; ")
  assert checkpoint.latest(every[n].workdir) == 2 and results[1 - n]["epochs"] == 5
  monkeypatch.undo()
  together(values)
  for seed in range(2):
    train(given(f"alone{seed}", f"--seed={seed}", "--epochs=5"))
    assert outcome(tmp_path / "all" / f"seed{seed}") == outcome(tmp_path / f"alone{seed}")


@pytest.mark.parametrize(("own", "words"), [
    ("--sweep=learning_rate", "is not FLAG=VALUE"), ("--sweep=rate=1|2", "is not FLAG=VALUE"),
    ("--sweep=seed=1|2", "is not FLAG=VALUE"), ("--sweep=learning_rate=1e-3|fast", "learning_rate"),
    ("--sweep=learning_rate=1e-3|-1", "must be positive"), ("--sweep=model=mf(dim=4)|mff(dim=4)", "mff"),
    ("--sweep=epochs=3|3", "the same"), ("--sweep=learning_rate=1e-2|0.01", "the same"),
    ("--sweep=epochs=3|4; epochs=5", "named twice")])
def test_points_that_are_none_are_refused(given, tmp_path, own, words):
  with pytest.raises(InputError, match=words) as error:
    points(given("all", own))
  assert "\n" not in str(error.value) and not (tmp_path / "all").exists()


@pytest.mark.parametrize("own", [("--seeds=2", "--parallel=pmap"), ("--sweep=parallel=jit|pmap",)])
def test_pmap_takes_one_run_at_a_time(given, tmp_path, own):
  with pytest.raises(InputError, match="`parallel=pmap`"):
    together(given("all", *own))
  assert not (tmp_path / "all").exists()


BESIDE = {"one program": functools.partial(on_devices, 4, file=__file__)}


def test_on_other_devices_runs_are_one_program(beside):
  done = beside("one program")
  assert done.returncode == 0, done.stderr[-3000:]


def compare():
  """Three runs, two of one kind, with teachers of their own and batches of different widths, on four devices."""
  import conftest
  import methods_contract_test as contract

  from kd_jax.devices import parallel

  dataset = conftest.build_dataset(num_users=300, num_items=950, train=3)
  several, alone = [], []
  for seed, kd in ((0, "rrd"), (1, "rrd"), (2, "kl")):
    drawn = contract.draw(dataset)
    if seed == 1:  # one padded user more
      drawn = {k: np.pad(v, ((0, 0), (0, 4))) if k.startswith("kd_users") else v for k, v in drawn.items()}
    run, given, state = contract.build(dataset, jax.tree.map(lambda x: x[0], drawn), contract.default(kd))
    given = given._replace(params=jax.tree.map(lambda x, s=seed: (1 + s) * x, given.params))
    arguments = (state, given, contract.sample(dataset, run, given, state.params), drawn, jax.random.key(seed))
    copy = jax.tree.map(lambda x: x.copy(), state)
    alone.append(parallel.compile_epoch(run, "jit", contract.BATCH)(copy, *arguments[1:]))
    several.append((run, arguments))
  assert jax.device_count() == 4
  for one, other in zip(alone, parallel.epochs(several, "jit", contract.BATCH), strict=True):
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
      np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6 * float(np.abs(y).max()) + 1e-6)


if __name__ == "__main__":
  compare()
