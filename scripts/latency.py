"""Measures size, cold start, memory and latency of runs, as exports and as compiled by the training code.

  python scripts/latency.py --runs=runs/teacher,runs/distilled --out=latency
"""

from kd_jax import cli
from kd_jax.cli import flag

FLAGS = cli.define(
    cli.PLACES,
    runs=flag("string", None, "Run directories, separated by commas, e.g. a teacher and its student."),
    out=flag("string", None, "Folder for latency.md, latency.json, latency.png and the exports."),
    forms=flag("string", "jit,stablehlo,onnx,npz,int8,index", "What is measured; int8 is in every format among "
               "them; forms that a model does not have are left out."),
    batches=flag("string", "1,16,256", "Users per call, separated by commas."),
    seconds=flag("float", 3.0, "Seconds of measuring for each batch size.", above=0, most=3600),
    k=flag("integer", 10, "Items per user.", above=0, most=10**6))


def main(values):
  cli.require(values, "runs", "out")
  from kd_jax import registry
  from kd_jax.base import InputError
  from kd_jax.serving import latency

  registry.allow_code(values.allow_code)
  try:
    batches = [int(x) for x in values.batches.split(",")]
  except ValueError:
    batches = [0]
  if not all(0 < x <= 65_536 for x in batches):
    raise InputError(f"`batches={values.batches}`: numbers of 1 to 65,536, separated by commas, are expected")
  for line in latency.write(values.runs.split(","), values.out, forms=values.forms.split(","), batches=batches,
                            seconds=values.seconds, k=values.k, data_dir=values.data_dir, cache_dir=values.cache_dir):
    print(line, flush=True)


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
