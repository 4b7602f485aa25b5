"""The seal of a finished run: its files belong together, and every reader refuses a run where one does not."""

import json
import os
import shutil
import subprocess

import pytest

from kd_jax.base import InputError
from kd_jax.evaluation import run_report
from kd_jax.runs import loop, setup
from kd_jax.serving import export
from kd_jax.storage import checkpoint, run_directory
from kd_jax.teachers import make_soft_labels

FILES = [run_directory.FLAGS, run_directory.INFO, run_directory.METRICS, run_directory.RESULT, run_directory.SEAL]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, flags, small):
  """Finished runs that differ by their seed."""
  root = tmp_path_factory.mktemp("seeds")
  for seed in (0, 1):
    loop.train(flags(*small, "--epochs=2", f"--workdir={root / str(seed)}", f"--seed={seed}"))
  return root


@pytest.fixture
def readers(flags, small, tmp_path):
  """{name: function of a run directory}: everything that reads a finished run."""
  fit = [*small, "--epochs=1", f"--workdir={tmp_path / 'new'}"]
  return {
      "evaluate": lambda run: run_report.evaluate_run(str(run)),
      "teacher": lambda run: loop.train(flags(*fit, "--kd=kl(k=5)", f"--teacher={run}")),
      "init_from": lambda run: loop.train(flags(*fit, f"--init_from={run}")),
      "soft labels": lambda run: make_soft_labels.write(run, tmp_path / "labels", 5),
      "export": lambda run: list(export.export_run(str(run), str(tmp_path / "program"))),
  }


def copy(run, to):
  return shutil.copytree(run, to, ignore=shutil.ignore_patterns("test*"))


def refused(readers, run, said):
  for name, read in readers.items():
    with pytest.raises(InputError, match=said) as error:
      read(run)
    assert "\n" not in str(error.value), name


def test_the_seal_is_what_sha256sum_checks(runs):
  run = runs / "0"
  names = [line.partition("  ")[2] for line in (run / run_directory.SEAL).read_text().splitlines()]
  assert sorted(names) == ["checkpoints/000002/manifest.json", "flags.txt", "metrics.jsonl", "result.json", "run.json"]
  checked = subprocess.run(["sha256sum", "--check", "--strict", run_directory.SEAL], cwd=run, capture_output=True)
  assert checked.returncode == 0
  found = run_directory.read_finished(run)
  assert found.flags["seed"] == "0" and found.result["epochs"] == 2 and len(found.history) == found.pin.epoch == 2
  assert found.seal != run_directory.read_finished(runs / "1").seal


@pytest.mark.parametrize("name", [*FILES, "checkpoints"])
def test_a_file_of_another_run_is_refused_by_every_reader(runs, readers, tmp_path, name):
  mixed, other = copy(runs / "0", tmp_path / "run"), runs / "1" / name
  if other.is_dir():
    shutil.rmtree(mixed / name)
    shutil.copytree(other, mixed / name)
  elif name == run_directory.INFO:  # equal for all seeds
    info = json.loads(other.read_text()) | {"model": "mf(dim=8)"}
    (mixed / name).write_text(json.dumps(info, indent=1))
  else:
    shutil.copy(other, mixed / name)
  refused(readers, mixed, "of another run: its sha256 is .* run.sha256 lists")


@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_or_a_missing_file_is_refused_by_every_reader(runs, readers, tmp_path, name):
  mixed = copy(runs / "0", tmp_path / "run")
  content = bytearray((mixed / name).read_bytes())
  content[len(content) // 2] ^= 1
  (mixed / name).write_bytes(content)
  refused(readers, mixed, "damaged")
  (mixed / name).unlink()
  refused(readers, mixed, f"{name}.*missing")


def test_an_edited_number_is_refused(runs, readers, tmp_path):
  mixed = copy(runs / "0", tmp_path / "run")
  result = json.loads((mixed / "result.json").read_text())
  result["validation"]["ndcg@10"] += 0.1
  (mixed / "result.json").write_text(json.dumps(result))
  refused(readers, mixed, "result.json: damaged, or of another run")


def test_a_seal_that_lists_less_is_refused(runs, tmp_path):
  mixed = copy(runs / "0", tmp_path / "run")
  lines = (mixed / run_directory.SEAL).read_text().splitlines(keepends=True)
  for left_out in range(len(lines)):
    (mixed / run_directory.SEAL).write_text("".join(lines[:left_out] + lines[left_out + 1 :]))
    with pytest.raises(InputError, match=r"run.sha256: damaged: it lists|metrics.jsonl: not listed in run.sha256"):
      run_directory.read_finished(mixed)
  whole = "".join(lines)
  for text in (whole[:-1], whole + "x\n", whole + lines[0], "".join(lines[::-1]), "",
               whole + lines[0].replace("  ", "  ../")):
    (mixed / run_directory.SEAL).write_text(text)
    with pytest.raises(InputError, match=r"run.sha256: damaged|missing"):
      run_directory.read_finished(mixed)


def test_an_unfinished_run_is_refused_and_says_how_it_is_finished(runs, readers, flags, small, tmp_path):
  run = copy(runs / "0", tmp_path / "run")
  sealed = (run / run_directory.SEAL).read_bytes()
  (run / run_directory.SEAL).unlink()
  refused(readers, run, "run.sha256: missing, .*start the command of its training again")
  (run / run_directory.RESULT).unlink()
  refused(readers, run, r"not finished \(2 epochs are done\); start its command again, or with `epochs=2`")
  loop.train(flags(*small, "--epochs=2", f"--workdir={run}"))
  assert (run / run_directory.SEAL).read_bytes() == sealed  # bit for bit what it was
  with pytest.raises(InputError, match=r"no run directory \(flags.txt is missing\)"):
    run_directory.read_finished(tmp_path)


def test_training_refuses_a_damaged_finished_run(runs, flags, small, tmp_path):
  run = copy(runs / "0", tmp_path / "run")
  (run / run_directory.RESULT).write_text("{}")
  with pytest.raises(InputError, match=r"result.json: damaged, or of another run"):
    loop.train(flags(*small, "--epochs=2", f"--workdir={run}"))


def unfinished(runs, tmp_path):
  run = copy(runs / "0", tmp_path / "run")
  for name in (run_directory.SEAL, run_directory.RESULT):
    (run / name).unlink()
  return run


def test_a_damaged_checkpoint_is_not_taken_for_an_absent_one(runs, flags, small, tmp_path):
  run, again = unfinished(runs, tmp_path), flags(*small, "--epochs=3", f"--workdir={tmp_path / 'run'}")
  manifest = run / "checkpoints/000002/manifest.json"
  kept, log = manifest.read_bytes(), (run / run_directory.METRICS).read_bytes()
  for damage in (kept[:-2], None):
    manifest.unlink() if damage is None else manifest.write_bytes(damage)
    with pytest.raises(InputError, match=r"000002.*damaged, and there is no older one; remove .*checkpoints"):
      loop.train(again)
    assert (run / run_directory.METRICS).read_bytes() == log and manifest.parent.exists()


def test_a_checkpoint_or_log_of_another_run_is_not_continued(runs, flags, small, tmp_path):
  run, again = unfinished(runs, tmp_path), flags(*small, "--epochs=3", f"--workdir={tmp_path / 'run'}")
  shutil.copy(runs / "1" / run_directory.METRICS, run)
  with pytest.raises(InputError, match=r"metrics.jsonl: damaged: its lines up to epoch 2 are not those"):
    loop.train(again)
  shutil.copy(runs / "0" / run_directory.METRICS, run)
  shutil.rmtree(run / "checkpoints")
  shutil.copytree(runs / "1" / "checkpoints", run / "checkpoints")
  with pytest.raises(InputError, match=r"its checkpoint belongs to another run"):
    loop.train(again)


def test_flags_are_written_at_once_and_their_damage_is_seen(runs, flags, small, tmp_path, monkeypatch):
  run, again = unfinished(runs, tmp_path), flags(*small, "--epochs=3", f"--workdir={tmp_path / 'run'}")
  before = (run / run_directory.FLAGS).read_bytes()

  def full(*_):
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as patched:
    patched.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"flags.txt: .*No space left"):
      loop.train(again)
  assert (run / run_directory.FLAGS).read_bytes() == before
  for damage in (before[:-5], before + b"x\n", b"\xff" + before, b""):
    (run / run_directory.FLAGS).write_bytes(damage)
    with pytest.raises(InputError, match=r"flags.txt: damaged"):
      loop.train(again)
  (run / run_directory.FLAGS).write_bytes(before)
  (run / run_directory.INFO).unlink()
  with pytest.raises(InputError, match=r"run.json: missing, though the run has a checkpoint"):
    loop.train(again)


def test_flags_are_compared_again_under_the_lock(runs, flags, small, tmp_path, monkeypatch):
  """Another process starts a run in the directory after the first comparison."""
  own, start = flags(*small, "--epochs=2", f"--workdir={tmp_path / 'run'}", "--seed=1"), loop._start

  def late(*arguments):
    copy(runs / "0", tmp_path / "run")
    return start(*arguments)

  monkeypatch.setattr(loop, "_start", late)
  with pytest.raises(InputError, match=r"holds a run with other flags: `seed=1`"):
    loop.train(own)


def test_a_run_that_another_process_has_finished_meanwhile_stays_finished(runs, flags, small, tmp_path, monkeypatch):
  run = copy(runs / "0", tmp_path / "run")
  before = run_directory.read_finished(run)
  monkeypatch.setattr(setup, "finished", lambda options: None)  # as it was when this process looked
  with pytest.raises(InputError, match=f"{run}`: another process has finished this run"):
    loop.train(flags(*small, "--epochs=2", f"--workdir={run}", "--seed=0"))
  assert run_directory.read_finished(run) == before


def test_a_checkpoint_that_was_replaced_while_it_was_read_is_refused(runs, tmp_path):
  run = copy(runs / "0", tmp_path / "run")
  pin = run_directory.read_finished(run).pin
  checkpoint.save(run, 2, *({} for _ in range(2)), {})
  with pytest.raises(InputError, match=r"000002: not the checkpoint with which the run finished"):
    checkpoint.restore_pinned(run, pin)


@pytest.mark.parametrize("changed", [
    {"data": None}, {"model": 3}, {"peer": []}, {"synthetic": "no"}, {"parameters": 1.5}, {"teacher": {}},
    {"features": [{"side": "items"}]}, {"privacy": []}, {"compression": {"bytes_on_disk": 4}},
    {"compression": {"chain": "int8()", "bytes_on_disk": None}}], ids=str)
def test_a_field_of_another_type_is_named_also_where_hashes_fit(teacher, tmp_path, changed):
  info = run_directory.read_info(teacher)
  (name,) = changed
  (tmp_path / run_directory.INFO).write_text(json.dumps(info | changed))
  with pytest.raises(InputError, match=rf"run\.json: damaged, or of another version: {name} is of another type"):
    run_directory.read_info(tmp_path)
