"""Measurements of latency count what they should."""

import json
import os
import subprocess
import sys
import time

import pytest
import small_export as small

from kd_jax.base import InputError
from kd_jax.serving import latency, timing


def test_a_form_is_timed_in_a_process_of_its_own(tmp_path):
  folder = small.write_export(tmp_path / "e")
  settings = timing.Settings(time.time() - 10, "npz", os.fspath(folder), "", False, [1, 3], 0.05, 5, None, None)
  done = subprocess.run([sys.executable, "-m", "kd_jax.serving.timing", json.dumps(settings._asdict())],
                        capture_output=True, text=True, check=True)
  found = json.loads(done.stdout.splitlines()[-1])
  assert found["cold_start"] > 10 and 10 < found["memory"] < 300 and set(found["batches"]) == {"1", "3"}


def test_memory_is_that_of_this_process():
  code = "from kd_jax.serving import timing; b = b'x' * 200_000_000; del b; print(timing.peak_memory())"
  used = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
  assert 195_000 < used < 350_000


def test_an_unknown_form_is_refused(tmp_path):
  with pytest.raises(InputError, match="`forms=tflite`: choose from jit"):
    list(latency.write(["nowhere"], tmp_path, forms=("jit", "tflite")))
  assert os.listdir(tmp_path) == []
