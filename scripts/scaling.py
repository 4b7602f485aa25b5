"""Trains on more and more generated interactions, streamed from disk: time of each, and memory.

  python scripts/scaling.py --interactions=100000,1000000,10000000 --workdir=runs/scaling

An epoch and soft labels are those of scripts/train.py and scripts/soft_labels.py, started as a user starts them.
"""

from kd_jax import cli

FLAGS = cli.define(
    cache_dir=cli.DATA["cache_dir"],
    interactions=("string", "100000,1000000,10000000", "How many, with commas; multiples of --users."),
    users=("integer", 20000, "Users, the same at every size."),
    items=("integer", 20000, "Items, the same at every size."),
    model=("string", "mf(dim=20)", "The model."),
    batch_size=("integer", 8192, "Interactions per step."),
    data_memory=("float", 0.4, "GB for training interactions, see scripts/train.py."),
    top_k=("integer", 100, "Soft labels of a user."),
    workdir=("string", None, "Directory of the runs; deleted runs are made anew."),
    out=("string", None, "Write all of it to this JSON file."))


def main(values):
  cli.require(values, "workdir")
  try:
    sizes = [int(size) for size in values.interactions.split(",")]
  except ValueError:
    raise cli.InputError(f"--interactions={values.interactions}: numbers with commas") from None
  if wrong := [size for size in sizes if size <= 0 or size % values.users]:
    raise cli.InputError(f"--interactions={values.interactions}: {wrong[0]} is no multiple of --users={values.users}")
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
