"""What the documents show is executed: files, tests and commands of docs/add_a_loss.md, and the generated page."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from kd_jax import methods_page

ROOT = pathlib.Path(__file__).parent.parent


def blocks(path, language):
  return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


def test_the_page_of_methods_is_up_to_date():
  assert (ROOT / "docs/methods.md").read_text() == methods_page.write(), "run: python scripts/methods_page.py"


def test_the_worked_example_works(tmp_path, real_data):
  document = ROOT / "docs/add_a_loss.md"
  for block in blocks(document, "python"):
    (tmp_path / block.splitlines()[0].removeprefix("# ")).write_text(block)
  shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
  path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
  environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "KD_JAX_DATA": str(real_data)}
  commands = [line for block in blocks(document, "bash") for line in block.splitlines()]
  assert len(commands) == 3
  for command in commands:
    done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/add_a_loss.md"])
def test_paths_named_in_documents_exist(name):
  for path in re.findall(r"`((?:kd_jax|configs|scripts|docs|tests)/[\w/.]+)`", (ROOT / name).read_text()):
    if "NAME" not in path and "confident" not in path:
      assert (ROOT / path).exists(), path
