"""Searches hyperparameters on validation, with a fixed number of trials. A second call goes on, or adds trials.

  python scripts/search.py --model="mf(dim=8)" --kd="rrd()" --teacher=runs/teacher --trials=20 --workdir=runs/search
  python scripts/search.py --model="mf(dim=8)" --space="learning_rate=log(1e-4, 1e-1)" --workdir=runs/rates

All flags of train.py are those of every trial. The best trial is a run like any other.
"""

from kd_jax import cli
from kd_jax.cli import flag

FLAGS = cli.define(
    cli.FIT, cli.SEARCH,
    jobs=flag("integer", 1, "Number of trials at the same time, in processes with separate cores.", above=0))


def main(values):
  cli.require(values, "workdir")
  options, how = cli.options_of(cli.FitOptions, values), cli.options_of(cli.SearchOptions, values)
  import pathlib

  from kd_jax.runs import jobs
  from kd_jax.tuning import figure, study

  study.check(options, how)
  if values.jobs == 1:
    study.run(options, how)
  else:
    jobs.check(values.jobs)
    calls = dict.fromkeys(range(values.jobs), (options, how))
    for _ in jobs.run(values.jobs, study.run, calls, {key: set() for key in calls}):
      pass
  found = study.found(options, how)
  figure.write(found, pathlib.Path(values.workdir) / "search.png")
  print("\n".join(study.summary(found)))


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
