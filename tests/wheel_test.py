"""What `pip install .` installs is complete: commands, tables and configurations."""

import os
import pathlib
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
  """(names in the wheel, the folder where it is unpacked)."""
  folder = tmp_path_factory.mktemp("wheel")
  copy = folder / "source"
  listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                          capture_output=True, text=True, check=True).stdout
  for name in filter(None, listed.split("\0")):
    if (ROOT / name).is_file() and name.split("/")[0] in ("kd_jax", "scripts", "configs", "setup.py", "pyproject.toml",
                                                          "README.md", "LICENSE", "MANIFEST.in"):
      (copy / name).parent.mkdir(parents=True, exist_ok=True)
      (copy / name).write_bytes((ROOT / name).read_bytes())
  made = subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, copy],
                        capture_output=True, text=True)
  assert made.returncode == 0, made.stderr
  (wheel,) = folder.glob("*.whl")
  with zipfile.ZipFile(wheel) as file:
    file.extractall(folder / "site")
    return file.namelist(), folder / "site"


@pytest.mark.slow
def test_it_holds_tables_and_commands(installed):
  names = set(installed[0])
  for path in [*(ROOT / "configs").rglob("*.*"), *(ROOT / "scripts").glob("*.py")]:
    assert f"kd_jax/{path.relative_to(ROOT)}" in names
  assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]


@pytest.mark.slow
def test_the_command_makes_a_table_from_an_empty_directory(installed, real_data, tmp_path):
  def run(*arguments):
    return subprocess.run(
        [sys.executable, "-c", "from kd_jax import cli; cli.console()", *arguments], cwd=tmp_path, capture_output=True,
        text=True, env=os.environ | {"PYTHONPATH": str(installed[1]), "KD_JAX_DATA": str(real_data)})

  told = run("--help")
  assert told.returncode == 0 and "reproduce" in told.stdout
  done = run("reproduce", "--table=quickstart", "--rows=pop,student", "--seeds=1", "--workdir=table")
  assert done.returncode == 0, done.stderr
  assert "| student |" in (tmp_path / "table" / "quickstart.md").read_text()
  wrong = run("nothing")
  assert wrong.returncode == 2 and "there are: audit" in wrong.stderr
