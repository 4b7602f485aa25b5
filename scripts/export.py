"""Exports a trained model as one directory: users or histories in, item ids and scores out. It runs without model code.

  python scripts/export.py --run=runs/student --out=exported/student
"""

from kd_jax import cli
from kd_jax.cli import flag

FLAGS = cli.define(
    cli.PLACES,
    run=flag("string", None, "Run directory to export."),
    out=flag("string", None, "Directory to write. An export that is there is replaced at once, or not at all."),
    format=flag("string", "stablehlo", "Formats, separated by commas: stablehlo (jax; all models), onnx (ONNX Runtime) "
                "and npz (NumPy alone); the last two are for models whose scores are inner products of vectors."),
    history=flag("string", "train+validation", "What is known of users: excluded from their lists, and read by models "
                 "of sequences.", choices=("train", "train+validation")),
    exclude_seen=flag("boolean", True, "Exclude what is known of a user from the user's list."),
    compress=flag("string", "", "Store the vectors in fewer bits.", choices=("", "int8()")),
    index=flag("string", "", "Add an approximate index of the item vectors.", choices=("", "hnsw")),
    titles=flag("string", None, "CSV file with columns item, title: titles for the page of scripts/serve.py."))


def main(values):
  cli.require(values, "run", "out")
  from kd_jax.serving import export

  for line in export.export_run(
      values.run, values.out, formats=values.format, history=values.history, exclude_seen=values.exclude_seen,
      compress=values.compress, approximately=values.index, titles=values.titles, data_dir=values.data_dir,
      cache_dir=values.cache_dir, allow_code=values.allow_code):
    print(line)


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
