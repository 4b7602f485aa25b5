"""Wrong input is one line that names the flag or the file, and leaves nothing behind; help is quick."""

import errno
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from kd_jax import cli
from kd_jax.base import InputError
from kd_jax.devices import signals
from kd_jax.runs import loop, memory, options, setup
from kd_jax.storage import checkpoint, run_directory, sealed
from kd_jax.teachers import make_soft_labels, soft_labels

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = sorted(p.stem for p in (ROOT / "scripts").glob("*.py"))

PARSED = [
    ("--workdri=x", "workdri"), ("--epoch=3", "epoch"), ("--learnig_rate=1", "learnig_rate"),
    ("epochs=3", "stray word 'epochs=3'"),
    ("--epochs 3 7", "stray word '7'"), ("--epochs=x", "--epochs"), ("--epochs=1.5", "--epochs"),
    ("--epochs=-1", "`epochs=-1`: must be positive"), ("--epochs=0", "`epochs=0`: must be positive"),
    ("--learning_rate=nan", "`learning_rate=nan`"), ("--learning_rate=inf", "`learning_rate=inf`"),
    ("--learning_rate=-1", "`learning_rate="), ("--learning_rate=0", "`learning_rate="),
    ("--weight_decay=-1", "`weight_decay="),
    ("--weight_decay=nan", "`weight_decay="), ("--patience=-1", "`patience="), ("--seed=-1", "`seed="),
    ("--seed=4294967296", "`seed=4294967296`: must be at most 4,294,967,295"),
    ("--batch_size=0", "`batch_size="), ("--negatives=0", "`negatives="), ("--eval_every=0", "`eval_every="),
    ("--loss=bqr", "bce, bpr, cross_entropy, softmax"), ("--kd_per=item", "`kd_per="),
    ("--reduction=max", "`reduction="), ("--parallel=both", "`parallel="), ("--optimizer=lamb", "`optimizer="),
    ("--epochs", "epochs"),
    ("--kd=rcedk()", "did you mean rcekd"), ("--kd=kl(temp=1)", "temperature=1.0"), ("--kd=kl(k=x)", "not a literal"),
    ("--model=mff()", "did you mean mf"), ("--model=mf(dims=2)", "dim=64"), ("--model=", "`model=`"),
    ("--data=movielenz", "did you mean movielens"), ("--data=synthetic(n=3)", "no argument 'n'"),
    ("--flagfile=/nowhere/at/all", "/nowhere/at/all"), ("--flagfile=/", "directory"),
    ("--flagfile=/dev/zero", "a device"), ("--" + "a" * 5000, "no such flag"), ("--flagfile=a\0b", "null"),
    ("--batch_size=1000000000", "`batch_size=1000000000`: must be at most 16,777,216"),
    ("--negatives=100000000", "`negatives=100000000`: must be at most"),
    ("--weight_decay=1e30", "`weight_decay=1e+30`"),
    ("--learning_rate=1e30", "`learning_rate=1e+30`"), ("--loss_weight=1e30", "`loss_weight=1e+30`"),
    ("--embedding_l2=1e30", "`embedding_l2=1e+30`"), ("--data_memory=1e300", "`data_memory=1e+300`"),
    ("--epochs=9999999999", "`epochs=9999999999`"), ("--patience=9999999999", "`patience="),
    ("--epochs=" + "9" * 5000, "--epochs"), ("--kd=-1*kl()", "the weight -1"),
    ("--callbacks=2*progress()", "no weights"),
    ("--model=sasrec(dropout=2)", "dropout=2 is not in [0, 1)"), ("--model=sasrec(dropout={[]:1})", "not a literal"),
    ("--model=mf(dim=10000000)", "dim=10000000 is not in [1, 65536]"), ("--optimizer=sgd(momentum=1)", "momentum=1"),
    ("--optimizer=adam(b1=-0.1)", "b1=-0.1"), ("--data=synthetic(seed='a')", "seed='a' is not of type int"),
    ("--data=numpy.array(object=1)", "numpy.array is no function of a Python file"), ("--workdir=a\0b", "`workdir=a"),
    ("--teacher=a\udcffb", "`teacher=a"), ("--kd=kl(\nx=1)", "`kd=kl( x=1)`"), ("--model=mff(\n)", "did you mean mf")]


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


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\0", b"epochs=7", b"--epochs=7\n\xff",
                                     b"--kd=" + b"(" * 9000, b"--epochs=7" * 9000, b"--no_such=1", b"--" + b"a" * 2000,
                                     b"--flagfile=\0"])
def test_damaged_flagfiles_are_refused_in_one_line(content, flags, tmp_path):
  (tmp_path / "flags.txt").write_bytes(content)
  with pytest.raises(InputError) as error:
    flags(f"--flagfile={tmp_path / 'flags.txt'}")
  assert "recursion" not in str(error.value) and "embedded" not in str(error.value)
  assert str(error.value).isprintable() and len(str(error.value)) < 2100


@pytest.mark.short
@pytest.mark.parametrize(("name", "value"), [
    ("batch_size", 2.5), ("batch_size", "2"), ("epochs", True), ("learning_rate", "x"), ("profile", 1), ("monitor", 3),
    ("freeze", None), ("teacher_unknown_ids", None), ("features", 3), ("user_features", b"x"), ("data_dir", 3),
    ("workdir", 3), ("allow_code", 3), ("data", 3), ("model", 3), ("kd", 3), ("callbacks", 3), ("seed", np.float64(1))])
def test_options_of_another_type_are_refused(name, value):
  with pytest.raises(InputError, match=rf"`{name}`: .* is expected, not {type(value).__name__.rstrip('64')}"):
    options.FitOptions(**{name: value})


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
  run_directory.seal(directory)
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
    ("--kd=kl(k=5000) --teacher={good}", "`kd`: lists of 5,000"), ("--kd=rrd() --teacher={good}", "`kd`"),
    ("--kd=kl(k=0) --teacher={good}", "k"), ("--kd=kl(k=-1) --teacher={good}", "k"),
    ("--kd=kl(k=2.5) --teacher={good}", "k"),
    ("--kd=kl(temperature=0) --teacher={good}", "temperature"), ("--kd=kl(k='a') --teacher={good}", "k"),
    ("--kd=rrd(k=9,uninteresting=3,depth=5) --teacher={good}", "depth"),
    ("--kd=rcekd(k=9,depth=5,sampled=3) --teacher={good}", "depth"), ("--model=mf(dim=0)", "dim"),
    ("--model=mf(dim=-3)", "dim"), ("--model=mf(dim=1.5)", "dim"), ("--model=mf(dim='a')", "dim"),
    ("--model=pop() --kd=kl(k=5) --teacher={good}", "`model=pop()`"),
    ("--monitor=auc@10", "`monitor`"), ("--monitor=ndcg", "`monitor`"),
    ("--data=synthetic(users=50,items=60,ratios=(1.0,0.0,0.0))", "empty"),
    ("--data=synthetic(users=-5)", "`data=synthetic(users=-5)`: synthetic: users=-5 is not in [1, "),
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


DEFINITION = cli.define(workdir=cli.flag("string", None, ""), out=cli.flag("string", None, ""))


@pytest.fixture
def ended(monkeypatch, capsys, tmp_path):
  """ended(main, *flags): the exit status of a script with this `main`, and the lines of its error."""
  def run(main, *flags):
    monkeypatch.setattr(sys, "argv", ["here/script.py", *flags])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as end:
      cli.run(main, "A script.", DEFINITION)
    return end.value.code, capsys.readouterr().err.splitlines()

  return run


class XlaRuntimeError(RuntimeError):
  """As that of JAX."""


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "place/x")
ERRORS = [
    (InputError("`epochs=0`: wrong\nin two lines"), 2, "--epochs=0: wrong in two lines"),
    (FULL, 2, "place/x: No space left"), (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 2, "a file: No space left"),
    (MemoryError(), 2, "not enough memory"),
    (MemoryError("Unable to allocate 8 TiB"), 2, "not enough memory (Unable to allocate 8 TiB)"),
    (XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nof 9 GB"), 2, "not enough memory (RESOURCE_EXHAUSTED"),
    (RuntimeError("UNKNOWN: No space left on device; x"), 2, "a file: No space left"),
    (RecursionError("maximum recursion depth"), 1, "RecursionError: maximum recursion depth"),
    (ZeroDivisionError("division\nby zero"), 1, "ZeroDivisionError: division; unforeseen: the traceback is in "),
    (AssertionError(), 1, "AssertionError: "),
    (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "x"), 1, "UnicodeEncodeError")]


@pytest.mark.parametrize(("error", "status", "said"), ERRORS)
def test_whatever_happens_is_one_line_with_its_cause(error, status, said, ended, tmp_path):
  def main(values):
    raise error

  code, lines = ended(main)
  assert code == status and len(lines) == 1 and lines[0].startswith(f"script.py: {said}")
  assert len(list(tmp_path.iterdir())) == (status == 1)


def test_a_full_disk_behind_an_error_of_a_library_is_named(ended):
  def main(values):
    try:
      raise FULL
    except OSError as error:
      raise ValueError("cannot serialise") from error

  assert ended(main) == (2, ["script.py: place/x: No space left on device"])


def test_the_traceback_of_what_is_unforeseen_is_in_the_directory_of_the_run(ended, tmp_path):
  def main(values):
    return {}["not there"]

  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "flags.txt").touch()
  code, lines = ended(main, f"--workdir={tmp_path / 'run'}")
  written = pathlib.Path(lines[0].rpartition(" ")[2])
  assert code == 1 and written.parent == tmp_path / "run"
  assert "Traceback" in written.read_text() and 'return {}["not there"]' in written.read_text()


@pytest.mark.parametrize(("number", "status", "how"), [
    (signal.SIGTERM, 143, "stopped by SIGTERM"), (signal.SIGINT, 130, "interrupted")])
@pytest.mark.parametrize(("files", "flag", "left"), [
    ((), "", "nothing is half-written"), ((), "--out={}", "{} is not written"),
    ((), "--workdir={}", "{} is not written"),
    (("manifest.json",), "--out={}", "{} is whole"), (("flags.txt",), "--workdir={}", "{} has no checkpoint yet"),
    (("flags.txt", "checkpoints/000002/manifest.json"), "--workdir={}", "{} has its last checkpoint")])
def test_a_signal_at_any_time_says_what_is_left(number, status, how, files, flag, left, ended, tmp_path):
  place = tmp_path / "place"
  for file in files:
    (place / file).parent.mkdir(parents=True, exist_ok=True)
    (place / file).touch()

  def main(values):
    os.kill(os.getpid(), number)
    time.sleep(5)

  before = signal.getsignal(number)
  said = f"script.py: {how}; {left.format(place)}; start the same command again to go on"
  assert ended(main, *filter(None, [flag.format(place)])) == (status, [said])
  assert signal.getsignal(number) is before


def test_a_signal_in_training_waits_until_the_run_has_saved(ended):
  def main(values, saved=True):
    with signals.on_signal() as asked:
      os.kill(os.getpid(), signal.SIGTERM)
      assert asked == [signal.SIGTERM]
      if saved:
        raise signals.Agreed(*asked)
    raise AssertionError("the signal is lost")

  saved = "script.py: stopped by SIGTERM; what is done is saved; start the same command again to go on"
  assert ended(main) == (143, [saved])
  late = "script.py: stopped by SIGTERM; nothing is half-written; start the same command again to go on"
  assert ended(lambda values: main(values, saved=False)) == (143, [late])


PRINTING = """
from kd_jax import cli
def main(values):
  print("a result", flush=values.out == "flushed")
cli.run(main, "", cli.define(out=cli.flag("string", "", "")))
"""


@pytest.mark.parametrize("how", ["flushed", "kept"])
def test_a_full_standard_output_is_one_line(how):
  buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
  with open("/dev/full", "w") as full:
    command = [sys.executable, "-c", PRINTING, f"--out={how}"]
    done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=buffered)
  assert (done.returncode, done.stderr) == (2, "-c: standard output: No space left on device\n")


@pytest.mark.parametrize(("sweep", "seeds", "seed", "said"), [
    ("", 2, 2**32 - 1, "`seeds=2`: seeds from `seed=4294967295` on"), ("", 1000, 2**32 - 999, "`seeds=1000`"),
    (";".join(f"{name}={'|'.join(map(str, range(1, 12)))}" for name in ("epochs", "batch_size", "negatives")), 1, 0,
     "more than 1,000 runs"), ("allow_code=a|b", 1, 0, "is not FLAG=VALUE")])
def test_sweeps_without_end_are_refused(sweep, seeds, seed, said, flags, tmp_path):
  from kd_jax.runs import sweep as sweeps

  with pytest.raises(InputError, match=re.escape(said)):
    sweeps.points(flags(f"--workdir={tmp_path}", f"--seed={seed}"), sweep, seeds)


@pytest.mark.parametrize(("arguments", "said"), [
    (("--batch_size=16777216", "--negatives=200"), r"`batch_size=16777216`, `negatives=200`: at least 40.5 GB of"),
    (("--model=mf(dim=60000)",), r"`model=mf\(dim=60000\)`: at least 0.3 GB of memory"),
    (("--negatives=223",), "`negatives=223`: the data has 222 items"),
    (("--monitor=ndcg@223",), "`monitor=ndcg@223`: the data has 222 items"),
    (("--metrics=ndcg@7, recall@223",), "`metrics=recall@223`: the data has 222 items")])
def test_what_does_not_fit_is_refused_before_it_is_allocated(arguments, said, flags, small, monkeypatch):
  monkeypatch.setattr(memory, "_available", lambda: 10**10 if "--batch" in arguments[0] else 10**8)
  with pytest.raises(InputError, match=said):
    setup.prepare(flags(*small, *arguments))


def test_the_memory_of_a_container_is_what_there_is(tmp_path, monkeypatch):
  monkeypatch.setattr(memory, "_LIMIT", tmp_path / "memory.max")
  whole = memory._available()
  for text, expected in (("max\n", whole), ("1000\n", 1000), (f"{10 * whole}\n", whole)):
    (tmp_path / "memory.max").write_text(text)
    assert memory._available() == expected


@pytest.mark.short
@pytest.mark.parametrize(("message", "line"), [
    ("a\nb\tc", "a b c"), ("\x1b[31mred\0", "\\x1b[31mred\\x00"), ("\udcff", "\\udcff"), ("é ü", "é ü"), (3, "3"),
    ("a" * 5000 + "b" * 5000, "a" * 1000 + " ... " + "b" * 1000)])
def test_a_message_is_one_printable_line(message, line):
  assert str(InputError(message)) == line


LOSING = """
import os, signal, time
from kd_jax import cli
from kd_jax.devices import signals
signals._AGAIN = 0.3
class Slow:
  def __del__(self):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)
def destructor():
  Slow()
def library():
  try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)
  except BaseException:
    pass
def extension():
  try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)
  except BaseException as error:
    raise SystemError("returned a result with an exception set") from error
def main(values):
  globals()[values.out]()
  time.sleep(60)
cli.run(main, "", cli.define(out=cli.flag("string", "", "")))
"""


@pytest.mark.parametrize("where", ["destructor", "library", "extension"])
def test_a_signal_that_comes_where_its_exception_is_lost_ends_the_process(where):
  """What a destructor raises, Python prints and forgets; an import of Cython's modules makes it a SystemError."""
  done = subprocess.run([sys.executable, "-c", LOSING, f"--out={where}"], capture_output=True, text=True, timeout=50)
  assert done.returncode == 143 and len(done.stderr.splitlines()) == 1, done.stderr


def test_an_interrupt_is_not_raised_again_after_it_has_arrived(ended, monkeypatch):
  def main(values):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)

  monkeypatch.setattr(signals, "_AGAIN", 0.1)
  alarm = signal.getsignal(signal.SIGALRM)
  assert ended(main)[0] == 143
  time.sleep(0.3)
  assert signal.getsignal(signal.SIGALRM) is alarm


def test_a_second_signal_ends_training_at_once(ended):
  def main(values):
    with signals.on_signal():
      os.kill(os.getpid(), signal.SIGINT)
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(5)

  assert ended(main)[0] == 143


def test_output_that_cannot_be_written_is_named(tmp_path):
  """Such as `prepare.py > FILE` on a full disk."""
  command = ["bash", "-c", 'ulimit -f 0; exec "$0" "$1" --help', sys.executable, str(ROOT / "scripts" / "prepare.py")]
  with open(tmp_path / "said", "w") as file:
    done = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True, timeout=60)
  assert (done.returncode, done.stderr) == (2, "prepare.py: standard output: File too large\n")
