"""scripts/bench_prepare.py measures what a user waits for, on a file that it makes itself."""

import re

import pytest
from conftest import in_a_folder, run_script


def measured(folder):
  done = run_script("bench_prepare", "--rows=3000", f"--workdir={folder}/runs", "--against=pandas,polars")
  assert done.returncode == 0, done.stderr
  return done.stdout.splitlines(), (folder / "runs" / "3000.csv").read_text().splitlines()


BESIDE = {"measured": in_a_folder(measured)}


@pytest.mark.slow
def test_all_sides_read_the_same_rows(beside):
  pytest.importorskip("pandas")
  pytest.importorskip("polars")
  lines, file = beside("measured")
  assert file[0] == "user,item,rating,timestamp" and len(file) == 3001 and len({row.count(",") for row in file}) == 1
  assert [line.partition(":")[0] for line in lines] == ["kd_jax", "pandas", "polars"]
  for line in lines:
    assert re.match(r"\w+: 3,000 rows in \d+\.\d s, peak \d\.\d\d GB", line)
  assert lines[0].endswith("bytes a row above the result") and lines[1].endswith("times as long for kd_jax")


def test_a_library_that_is_not_known_is_named(tmp_path):
  done = run_script("bench_prepare", f"--workdir={tmp_path}/runs", "--against=excel")
  assert done.returncode == 2 and "--against=excel: choose from pandas, polars" in done.stderr
  assert not list(tmp_path.iterdir())
