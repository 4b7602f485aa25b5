"""Audits a protocol: cold items, users without test items, leaks, order artefacts, and metrics of one simple model.

  python scripts/audit.py --data="citeulike(split='position')"
"""

from kd_jax import cli
from kd_jax.cli import flag

FLAGS = cli.define(
    cli.DATA,
    factors=flag("integer", 64, "Width of the PureSVD model that is evaluated; 0: counts only.", least=0,
                 most=65536),
    split_seeds=flag("integer", 5, "Number of seeds of a random split to compare.", above=0, most=1000),
    out=flag("string", None, "JSON file for the results."))


def main(values):
  from kd_jax.evaluation import protocol_audit
  from kd_jax.storage import sealed

  found = protocol_audit.run(values.data, values.factors, values.split_seeds, values.data_dir, values.cache_dir)
  print(protocol_audit.describe(found))
  if values.out:
    sealed.write_json_atomic(values.out, found)


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
