"""Audits a protocol: cold items, users without targets, leaks, order artefacts, and what one simple model scores.

  python scripts/audit.py --data="citeulike(split='position')"
"""

from kd_jax import cli

FLAGS = cli.define(
    cli.DATA,
    factors=("integer", 64, "Width of the PureSVD that is ranked under the protocol; 0: counts only."),
    split_seeds=("integer", 5, "Seeds of the split to compare, where it is drawn at random."),
    out=("string", None, "JSON file to write all of it to."))


def main(values):
  from kd_jax.evaluation import protocol_audit
  from kd_jax.storage import sealed

  found = protocol_audit.run(values.data, values.factors, values.split_seeds, values.data_dir, values.cache_dir)
  print(protocol_audit.describe(found))
  if values.out:
    sealed.write_json_atomic(values.out, found)


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
