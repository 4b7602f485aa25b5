"""Exports a trained model as one program: user ids in, top-K item ids and scores out. No model code needed.

  python scripts/export.py --run=runs/student --out=exported/student
"""

from kd_jax import cli

FLAGS = cli.define(
    data_dir=cli.DATA["data_dir"], cache_dir=cli.DATA["cache_dir"],
    run=("string", None, "Run directory to export."),
    out=("string", None, "Directory to write."),
    top_k=("integer", 10, "Items per user."),
    exclude_seen=("boolean", True, "Never recommend a user's training items."))


def main(values):
  cli.require(values, "run", "out")
  from kd_jax.serving import export

  for line in export.export_run(values.run, values.out, values.top_k, values.exclude_seen, values.data_dir,
                                   values.cache_dir):
    print(line)


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
