"""Compressed runs: finished runs like others, whose model is what their packed form unpacks to."""

import shutil

import jax
import numpy as np
import pytest

from kd_jax import data
from kd_jax.base import InputError
from kd_jax.evaluation import cost, protocols, run_report
from kd_jax.runs import compress, loop
from kd_jax.serving import export
from kd_jax.storage import compressed, run_directory
from kd_jax.teachers import loading, warm_start

WIDE = "--model=mf(dim=32)"


@pytest.fixture(scope="module")
def wide_run(tmp_path_factory, flags, small):
  """A finished run with tables of width 32."""
  directory = tmp_path_factory.mktemp("wide") / "run"
  loop.train(flags(*small, WIDE, f"--workdir={directory}"))
  return directory


@pytest.fixture(scope="module")
def dataset(small):
  return data.load(small[0].partition("=")[2])


@pytest.fixture(scope="module")
def int8(wide_run):
  directory = wide_run.parent / "int8"
  compress.compress_run(wide_run, "int8()", directory)
  return directory


def parameters(run, dataset):
  return {name: np.asarray(x) for name, x in warm_start.named(loading.open_run(run, dataset).params).items()}


def test_a_compressed_run_is_what_its_packed_form_unpacks_to(wide_run, int8, dataset):
  found, stored = parameters(int8, dataset), compress.unpacked(int8)
  assert found.keys() == stored.keys() == parameters(wide_run, dataset).keys()
  for name, x in parameters(wide_run, dataset).items():
    assert np.array_equal(found[name], stored[name]) and found[name].shape == x.shape
    assert 0 < np.abs(found[name] - x).max() <= np.abs(x).max() / 127
  info = run_directory.read_finished(int8).info
  arrays, _ = compressed.read(int8, info["compression"]["sha256"])
  assert info["bytes"] == sum(x.nbytes for x in arrays.values())
  assert info["compression"]["bytes_on_disk"] == (int8 / "compressed" / "parameters.npz").stat().st_size


def test_int8_takes_a_quarter_of_the_bytes(wide_run, int8, dataset):
  before, after = (run_directory.read_finished(run).info for run in (wide_run, int8))
  assert after["bytes_uncompressed"] == before["bytes"] and after["bytes"] < 0.27 * before["bytes"]
  whole = cost._on_disk(before, loading.open_run(wide_run, dataset).params)
  assert after["compression"]["bytes_on_disk"] < 0.27 * whole + 1100  # the heads of four arrays


def test_it_is_evaluated_exported_and_distilled_from(wide_run, int8, flags, small, tmp_path, dataset):
  report = run_report.evaluate_run(str(int8), others=[str(wide_run)], teacher=str(wide_run))
  assert report["bytes"] == run_directory.read_finished(int8).info["bytes"]
  assert report["agreement"]["overlap@10"] > 0.9
  assert abs(report["metrics"]["ndcg@10"] / run_report.evaluate(str(wide_run))["ndcg@10"] - 1) < 0.05
  module, variables = loading.network(str(int8), dataset)
  validation = protocols.means(protocols.measure(module, variables, protocols.layout(dataset, "validation"))[1])
  stored = run_directory.read_finished(int8).result["validation"]
  assert {name: stored[name] for name in validation} == pytest.approx(validation)
  assert list(export.export_run(str(int8), str(tmp_path / "exported")))
  loop.train(flags(*small, "--kd=kl(k=10)", f"--teacher={int8}", f"--workdir={tmp_path / 'student'}"))


def test_a_second_call_changes_nothing_and_another_is_refused(wide_run, int8, flags, small, tmp_path):
  before = {path: path.read_bytes() for path in int8.rglob("*") if path.is_file()}
  compress.compress_run(wide_run, " int8 ", int8)
  assert {path: path.read_bytes() for path in int8.rglob("*") if path.is_file()} == before
  with pytest.raises(InputError, match=r"other flags: `compress=half\(\)` \(there: int8\(\)\)"):
    compress.compress_run(wide_run, "half()", int8)
  with pytest.raises(InputError, match=r"other flags: `compress=` \(there: int8\(\)\)"):
    loop.train(flags(*small, WIDE, f"--workdir={int8}"))
  with pytest.raises(InputError, match="is the run itself"):
    compress.compress_run(wide_run, "half()", wide_run)
  longer = shutil.copytree(wide_run, tmp_path / "longer")
  loop.train(flags(*small, WIDE, "--epochs=4", f"--workdir={longer}"))
  other = shutil.copytree(int8, tmp_path / "other")
  with pytest.raises(InputError, match="was made from another training of the run"):
    compress.compress_run(longer, "int8()", other)
  (tmp_path / "file").mkdir()
  (tmp_path / "file" / "x").touch()
  with pytest.raises(InputError, match="not empty, and no run is in it"):
    compress.compress_run(wide_run, "int8()", tmp_path / "file")


def test_a_damaged_packed_form_is_named(int8, tmp_path):
  run = shutil.copytree(int8, tmp_path / "run")
  path = run / "compressed" / "parameters.npz"
  path.write_bytes(path.read_bytes()[:-1] + b"x")
  with pytest.raises(InputError, match=r"parameters\.npz"):
    compress.unpacked(run)


def test_a_packed_form_of_another_run_is_refused(wide_run, int8, teacher, tmp_path):
  run, other = shutil.copytree(int8, tmp_path / "run"), tmp_path / "other"
  compress.compress_run(teacher, "int8()", other)
  shutil.rmtree(run / "compressed")
  shutil.copytree(other / "compressed", run / "compressed")
  with pytest.raises(InputError, match="of another run"):
    compress.unpacked(run)
  with pytest.raises(InputError, match="is not a compressed run"):
    compress.unpacked(wide_run)


@pytest.mark.parametrize("name", ["start", "seal"])
def test_after_a_kill_the_same_command_goes_on(name, wide_run, tmp_path, monkeypatch, dataset):
  out = tmp_path / "out"

  def killed(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
    patched.setattr(compressed if name == "start" else run_directory, "write" if name == "start" else "seal", killed)
    compress.compress_run(wide_run, "half()", out)
  with pytest.raises(InputError, match=r"not finished|run\.sha256: missing"):
    run_directory.read_finished(out)
  compress.compress_run(wide_run, "half()", out)
  assert all(np.array_equal(parameters(out, dataset)[key], x) for key, x in compress.unpacked(out).items())


@pytest.mark.parametrize("text", ["", "2*int8()", "linear_schedule(init_value=1)*int8()", "int9()"])
def test_wrong_chains_are_refused_before_anything_is_written(text, wide_run, tmp_path):
  with pytest.raises(InputError, match="`compress="):
    compress.compress_run(wide_run, text, tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_a_pruned_run_is_trained_on_with_its_zeros_and_pruned_again_without_loss(wide_run, flags, small, tmp_path,
                                                                               dataset):
  pruned = tmp_path / "pruned"
  compress.compress_run(wide_run, "prune(share=0.8)", pruned)
  tuned = loop.fit(options=flags(*small, WIDE, f"--init_from={pruned}", "--keep_zeros", "--epochs=2",
                                 "--monitor=epoch", f"--workdir={tmp_path / 'tuned'}"))
  before, after = parameters(pruned, dataset), {name: np.asarray(x) for name, x in tuned.params.items()}
  for name, x in before.items():
    assert np.array_equal(x == 0, after[name] == 0) and (x == 0).mean() == pytest.approx(0.8, abs=0.001)
    assert not np.array_equal(x, after[name])
  compress.compress_run(tmp_path / "tuned", "prune(share=0.8)", tmp_path / "again")
  for name, x in parameters(tmp_path / "again", dataset).items():
    assert np.array_equal(x, after[name])


def test_without_keep_zeros_they_are_trained(wide_run, flags, small, tmp_path):
  compress.compress_run(wide_run, "prune(share=0.8)", tmp_path / "pruned")
  tuned = loop.fit(options=flags(*small, WIDE, f"--init_from={tmp_path / 'pruned'}", "--epochs=1"))
  assert min((np.asarray(x) == 0).mean() for x in jax.tree.leaves(tuned.params)) < 0.5


def test_keep_zeros_needs_a_run_to_start_from(flags, small):
  with pytest.raises(InputError, match="`keep_zeros`: only `init_from`"):
    loop.fit(options=flags(*small, "--keep_zeros"))


def test_tables_of_users_and_items_have_their_popularity(make_dataset):
  dataset = make_dataset(num_users=48, num_items=60)
  named = {"user": np.zeros((48, 2)), "item": np.zeros((60, 2)), "kernel": np.zeros((9, 2)), "bias": np.zeros(60)}
  found = compress.popularity(named, dataset)
  assert found.keys() == {"user", "item"} and found["user"].tolist() == [9] * 48
  assert np.array_equal(found["item"], np.bincount(dataset.train.items, minlength=60))
  square = make_dataset(num_users=48, num_items=48)
  found = compress.popularity({"user_table": np.zeros((48, 2)), "item": np.zeros((48, 2))}, square)
  assert found["user_table"].tolist() == [9] * 48 and np.array_equal(
      found["item"], np.bincount(square.train.items, minlength=48))


def test_the_script_prints_what_was_gained(script, wide_run, tmp_path):
  out = f"--workdir={tmp_path / 'out'}"
  done = script("compress", f"--run={wide_run}", "--compress=low_rank(rank=4) + half()", out)
  assert done.returncode == 0, done.stderr
  assert "low_rank(rank=4) + half(): " in done.stdout and " on disk" in done.stdout
  assert script("compress", f"--run={wide_run}", "--compress=int8()").stderr == "compress.py: --workdir is needed\n"
