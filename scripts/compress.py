"""Compresses the model of a finished run: quantisation, pruning, low rank, shared rows. Makes another finished run.

  python scripts/compress.py --run=runs/teacher --compress="int8()" --workdir=runs/teacher_int8
  python scripts/compress.py --run=runs/teacher --compress="low_rank(rank=16) + int8()" --workdir=runs/teacher_small
  python scripts/evaluate.py --run=runs/teacher_int8 --compare=runs/teacher
"""

from kd_jax import cli
from kd_jax.cli import flag

FLAGS = cli.define(
    cli.PLACES,
    run=flag("string", None, "Run directory to compress."),
    compress=flag("string", None, "Compressors, several with +, e.g. \"prune(share=0.8) + int8()\".",
                  lists="compression"),
    workdir=flag("string", None, "Directory of the compressed run."))


def main(values):
  cli.require(values, "run", "compress", "workdir")
  from kd_jax.runs import compress

  info = compress.compress_run(values.run, values.compress, values.workdir, values.data_dir, values.cache_dir,
                               values.allow_code)
  before, found = info["bytes_uncompressed"], info["compression"]
  print(f"{values.workdir}: {found['chain']}: {info['bytes']:,} of {before:,} bytes ({info['bytes'] / before:.3f}), "
        f"{found['bytes_on_disk']:,} on disk, in {found['seconds']:.1f} s")


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
