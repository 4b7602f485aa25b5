"""Writes the recommendations of an export for all of its users to Parquet files. An interrupted call is continued.

  python scripts/recommend.py --export=exported/student --out=recommended/student
"""

from kd_jax import cli
from kd_jax.cli import flag

FLAGS = cli.define(
    export=flag("string", None, "Directory of an export."),
    out=flag("string", None, "Folder to write: part-00000.parquet, ... with columns user, items, scores, source."),
    k=flag("integer", 10, "Items per user.", above=0, most=10**6),
    part=flag("integer", 65_536, "Users per file.", above=0, most=10**8),
    format=flag("string", "", "Format of the export; default: the first that can be run here.",
                choices=("", "stablehlo", "onnx", "npz")),
    use_index=flag("boolean", False, "Search the approximate index of the export."))


def main(values):
  cli.require(values, "export", "out")
  from kd_jax.serving import score_all

  for line in score_all.write(values.export, values.out, k=values.k, part=values.part, format=values.format or None,
                              index=values.use_index):
    print(line, flush=True)


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
