"""What a researcher extends is one file of their own: named on the command line, in Python, in help and in tables."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from conftest import in_a_folder

import kd_jax

METHOD = '''
"""A margin between what the teacher ranks first and what it does not list."""
import jax
import jax.numpy as jnp

from kd_jax.base import KD, Lists


def margin(k: int = 5, uninteresting: int = 5, width: float = 1.0) -> KD:
  def sample(rng, view):
    return {"items": jnp.concatenate([view.teacher.items, view.unseen])}

  def loss(student, teacher, batch):
    liked, others = student.scores[:, :k], student.scores[:, k:]
    return jnp.mean(jax.nn.relu(width + others[:, None, :] - liked[:, :, None]), axis=(1, 2))

  return KD(loss, Lists(teacher=k, unseen=uninteresting), sample, teacher_scores=False)


def adaptive(k: int = 5, sharpness: float = 1.0) -> KD:
  """The same; a user weighs more the larger its loss was when it was last in a batch."""
  def sample(rng, view):
    weight = jnp.exp(sharpness * view.loss)
    return {"items": jnp.concatenate([view.teacher.items, view.unseen]), "before": view.loss, "weight": weight}

  def loss(student, teacher, batch):
    liked, others = jnp.split(student.scores, 2, axis=1)
    pairs = jax.nn.relu(1 + others[:, None, :] - liked[:, :, None])
    return jnp.mean(pairs, axis=(1, 2)), {"in_order": jnp.mean(pairs < 1, axis=(1, 2)), "before": batch["before"]}

  return KD(loss, Lists(teacher=k, unseen=k), sample, teacher_scores=False, own_loss=True)
'''
METRICS = '''
"""A metric that is no mean over users, and one of graded relevance."""
import numpy as np

from kd_jax.base import Metric


def coverage(k: int = 10) -> Metric:
  """The share of the catalogue that is in some user's top k."""
  def value(found):
    return len(np.unique(found.lists.items[found.lists.items >= 0])) / found.dataset.num_items

  return Metric(value, per_user=False, lists=k)


def graded_ndcg(k: int = 10) -> Metric:
  """NDCG with the gain 2^rating - 1 of a held-out item."""
  def value(found):
    gain = 2.0 ** found.ratings - 1
    listed = np.where(found.ranks < k, gain / np.log2(found.ranks + 2), 0)
    ideal = np.zeros(len(found.users))
    for user, (start, count) in enumerate(zip(found.start, found.counts, strict=True)):
      best = np.sort(gain[start : start + count])[::-1][:k]
      ideal[user] = (best / np.log2(np.arange(len(best)) + 2)).sum()
    return found.total(listed) / ideal

  return Metric(value)
'''
OBJECTIVE = '''
"""DirectAU: Wang et al., KDD 2022."""
import jax
import jax.numpy as jnp

from kd_jax.base import Objective


def direct_au(gamma: float = 1.0) -> Objective:
  """Alignment of users with their items, and uniformity of the users and of the items of the whole batch."""
  def loss(outputs, batch, rng):
    unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    users, items = unit(outputs.query), unit(outputs.items[:, 0])
    there = batch["weight"] > 0
    alignment = jnp.sum((users - items) ** 2, axis=1)
    uniformity = lambda x: jnp.log(jnp.sum(_pairs(there) * jnp.exp(-2 * _squared(x))) / jnp.sum(_pairs(there)))
    return alignment + gamma * (uniformity(users) + uniformity(items)) / 2

  return Objective(loss, in_batch=True)


def _squared(x):
  return jnp.maximum(2 - 2 * x @ x.T, 0)


def _pairs(there):
  return (there[:, None] & there).astype(jnp.float32) * (1 - jnp.eye(len(there)))
'''
SCHEDULE = '''
"""A warm-up, then a cosine."""
import optax


def rise_and_fall(learning_rate, steps_per_epoch, epochs, warmup: float = 1.0, depth: float = 0.0) -> optax.Schedule:
  assert depth == -2.5, "a negative value of an argument reaches the factory"
  return optax.warmup_cosine_decay_schedule(0.0, learning_rate, int(warmup * steps_per_epoch), steps_per_epoch * epochs)
'''
CALLBACK = '''
"""Writes what it is told."""
import json

from kd_jax.base import Callback


def recorder(path: str = "told.jsonl") -> Callback:
  def tell(event):
    def write(run):
      with open(path, "a") as file:
        file.write(json.dumps([event, run.epoch, sorted(run.line), run.best_epoch]) + "\\n")
    return write

  return Callback(*map(tell, ("start", "epoch", "validation", "end")))
'''
FILES = {"my_losses": METHOD, "my_metrics": METRICS, "my_objectives": OBJECTIVE, "my_schedules": SCHEDULE,
         "my_callbacks": CALLBACK}
RATED = "movielens"


def package_hash():
  files = sorted(p for p in pathlib.Path(kd_jax.__file__).parent.rglob("*") if p.suffix == ".py")
  return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()


@pytest.fixture
def folder(tmp_path, monkeypatch):
  for name, text in FILES.items():
    (tmp_path / f"{name}.py").write_text(text)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
  yield tmp_path
  for name in FILES:
    sys.modules.pop(name, None)


def lines(run):
  return [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.short
def test_a_new_method_trains_from_its_own_file(tmp_path, teacher, small, script):
  before = package_hash()
  (tmp_path / "my_losses.py").write_text(METHOD)
  arguments = [*small, f"--teacher={teacher}", "--workdir=run", "--kd=0.5*my_losses.margin(k=7, width=2.0)"]
  made = script("train", *arguments, cwd=tmp_path)
  assert made.returncode == 0, made.stderr
  own = [next(value for name, value in line["loss"].items() if name != "base") for line in lines(tmp_path / "run")]
  assert len(own) == 3 and 0 < own[-1] < own[0]
  assert package_hash() == before

  wrong = script("train", *arguments[:-1], "--kd=my_losses.margin(widht=2.0)", "--workdir=other", cwd=tmp_path)
  assert wrong.returncode != 0 and "width=1.0" in wrong.stderr and len(wrong.stderr.splitlines()) == 1
  assert not (tmp_path / "other").exists()


def test_help_lists_what_stands_in_the_working_directory(folder, script):
  told = script("train", "--help", cwd=folder).stdout
  for line in ("my_losses.margin(k=5, uninteresting=5, width=1.0)", "my_metrics.coverage(k=10)",
               "my_objectives.direct_au(gamma=1.0)", "my_schedules.rise_and_fall(warmup=1.0, depth=0.0)",
               "my_callbacks.recorder(path='told.jsonl')"):
    assert line in told


def test_all_parts_at_once_from_the_command_line(folder, small, teacher, script):
  done = script("train", *small, "--workdir=run", f"--teacher={teacher}", "--kd=0.5*my_losses.adaptive(k=7)",
                "--metrics=my_metrics.coverage@7, ndcg@7", "--monitor=my_metrics.coverage@7",
                "--schedule=my_schedules.rise_and_fall(depth=-2.5)",
                "--callbacks=my_callbacks.recorder() + tensorboard()", cwd=folder)
  assert done.returncode == 0, done.stderr
  found = lines(folder / "run")
  assert all({"my_metrics.coverage@7", "ndcg@7"} <= set(line["validation"]) for line in found)
  best = max(found, key=lambda line: line["validation"]["my_metrics.coverage@7"])
  assert json.loads((folder / "run" / "result.json").read_text())["best_epoch"] == best["epoch"]
  told = [json.loads(x) for x in (folder / "told.jsonl").read_text().splitlines()]
  events = [event for event, *_ in told]
  assert events == ["start", *["validation", "epoch"] * 3, "end"]
  assert "scalars" in told[1][2]
  before = [next(v for k, v in line["scalars"].items() if k.endswith("/before")) for line in found]
  assert before[0] == 0 < before[1], "a user's own loss reaches its sampler in the next epoch"
  longer = script("train", *small, "--workdir=run", f"--teacher={teacher}", "--kd=0.5*my_losses.adaptive(k=7)",
                  "--metrics=my_metrics.coverage@7, ndcg@7", "--monitor=my_metrics.coverage@7",
                  "--schedule=my_schedules.rise_and_fall(depth=-2.5)", "--epochs=5", cwd=folder)
  assert longer.returncode == 2 and "its --schedule depends" in longer.stderr

  from tensorboard.backend.event_processing import event_accumulator

  events = event_accumulator.EventAccumulator(str(folder / "run" / "tensorboard"))
  events.Reload()
  assert {"loss/base", "validation/ndcg_10", "seconds/train"} <= set(events.Tags()["scalars"])
  curve = [(x.step, x.value) for x in events.Scalars("loss/base")]
  np.testing.assert_allclose(curve, [(line["epoch"], line["loss"]["base"]) for line in found], rtol=1e-6)


def test_metrics_of_ones_own_on_test_and_on_streamed_data(folder, small, script, flags):
  """Coverage is not a mean over users: streamed, it must be that of all users together."""
  from kd_jax.evaluation import run_report
  from kd_jax.evaluation.options import EvaluationOptions
  from kd_jax.runs import loop
  from kd_jax.storage import run_directory

  options = EvaluationOptions(metrics="my_metrics.coverage@10")
  values = {}
  for name, memory in (("whole", 0.0), ("streamed", 3e-4)):
    loop.train(flags(*small, "--epochs=1", f"--workdir={folder / name}", f"--data_memory={memory}"))
  for name in ("whole", "streamed"):
    (folder / name / "run.json").write_text((folder / "whole" / "run.json").read_text().replace(
        '"data_memory": 0.0', f'"data_memory": {3e-4 if name == "streamed" else 0.0}'))
  import shutil

  shutil.rmtree(folder / "streamed" / "checkpoints")
  shutil.copytree(folder / "whole" / "checkpoints", folder / "streamed" / "checkpoints")
  for name in ("whole", "streamed"):
    run_directory.seal(folder / name)
    values[name] = run_report.evaluate_run(str(folder / name), options=options)["metrics"]
  assert values["whole"]["my_metrics.coverage@10"] == values["streamed"]["my_metrics.coverage@10"] > 0
  assert values["whole"]["ndcg@10"] == pytest.approx(values["streamed"]["ndcg@10"], rel=1e-12)

  fitted = kd_jax.fit(flags(*small).data, model="mf(dim=4)", epochs=1, batch_size=256)
  listed = fitted.top_k(k=10, users=np.unique(kd_jax.load_data(flags(*small).data, splits=("test",)).test.users))
  found = kd_jax.evaluate(fitted, metrics="my_metrics.coverage@10")
  assert found["my_metrics.coverage@10"] == len(np.unique(listed.items)) / fitted.dataset.num_items


def test_graded_ndcg_agrees_with_scikit_learn(folder, real_data):
  from sklearn.metrics import ndcg_score

  data = kd_jax.load_data(RATED, real_data, splits=("train", "validation", "test"))
  fitted = kd_jax.fit(data, model="mf(dim=4)", epochs=2)
  found = kd_jax.evaluate(fitted, metrics="my_metrics.graded_ndcg@10")
  scores = fitted.scores(np.arange(20))
  scores[data.train.users[data.train.users < 20], data.train.items[data.train.users < 20]] = -1e9
  for user in range(20):
    own = data.test.users == user
    if own.any():
      gain = np.zeros(data.num_items)
      gain[data.test.items[own]] = 2 ** data.test.ratings[own] - 1
      expected = ndcg_score(gain[None], scores[user][None].astype(np.float64), k=10, ignore_ties=True)
      value = found.values["my_metrics.graded_ndcg@10"][found.users == data.user_ids[user]]
      assert value == pytest.approx(expected, abs=1e-6)


DIRECT_AU = """
import sys
import numpy as np
from kd_jax import fit
run = fit("synthetic(users=100, items=240, interactions_per_user=16)", model="mf(dim=4, init_std=0.1)", epochs=2,
          batch_size=256, learning_rate=0.02, loss="my_objectives.direct_au(gamma=0.5)", parallel=sys.argv[1])
np.savez(sys.argv[2], losses=[line["loss"]["base"] for line in run.history], **run.params)
"""


def direct_au(folder):
  """{run: losses and parameters} on one and four devices."""
  (folder / "my_objectives.py").write_text(OBJECTIVE)
  made = {}
  for name, devices, mode in (("one", 1, "jit"), ("four", 4, "jit"), ("pmap", 4, "pmap")):
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(
        [str(folder), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", DIRECT_AU, mode, f"{name}.npz"], env=environment, cwd=folder,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    made[name] = dict(np.load(folder / f"{name}.npz"))
  return made


BESIDE = {"direct_au": in_a_folder(direct_au)}


def test_a_base_loss_that_compares_examples_is_equal_on_one_and_four_devices(beside):
  made = beside("direct_au")
  for name in ("four", "pmap"):
    assert np.isfinite(made["one"]["losses"]).all() and made["one"]["losses"][1] < made["one"]["losses"][0]
    for key, value in made["one"].items():
      np.testing.assert_allclose(made[name][key], value, rtol=1e-4, atol=1e-6)


def test_data_of_ones_own_loader_is_prepared_again_when_its_code_has_changed(folder):
  loader = '''
from kd_jax.data.recipe import Log, Recipe
import numpy as np

def shop(users=30) -> Recipe:
  def read(paths):
    rng = np.random.default_rng({seed})
    rows = np.repeat(np.arange(users), 12)
    items = np.concatenate([rng.choice(40, 12, replace=False) for _ in range(users)])
    return Log(rows, items, [f"u{{u}}" for u in range(users)], [f"i{{i}}" for i in range(40)])
  return Recipe(read, ())
'''
  (folder / "my_data.py").write_text(loader.format(seed=0))
  first = kd_jax.load_data("my_data.shop()", cache_dir=folder / "cache")
  sys.modules.pop("my_data")
  (folder / "my_data.py").write_text(loader.format(seed=1))
  second = kd_jax.load_data("my_data.shop()", cache_dir=folder / "cache")
  assert first.hashes["train"] != second.hashes["train"]
  sys.modules.pop("my_data")
