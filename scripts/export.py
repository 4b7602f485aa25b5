"""Exports a trained model as one program: user ids in, top-K item ids and scores out. It runs without model code.

  python scripts/export.py --run=runs/student --out=exported/student
"""

from kd_jax import cli
from kd_jax.cli import flag

FLAGS = cli.define(
    cli.PLACES,
    run=flag("string", None, "Run directory to export."),
    out=flag("string", None, "Directory to write."),
    top_k=flag("integer", 10, "Items per user.", above=0, most=10**6),
    exclude_seen=flag("boolean", True, "Exclude each user's training items."))


def main(values):
  cli.require(values, "run", "out")
  from kd_jax.serving import export

  for line in export.export_run(values.run, values.out, values.top_k, values.exclude_seen, values.data_dir,
                                values.cache_dir, values.allow_code):
    print(line)


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
