"""Warm starts take what fits, by name and id; frozen parameters stay as they are, to the bit."""

import json
import types

import jax
import numpy as np
import pytest

from kd_jax import registry
from kd_jax.base import InputError
from kd_jax.runs import loop, setup
from kd_jax.storage import checkpoint
from kd_jax.teachers import warm_start
from kd_jax.training import parameters


def best(directory):
  return checkpoint.restore_best(directory)[0]["student"]


def write_log(path, users, items, seed):
  rng = np.random.default_rng(seed)
  rows = [f"{user},{item}" for user in users for item in rng.choice(items, 12, replace=False)]
  path.write_text("\n".join(["user,item", *rng.permutation(rows), ""]))


@pytest.fixture(scope="module")
def domains(tmp_path_factory, flags):
  """Two logs that share users u20-u29 and items i30-i59, and a run on the first one."""
  folder = tmp_path_factory.mktemp("domains")
  write_log(folder / "a.csv", [f"u{n}" for n in range(30)], [f"i{n}" for n in range(60)], 0)
  write_log(folder / "b.csv", [f"u{n}" for n in range(20, 60)], [f"i{n}" for n in range(30, 80)], 1)
  data = [f"--data=interactions(path='{folder / name}.csv')" for name in "ab"]
  run = folder / "run"
  loop.train(flags(data[0], "--model=mf(dim=4)", "--epochs=2", "--batch_size=64", f"--workdir={run}"))
  return types.SimpleNamespace(run=run, a=data[0], b=data[1])


def test_rows_of_another_domain_are_found_by_id(domains, flags, capsys):
  values = flags(domains.b, "--model=mf(dim=4)", f"--init_from={domains.run}", "--workdir=x")
  ready = setup.prepare(values)
  source = setup.prepare(flags(domains.a, "--model=mf(dim=4)", "--workdir=x")).dataset
  rng, sizes = np.random.default_rng(3), {"user": ready.dataset.num_users, "item": ready.dataset.num_items}
  fresh = {side: rng.normal(size=(size, 4)).astype(np.float32) for side, size in sizes.items()}
  found, trained = warm_start.start(jax.tree.map(jax.numpy.asarray, fresh), ready.warm_start.found), best(domains.run)
  shared = {"user": 0, "item": 0}
  for side in shared:
    ids, others = getattr(ready.dataset, f"{side}_ids").tolist(), getattr(source, f"{side}_ids").tolist()
    for row, text in enumerate(ids):
      shared[side] += text in others
      expected = trained[side][others.index(text)] if text in others else fresh[side][row]
      np.testing.assert_array_equal(found[side][row], expected)
  assert 0 < shared["user"] < 40 and 0 < shared["item"] < 50
  said = capsys.readouterr().out
  assert f"user [40, 4]: {shared['user']} of 40 users" in said and f"item [50, 4]: {shared['item']} of 50 items" in said


def test_as_many_users_as_items_are_told_apart_by_name(domains):
  ids = np.array(["a", "b", "c"]), np.array(["c", "b", "a"])
  sides = [warm_start._Side("user", ids[0], ids[0]), warm_start._Side("item", ids[0], ids[1])]
  values = np.arange(6.0).reshape(3, 2)
  for name, expected in (("user", values), ("item_bias", values[::-1])):
    found, said = warm_start._match(name, (3, 2), values, sides)
    np.testing.assert_array_equal(found.values, expected)
    assert "all 3" in said and found.rows is None


def test_a_student_starts_from_its_teacher_and_says_so(teacher, flags, small, tmp_path, capsys):
  run = (*small, "--model=mf(dim=16)", f"--init_from={teacher}", f"--workdir={tmp_path / 'run'}")
  result = loop.train(flags(*run, "--learning_rate=1e-9", "--epochs=1"))
  assert "item [222, 16]: all 222 items" in capsys.readouterr().out
  there = json.loads((teacher / "result.json").read_text())
  assert result["validation"] == pytest.approx(there["validation"], abs=1e-6)  # nothing was learned beyond
  assert json.loads((tmp_path / "run" / "run.json").read_text())["init_from"][0]["model"] == "mf(dim=16)"


def test_parts_of_another_model_are_taken(teacher, flags, small):
  ready = setup.prepare(flags(*small, "--model=cdae(dim=16)", f"--init_from={teacher}", "--workdir=x"))
  assert set(ready.warm_start.found) == {"user"}
  assert ready.warm_start.report["encoder"] == "not found"


@pytest.mark.parametrize(("arguments", "said"), [
    (("--model=mf(dim=8)",), r"nothing of mf\(dim=16\) fits: item not loaded, \[222, 16\] there"),
    (("--model=pop()",), "computed, not trained"), (("--init_from=nowhere",), "no run directory"),
    (("--freeze=itme",), "`freeze=itme`: matches none of item, user"),
    (("--freeze=*",), "leaves nothing of item, user to train")])
def test_what_cannot_be_is_refused(arguments, said, teacher, flags, small):
  with pytest.raises(InputError, match=said):
    setup.prepare(flags(*small, "--model=mf(dim=16)", f"--init_from={teacher}", "--workdir=x", *arguments))


def test_frozen_parameters_stay_to_the_bit_and_resume(teacher, flags, small, tmp_path):
  own = ("--model=mf(dim=16)", "--freeze=item", "--weight_decay=0.1", f"--init_from={teacher}", f"--teacher={teacher}",
         "--kd=kl(k=10)")

  def run(name, epochs):
    return loop.train(flags(
        *small, *own, f"--epochs={epochs}", f"--workdir={tmp_path / name}"))

  run("whole", 2), run("parts", 1), run("parts", 2)
  before, after, resumed = best(teacher), best(tmp_path / "whole"), best(tmp_path / "parts")
  np.testing.assert_array_equal(after["item"], before["item"])
  assert (after["user"] != before["user"]).any(axis=1).all()
  jax.tree.map(np.testing.assert_array_equal, after, resumed)
  with pytest.raises(InputError, match="`freeze=user`"):
    loop.train(flags(*small, *own, "--freeze=user", "--epochs=2", f"--workdir={tmp_path / 'whole'}"))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_no_optimizer_and_no_decay_moves_what_is_frozen(name):
  params = {"networks": {"student": {"item": np.ones(3), "a": {"item": np.ones(3)}}, "peer": {"item": np.ones(3)}},
            "adapters": {}}
  optimizer = registry.build("optimizers", registry.Call(name), learning_rate=0.1, weight_decay=0.5, decayed=None)
  optimizer = parameters.freeze(optimizer, ("item", "b*"))
  updates, _ = optimizer.update(jax.tree.map(np.ones_like, params), optimizer.init(params), params)
  moved = {k: bool((v != 0).any()) for k, v in warm_start.named(updates).items()}
  assert moved == {"networks/student/item": False, "networks/student/a/item": True, "networks/peer/item": True}
