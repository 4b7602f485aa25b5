"""Finds or downloads a data set, cleans, splits and stores it, and prints a report.

  python scripts/prepare.py --data="citeulike(split='position')"
"""

import time

from kd_jax import cli

FLAGS = cli.define(cli.DATA)


def main(values):
  from kd_jax import data, registry
  from kd_jax.data import audit, contexts, reading, store

  start = time.monotonic()
  call = store.complete(store.canonical(registry.parse("data", values.data, "data")), values.data_dir)
  if (said := reading.describe(call)) is not None:
    print(f"read as: {said}\ncall: {reading.short(call)}")
  dataset = data.load(call, values.data_dir, values.cache_dir, splits=("train", "validation", "test"))
  folder = store.prepare(call, values.data_dir, values.cache_dir)
  print(f"{'SYNTHETIC: ' if dataset.synthetic else ''}{dataset.name}")
  kind = audit if dataset.contexts is None else contexts
  print(kind.describe(kind.of_dataset(dataset)))
  for group in ("cleaning", "split", "sources"):
    print(f"{group}: {', '.join(f'{key} {value}' for key, value in dataset.report[group].items())}")
  for name, value in dataset.hashes.items():
    print(f"sha256 {value} {name}")
  print(f"folder: {folder}")
  print(f"seconds: {time.monotonic() - start:.2f}")


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
