"""Measures time and memory of training on growing numbers of generated interactions, streamed from disk.

  python scripts/scaling.py --interactions=100000,1000000,10000000 --workdir=runs/scaling

It runs scripts/train.py for an epoch and scripts/soft_labels.py, as a user would.
"""

from kd_jax import cli
from kd_jax.cli import flag

FLAGS = cli.define(
    {"cache_dir": cli.FIT["cache_dir"]},
    interactions=flag("string", "100000,1000000,10000000", "Numbers of interactions, multiples of --users."),
    users=flag("integer", 20000, "Number of users, the same at every size.", above=0, most=10**8),
    items=flag("integer", 20000, "Number of items, the same at every size.", above=0, most=10**8),
    model=flag("string", "mf(dim=20)", "The model."),
    batch_size=flag("integer", 8192, "Interactions per step.", above=0, most=2**24),
    data_memory=flag("float", 0.4, "Memory limit for training interactions in GB, see scripts/train.py.", least=0,
                     most=10**6),
    top_k=flag("integer", 100, "Number of soft labels per user.", above=0, most=10**6),
    workdir=flag("string", None, "Directory of the runs; delete it to measure again."),
    out=flag("string", None, "Write the results to this JSON file."))


def main(values):
  cli.require(values, "workdir")
  try:
    sizes = [int(size) for size in values.interactions.split(",")]
  except ValueError:
    raise cli.InputError(f"`interactions={values.interactions}`: numbers with commas") from None
  if wrong := [size for size in sizes if size <= 0 or size % values.users]:
    raise cli.InputError(f"`interactions={values.interactions}`: {wrong[0]} is no multiple of `users={values.users}`")
  from kd_jax.bench import scaling

  found = []
  for size in sizes:
    found.append(scaling.measure(values, size))
    print("  ".join(f"{name} {value:,.4g}" for name, value in found[-1].items()), flush=True)
  if values.out:
    from kd_jax.storage import sealed

    sealed.write_json_atomic(values.out, found)


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
