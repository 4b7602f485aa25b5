"""All users' lists in Parquet are those of single requests; parts are not made twice; memory is bounded."""

import re
import subprocess
import sys

import pytest
import small_export as small
from conftest import run_script

from kd_jax import serving
from kd_jax.base import InputError
from kd_jax.serving import score_all

parquet = pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  return small.write_export(tmp_path_factory.mktemp("all") / "e")


def rows(folder):
  return [row for path in sorted(folder.glob("*.parquet")) for row in parquet.read_table(path).to_pylist()]


def test_every_user_has_the_list_of_a_request(exported, tmp_path):
  done = run_script("recommend", f"--export={exported}", f"--out={tmp_path / 'out'}", "--part=15", "--k=4",
                    "--format=npz")
  assert done.returncode == 0, done.stderr
  *parts, last = done.stdout.splitlines()
  assert len(parts) == 3 and re.fullmatch(r"40 users in \S+ s, \S+ a second; peak memory 0\.\d\d GB", last)
  recommender = serving.load(exported, "npz")
  found = rows(tmp_path / "out")
  assert [row["user"] for row in found] == [f"u{user}" for user in range(small.USERS)]
  for row in found:
    answer = recommender.recommend(row["user"], k=4)
    assert row["items"] == answer.items and row["source"] == answer.source
    assert row["scores"] == pytest.approx(answer.scores, rel=1e-6)


def test_an_interrupted_call_is_continued(exported, tmp_path):
  lines = score_all.write(exported, tmp_path / "out", part=15, format="npz")
  next(lines)
  lines.close()
  first = tmp_path / "out" / "part-00000.parquet"
  time = first.stat().st_mtime_ns
  (tmp_path / "out" / ".part-00001.parquet.tmp").write_text("half")
  said = list(score_all.write(exported, tmp_path / "out", part=15, format="npz"))
  assert said[0].endswith("was there") and said[1].endswith("15 users") and said[2].endswith("10 users")
  assert said[3].startswith("25 users")
  assert first.stat().st_mtime_ns == time and len(rows(tmp_path / "out")) == small.USERS


def test_other_lists_are_not_mixed_in(exported, tmp_path):
  list(score_all.write(exported, tmp_path / "out", format="npz"))
  with pytest.raises(InputError, match="another export, or with other options"):
    list(score_all.write(exported, tmp_path / "out", k=3, format="npz"))
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "x").write_text("mine")
  with pytest.raises(InputError, match="not empty"):
    list(score_all.write(exported, tmp_path / "other", format="npz"))


MANY = """
import sys
from kd_jax.serving import score_all, timing
list(score_all.write(sys.argv[1], sys.argv[2], part=6000, format="npz"))
print(timing.peak_memory())
"""


@pytest.mark.slow
def test_memory_does_not_follow_users_times_items(tmp_path):
  """6,000 users and 6,000 items: their scores would be 144 MB."""
  folder = small.write_export(tmp_path / "e", counts=(6000, 6000))
  used = [int(subprocess.run([sys.executable, "-c", MANY, path, tmp_path / name], capture_output=True, text=True,
                             check=True).stdout) for path, name in (
      (small.write_export(tmp_path / "small"), "out small"), (folder, "out"))]
  assert used[1] - used[0] < 60_000  # kB
  assert len(list((tmp_path / "out").glob("*.parquet"))) == 1
