"""Writes a teacher's soft labels: every user's top-K items and scores, and the mass of the tail.

  python scripts/soft_labels.py --teacher=runs/teacher --top_k=500 --out=labels/teacher

Students then train from --teacher=labels/teacher, without the teacher.
"""

from kd_jax import cli

FLAGS = cli.define(
    data_dir=cli.DATA["data_dir"], cache_dir=cli.DATA["cache_dir"],
    teacher=("string", None, "Run directory of the teacher."),
    top_k=("integer", 500, "Items per user."),
    exclude_seen=("boolean", True, "Leave each user's training items out of the list, as rrd wants; "
                  "kl and bce by default want them in."),
    out=("string", None, "Directory to write."))


def main(values):
  cli.require(values, "teacher", "out")
  from kd_jax.teachers import make_soft_labels

  report = make_soft_labels.write(values.teacher, values.out, values.top_k, values.exclude_seen, values.data_dir,
                           values.cache_dir)
  print(f"{values.out}: top {report['top_k']} items of every user; the teacher gives {report['tail_mass_mean']:.1%} of "
        f"its probability to all others ({report['tail_mass_max']:.1%} at most)")


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
