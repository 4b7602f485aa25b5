"""Writes a teacher's soft labels: top-K items and scores of every user, and the probability of all other items.

  python scripts/soft_labels.py --teacher=runs/teacher --top_k=500 --out=labels/teacher

Students then use --teacher=labels/teacher and do not need the teacher itself.
"""

from kd_jax import cli
from kd_jax.cli import flag

FLAGS = cli.define(
    cli.PLACES,
    teacher=flag("string", None, "Run directory of the teacher."),
    top_k=flag("integer", 500, "Items per user.", above=0, most=10**6),
    exclude_seen=flag("boolean", True, "Exclude each user's training items from the list, as rrd needs it; "
                  "kl and bce need them included by default."),
    out=flag("string", None, "Directory to write."))


def main(values):
  cli.require(values, "teacher", "out")
  from kd_jax.teachers import make_soft_labels

  report = make_soft_labels.write(values.teacher, values.out, values.top_k, values.exclude_seen, values.data_dir,
                                  values.cache_dir, values.allow_code)
  print(f"{values.out}: top {report['top_k']} items of every user; the teacher gives {report['tail_mass_mean']:.1%} of "
        f"its probability to all others ({report['tail_mass_max']:.1%} at most)")


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
