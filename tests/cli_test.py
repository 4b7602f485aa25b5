"""Wrong input is one line that names the flag or the file, and leaves nothing behind; help is quick."""

import os
import pathlib
import shutil

import jax
import numpy as np
import pytest

from kd_jax import cli
from kd_jax.base import InputError
from kd_jax.runs import loop, options
from kd_jax.storage import checkpoint, run_directory, sealed
from kd_jax.teachers import make_soft_labels, soft_labels

SCRIPTS = sorted(p.stem for p in (pathlib.Path(__file__).parent.parent / "scripts").glob("*.py"))

PARSED = [
    ("--workdri=x", "workdri"), ("--epoch=3", "epoch"), ("--learnig_rate=1", "learnig_rate"),
    ("epochs=3", "stray word 'epochs=3'"),
    ("--epochs 3 7", "stray word '7'"), ("--epochs=x", "--epochs"), ("--epochs=1.5", "--epochs"),
    ("--epochs=-1", "`epochs=-1`: must be positive"), ("--epochs=0", "`epochs=0`: must be positive"),
    ("--learning_rate=nan", "`learning_rate=nan`"), ("--learning_rate=inf", "`learning_rate=inf`"),
    ("--learning_rate=-1", "`learning_rate="), ("--learning_rate=0", "`learning_rate="),
    ("--weight_decay=-1", "`weight_decay="),
    ("--weight_decay=nan", "`weight_decay="), ("--patience=-1", "`patience="), ("--seed=-1", "`seed="),
    ("--seed=4294967296", "`seed=4294967296`: must be less than 4,294,967,296"),
    ("--batch_size=0", "`batch_size="), ("--negatives=0", "`negatives="), ("--eval_every=0", "`eval_every="),
    ("--loss=bqr", "bce, bpr, cross_entropy, softmax"), ("--kd_per=item", "`kd_per="),
    ("--reduction=max", "`reduction="), ("--parallel=both", "`parallel="), ("--optimizer=lamb", "`optimizer="),
    ("--epochs", "epochs"),
    ("--kd=rcedk()", "did you mean rcekd"), ("--kd=kl(temp=1)", "temperature=1.0"), ("--kd=kl(k=x)", "not a literal"),
    ("--model=mff()", "did you mean mf"), ("--model=mf(dims=2)", "dim=64"), ("--model=", "`model=`"),
    ("--data=movielenz", "did you mean movielens"), ("--data=synthetic(n=3)", "no argument 'n'"),
    ("--flagfile=/nowhere/at/all", "/nowhere/at/all")]


@pytest.mark.short
@pytest.mark.parametrize(("arguments", "said"), PARSED)
def test_wrong_flags_are_refused_before_anything_is_loaded(arguments, said, flags):
  with pytest.raises(InputError) as error:
    flags(*arguments.split(" "))
  message = str(error.value)
  assert said in message and len(message.splitlines()) == 1


def test_flags_are_parsed(flags, tmp_path):
  (tmp_path / "flags.txt").write_text("--epochs=7\n--seed=3\n")
  values = flags(f"--flagfile={tmp_path / 'flags.txt'}", "--epochs=9", "--kd=0.5*kl(k=3) + rrd()")
  assert (values.epochs, values.seed, values.negatives, values.optimizer) == (9, 3, 1, "adam")


def test_a_flagfile_that_is_no_text_is_refused(flags, tmp_path):
  (tmp_path / "flags.txt").write_bytes(b"--epochs=7\n\xff")
  with pytest.raises(InputError, match="`flagfile`: not a text in UTF-8"):
    flags(f"--flagfile={tmp_path / 'flags.txt'}")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory, flags, small):
  """A run on other data of the same shape."""
  directory = tmp_path_factory.mktemp("elsewhere") / "run"
  data = small[0].replace(")", ", seed=1)")
  loop.train(flags(*small, data, "--epochs=1", f"--workdir={directory}"))
  return directory


@pytest.fixture(scope="module")
def labels(tmp_path_factory, teacher):
  directory = tmp_path_factory.mktemp("labels") / "labels"
  make_soft_labels.write(str(teacher), str(directory), 20, True)
  return directory


@pytest.fixture(scope="module")
def bad_teacher(tmp_path_factory, teacher):
  """The teacher, with a NaN among its parameters."""
  directory = tmp_path_factory.mktemp("bad") / "run"
  shutil.copytree(teacher, directory)
  best, metadata = checkpoint.restore_best(directory)
  best["student"]["user"][17, 3] = np.nan
  checkpoint.save(directory, 99, {}, best, metadata)
  return directory


@pytest.fixture(scope="module")
def bad_labels(tmp_path_factory, labels):
  """Labels signed anew after an item id was put out of range."""
  directory = tmp_path_factory.mktemp("bad") / "labels"
  manifest = sealed.manifest(labels, soft_labels.KIND)
  with sealed.writing(directory, soft_labels.KIND, manifest["metadata"]) as temporary:
    for name in manifest["files"]:
      with np.load(labels / name, allow_pickle=False) as stored:
        arrays = dict(stored)
      arrays["items"][5, 2] = 10_000
      np.savez(temporary / name, **arrays)
  return directory


NEEDS = {"good": "teacher", "elsewhere": "elsewhere", "labels": "labels", "bad": "bad_teacher",
         "bad_labels": "bad_labels"}
REFUSED = [
    ("--kd=kl(k=5)", "`kd` needs `teacher=RUN_OR_DIR`"), ("--teacher={good}", "no `kd`"),
    ("--kd=kl(k=5) --teacher=/nowhere/run", "`teacher=/nowhere/run`"),
    ("--kd=kl(k=5) --teacher={empty}", "neither a run directory nor soft labels"),
    ("--kd=kl(k=5) --teacher={elsewhere}", "other data"),
    ("--kd=kl(k=5) --teacher={bad}", "{bad}: parameters of its best epoch are not finite"),
    ("--kd=rrd(k=3,uninteresting=3,depth=9) --teacher={bad_labels}", "user 5"),
    ("--kd=rrd(k=3,uninteresting=3,depth=30) --teacher={labels}", "`top_k=30`"),
    ("--kd=kl(k=5) --teacher={labels}", "`exclude_seen=False`"),
    ("--kd=rcekd(k=3,depth=9,sampled=3) --teacher={labels}", "`kd`"),
    ("--kd=kl(candidates='most') --teacher={good}", "full, teacher, student"),
    ("--kd=kl(k=5000) --teacher={good}", "`kd`: lists of 5000"), ("--kd=rrd() --teacher={good}", "`kd`"),
    ("--kd=kl(k=0) --teacher={good}", "k"), ("--kd=kl(k=-1) --teacher={good}", "k"),
    ("--kd=kl(k=2.5) --teacher={good}", "k"),
    ("--kd=kl(temperature=0) --teacher={good}", "temperature"), ("--kd=kl(k='a') --teacher={good}", "k"),
    ("--kd=rrd(k=9,uninteresting=3,depth=5) --teacher={good}", "depth"),
    ("--kd=rcekd(k=9,depth=5,sampled=3) --teacher={good}", "depth"), ("--model=mf(dim=0)", "dim"),
    ("--model=mf(dim=-3)", "dim"), ("--model=mf(dim=1.5)", "dim"), ("--model=mf(dim='a')", "dim"),
    ("--model=pop() --kd=kl(k=5) --teacher={good}", "`model=pop()`"),
    ("--monitor=auc@10", "`monitor`"), ("--monitor=ndcg", "`monitor`"),
    ("--data=synthetic(users=50,items=60,ratios=(1.0,0.0,0.0))", "empty"),
    ("--data=synthetic(users=-5)", "`data`: synthetic needs positive integers"),
    ("--profile --epochs=2", "`profile`: a trace of the third epoch"),
    ("--workdir={file}", "{file}"), ("--workdir={taken}", "not empty"), ("--batch_size=10", "`batch_size=10`")]


@pytest.mark.parametrize(("arguments", "said"), REFUSED)
def test_wrong_runs_are_refused_and_leave_nothing(arguments, said, flags, small, tmp_path, request, monkeypatch):
  for name in ("empty", "taken"):
    (tmp_path / name).mkdir()
  for name in ("file", "taken/notes.txt"):
    (tmp_path / name).write_text("mine")
  places = {name: tmp_path / name for name in ("empty", "taken", "file")}
  places |= {k: request.getfixturevalue(v) for k, v in NEEDS.items() if f"{{{k}}}" in arguments}
  own = [x.format(**places) for x in arguments.split(" ")]
  if "--batch_size=10" in own:
    monkeypatch.setattr(jax, "device_count", lambda: 4)
  with pytest.raises(InputError) as error:
    loop.train(flags(*small, f"--workdir={tmp_path / 'run'}", *own))
  message = str(error.value)
  assert said.format(**places) in message and len(message.splitlines()) == 1
  left = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"}
  assert left == {"file", "taken/notes.txt"}


def test_a_changed_flag_is_refused_by_name_and_a_finished_run_is_left_alone(flags, small, tmp_path):
  def run(*own):
    return loop.train(flags(*small, f"--workdir={tmp_path / 'run'}", *own))

  first = run()
  kept = ("metrics.jsonl", "manifest.json", "flags.txt", "run.json", "result.json")

  def contents():
    return {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.name in kept}

  before = contents()
  assert run() == first and contents() == before and len(before) == len(kept)
  for changed in ("--learning_rate=0.5", "--seed=1", "--model=mf(dim=5)"):
    with pytest.raises(InputError, match="other flags") as error:
      run(changed)
    assert f"`{changed.partition('(')[0][2:]}" in str(error.value)
  assert contents() == before


def test_flags_of_a_run_are_the_same_however_they_are_written(flags, small, tmp_path, monkeypatch):
  def values(teacher, kd="0.5*kl( ) + rrd()"):
    return options.texts(flags(*small, f"--teacher={teacher}", f"--kd={kd}"))

  def check(texts):
    return run_directory.check_flags("run", texts, {}, 3, True)

  info = {key: [] for key in ("hashes", "teacher", "features", "init_from", "versions", "devices")}
  (tmp_path / "run").mkdir()
  run_directory.start(tmp_path / "run", values(tmp_path / "a", "0.5*kl(\n) + rrd()"), info)
  monkeypatch.chdir(tmp_path)
  for teacher in ("a", "./a", f"{tmp_path}/a/", "run/../a"):
    check(values(teacher))
  for teacher in ("b", "run/a", "a,a", "file:a"):
    with pytest.raises(InputError, match="other flags: `teacher="):
      check(values(teacher))


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_and_wrong_flags_need_no_jax(name, script, tmp_path):
  for package in ("jax", "flax", "tensorflow_datasets", "optax", "orbax"):
    (tmp_path / f"{package}.py").write_text("raise SystemExit('imported ' + __name__)")
  path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
  environment = os.environ | {"PYTHONPATH": path}
  told = script(name, "--help", env=environment)
  assert told.returncode == 0 and not told.stderr and "Flags:" in told.stdout
  wrong = script(name, "--no_such_flag=1", env=environment)
  assert wrong.returncode == 2 and not wrong.stdout
  assert len(wrong.stderr.splitlines()) == 1 and "no_such_flag" in wrong.stderr


def test_help_lists_every_method_with_its_arguments(script):
  told = script("train", "--help").stdout
  assert "rrd(k=40, uninteresting=40, temperature=10.0, depth=500)" in told and "mf(dim=64, init_std=0.01)" in told


@pytest.mark.parametrize(("name", "arguments", "said"), [
    ("train", (), "--workdir"), ("train", ("--workdir=run", "--kd=rcedk()"), "did you mean rcekd"),
    ("train", ("--workdir=run", "--data=synthetic(users=60,items=60)", "--teacher=nowhere", "--kd=kl()"),
     "--teacher=nowhere"),
    ("train", ("--workdir=/dev/null/run", "--data=synthetic(users=60,items=60)"), "/dev/null/run"),
    ("evaluate", (), "--run"), ("evaluate", ("--run=nowhere",), "nowhere"),
    ("evaluate", ("--run=x", "--split=train"), "--split"), ("evaluate", (f"--run={'x' * 300}",), "File name too long"),
    ("soft_labels", ("--teacher=nowhere", "--out=out"), "nowhere"), ("soft_labels", ("--top_k=0",), "--top_k=0"),
    ("export", ("--run=nowhere", "--out=out"), "nowhere"), ("export", ("--run=x",), "--out"),
    ("reproduce", ("--table=nope", "--workdir=run"), "--table=nope"), ("prepare", ("--data=nope",), "'nope'")])
def test_scripts_end_with_one_line_and_status_two(name, arguments, said, script, tmp_path):
  done = script(name, *arguments, cwd=tmp_path)
  assert done.returncode == 2
  assert len(done.stderr.splitlines()) == 1 and said in done.stderr and done.stderr.startswith(f"{name}.py: ")
  assert not list(tmp_path.iterdir())


def test_usage_names_every_flag():
  definition = cli.define(cli.FIT, cli.PROCESSES, seeds=cli.flag("integer", 1, "How many."))
  text = cli.usage("Trains.", definition)
  assert {"flagfile", "data", "coordinator", "seeds"} < set(definition)
  assert all(f"--{name}=" in text for name in definition)
