"""An entry of the cache of compiled programs that a kill cut short is made again, without a word."""

import subprocess
import sys

import pytest

CODE = """
import pathlib, sys, warnings
import jax
from kd_jax.devices import compiled
compiled.cache_in(pathlib.Path(sys.argv[1]))
compiled.cache_in(pathlib.Path(sys.argv[1]))
print(jax.jit(lambda x: x * 2 + 1)(3))
warnings.warn("of something else")
"""


def run(folder):
  """The standard error of a process that compiles."""
  done = subprocess.run([sys.executable, "-c", CODE, str(folder)], capture_output=True, text=True, check=True)
  assert done.stdout == "7\n"
  return done.stderr


@pytest.mark.parametrize("size", [0, 1, 500])
def test_a_damaged_entry_is_made_again(tmp_path, size):
  said = run(tmp_path)
  assert said.count("of something else") == 1
  whole = {path.name: path.stat().st_size for path in tmp_path.glob("*-cache")}
  assert whole and min(whole.values()) > 500
  for path in tmp_path.glob("*-cache"):
    path.write_bytes(path.read_bytes()[:size])
  assert run(tmp_path) == said
  assert {path.name: path.stat().st_size for path in tmp_path.glob("*-cache")} == whole
