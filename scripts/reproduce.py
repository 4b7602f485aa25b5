"""Rebuilds a table: trains what is missing, evaluates on test, writes NAME.md, NAME.json and NAME.png.

  python scripts/reproduce.py --table=quickstart --workdir=runs/quickstart

Started again, it reuses finished runs and goes on with the others. Tables: configs/tables/*.toml.
"""

from kd_jax import cli

FLAGS = cli.define(
    data_dir=cli.DATA["data_dir"], cache_dir=cli.DATA["cache_dir"],
    table=("string", None, "A table of configs/tables, or the path of a .toml file."),
    workdir=("string", None, "Directory of the table and its runs."),
    seeds=("integer", None, "Number of seeds; default: the table's."),
    rows=("string", "", "Only these rows, A,B, and those that they learn from; default: all."),
    compare=("string", "", "Test these rows for differences instead of the table's, A,B|A,C; all: every two rows."),
    together=("boolean", False, "Train the seeds of a row at once: sooner done, where runs are short."),
    jobs=("integer", 1, "Runs at a time, each in a process and on cores of its own; seconds of a run are then more."),
    folds=("integer", None, "k-fold cross-validation of labelled data: seed s tests on fold s of so many."))


def main(values):
  cli.require(values, "table", "workdir")
  import pathlib

  from kd_jax.tables import make

  make.reproduce(values.table, values.workdir, values.seeds, values.data_dir, values.cache_dir,
                   values.folds, values.rows.split(",") if values.rows else None, values.together, values.jobs,
                   values.compare)
  name = pathlib.Path(values.table).stem
  place = pathlib.Path(values.workdir)
  print(f"\n{(place / f'{name}.md').read_text()}")
  print(f"{place / name}.md, .json and .png")


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
