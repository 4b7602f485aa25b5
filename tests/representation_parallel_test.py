"""Methods on representations with pmap and over a mesh: noise and comparisons must not depend on the devices."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PARITY = """
import sys; sys.path.insert(0, "tests")
import jax
import jax.numpy as jnp
import numpy as np
from kd_jax import batches, parallel, ranking, train
from methods_contract_test import build, BATCH
from kd_jax import lookup
import conftest
assert jax.device_count() == 4
data = conftest.make_dataset.__wrapped__()(num_users=90, num_items=70, train=3)
plan = batches.plan(0, 1, data.train, 64, "user")
users, items = batches.to_device(data.train, 90, 70)
seen = jax.tree.map(jnp.asarray, ranking.seen_of(data.train.users, data.train.items, 90, 70))
drawn = batches.draw(jax.random.key(3), plan, users, items, seen, negatives=1, num_items=70, kd_per="user")
drawn = jax.tree.map(np.asarray, drawn)
for name in ("de", "htd", "vkd", "ftd", "rkd", "fitnet"):
  kd = lookup.build("losses", lookup.Call(name, {"de": (("experts", 4),), "htd": (("groups", 4),)}.get(name, ())))
  run, given, state = build(data, jax.tree.map(lambda x: x[0], drawn), kd)
  ends = [jax.jit(train.train_epoch, static_argnames="run")(state, given, {}, drawn, jax.random.key(5), run=run)]
  for mode in ("jit", "pmap"):
    fresh = jax.tree.map(jnp.copy, state)
    ends.append(parallel.compile_epoch(run, mode, 64)(fresh, given, {}, drawn, jax.random.key(5)))
  for end in ends[1:]:
    for key, value in ends[0][1].items():
      np.testing.assert_allclose(end[1][key], value, rtol=1e-3, err_msg=name)
"""


def test_pmap_and_a_mesh_of_four_devices_give_the_losses_of_one():
  environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
  done = subprocess.run([sys.executable, "-c", PARITY], capture_output=True, text=True, env=environment,
                        timeout=500, cwd=ROOT)
  assert done.returncode == 0, done.stderr[-3000:]
