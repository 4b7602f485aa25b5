"""A method of one's own is one file outside the package, named on the command line."""

import hashlib
import json
import pathlib

import pytest

import kd_jax

pytestmark = pytest.mark.short
METHOD = '''
"""A margin between what the teacher ranks first and what it does not list."""
import jax
import jax.numpy as jnp

from kd_jax.base import KD, Lists


def margin(k: int = 5, uninteresting: int = 5, width: float = 1.0) -> KD:
  def sample(rng, view):
    return {"items": jnp.concatenate([view.teacher.items, view.unseen])}

  def loss(student, teacher, batch):
    liked, others = student.scores[:, :k], student.scores[:, k:]
    return jnp.mean(jax.nn.relu(width + others[:, None, :] - liked[:, :, None]), axis=(1, 2))

  return KD(loss, Lists(teacher=k, unseen=uninteresting), sample, teacher_scores=False)
'''


def package_hash():
  files = sorted(p for p in pathlib.Path(kd_jax.__file__).parent.rglob("*") if p.suffix == ".py")
  return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()


def test_a_new_method_trains_from_its_own_file(tmp_path, teacher, small, script):
  before = package_hash()
  (tmp_path / "my_losses.py").write_text(METHOD)
  arguments = [*small, f"--teacher={teacher}", "--workdir=run", "--kd=0.5*my_losses.margin(k=7, width=2.0)"]
  made = script("train", *arguments, cwd=tmp_path)
  assert made.returncode == 0, made.stderr
  lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  own = [next(value for name, value in line["loss"].items() if name != "base") for line in lines]
  assert len(own) == 3 and 0 < own[-1] < own[0]
  assert package_hash() == before

  wrong = script("train", *arguments[:-1], "--kd=my_losses.margin(widht=2.0)", "--workdir=other", cwd=tmp_path)
  assert wrong.returncode != 0 and "width=1.0" in wrong.stderr and len(wrong.stderr.splitlines()) == 1
  assert not (tmp_path / "other").exists()
