"""Rebuilds a table: trains missing runs, evaluates them on test, writes NAME.md, .json, .png and .html.

  python scripts/reproduce.py --table=quickstart --workdir=runs/quickstart

A second call reuses finished runs and resumes the others. Tables: configs/tables/*.toml.
"""

from kd_jax import cli
from kd_jax.cli import flag

FLAGS = cli.define(
    cli.PLACES,
    table=flag("string", None, "A table of configs/tables, or the path of a .toml file."),
    workdir=flag("string", None, "Directory of the table and its runs."),
    seeds=flag("integer", None, "Number of seeds; default: as in the table.", above=0, most=1000),
    rows=flag("string", "", "Only these rows, A,B, and rows that they learn from; default: all."),
    compare=flag("string", "", "Pairs of rows for significance tests, A,B|A,C; all: all pairs."),
    together=flag("boolean", False, "Train the seeds of a row together; faster if runs are short."),
    jobs=flag("integer", 1, "Number of runs at the same time, in processes with separate cores; each takes longer.",
              above=0, most=1000),
    folds=flag("integer", None, "k-fold cross-validation of labelled data: seed s tests on fold s.", above=0,
               most=1000))


def main(values):
  cli.require(values, "table", "workdir")
  import pathlib

  from kd_jax.tables import make

  make.reproduce(values.table, values.workdir, values.seeds, values.data_dir, values.cache_dir, values.folds,
                 values.rows.split(",") if values.rows else None, values.together, values.jobs, values.compare,
                 values.allow_code)
  name = pathlib.Path(values.table).stem
  place = pathlib.Path(values.workdir)
  print(f"\n{(place / f'{name}.md').read_text()}")
  print(f"{place / name}.md, .json, .png and .html")


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
