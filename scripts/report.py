"""Compares finished runs on one HTML page: what was lost and gained, costs, figures, lists of a few users.

  python scripts/report.py --runs=runs/distilled,runs/teacher_int8 --teacher=runs/teacher --student=runs/student

Runs that are not evaluated yet are evaluated on the test split first. reproduce.py writes such a page of a table.
"""

from kd_jax import cli
from kd_jax.cli import flag

FLAGS = cli.define(
    cli.PLACES,
    runs=flag("string", None, "Run directories to compare, A,B,C."),
    teacher=flag("string", None, "Run of the teacher: adds agreement with it."),
    student=flag("string", None, "Run of the plain student: with --teacher, adds transfer ratios."),
    metrics=flag("string", "", "The columns; the first one is drawn. Empty: ndcg@10, recall@10, coverage@10, "
                 "novelty@10, diversity@10; for labelled data some of its metrics.", lists="metrics"),
    titles=flag("string", None, "CSV file with the columns item and title, for the lists of users."),
    out=flag("string", "report.html", "The file to write."))


def main(values):
  cli.require(values, "runs", "out")
  from kd_jax.tables import report

  size = report.write(values.out, values.runs.split(","), values.teacher, values.student, values.metrics, values.titles,
                      values.data_dir, values.cache_dir, values.allow_code)
  print(f"{values.out}: {size:,} bytes")


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
