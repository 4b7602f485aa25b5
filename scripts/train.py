"""Trains a teacher, a plain student or a distilled student. A second call resumes an unfinished run.

  python scripts/train.py --model="mf(dim=128)" --workdir=runs/teacher
  python scripts/train.py --model="mf(dim=8)" --kd="rcekd()" --teacher=runs/teacher --workdir=runs/student
"""

from kd_jax import cli
from kd_jax.cli import flag

FLAGS = cli.define(
    cli.FIT, cli.PROCESSES,
    seeds=flag("integer", 1, "Number of seeds to train together, from --seed; each has a directory in --workdir.",
               above=0, most=1000),
    sweep=flag("string", "", "Train all combinations of values together: FLAG=A|B; FLAG=C|D."))


def main(values):
  cli.require(values, "workdir")
  from kd_jax.runs import sweep

  options, several = cli.options_of(cli.FitOptions, values), values.seeds > 1 or bool(values.sweep)
  points = sweep.points(options, values.sweep, values.seeds) if several else []
  from kd_jax.devices import processes  # only after the flags are checked: the import takes seconds
  from kd_jax.runs import loop

  with processes.joined(cli.options_of(cli.ProcessOptions, values), cli.as_flags, _facts(values)):
    if several:
      _train_all(points)
    else:
      _show(options, loop.train(options))


def _facts(values):
  """The flags that must be equal in processes that train together: all but those that are of one host."""
  own = ("given", "data_dir", "cache_dir", *cli.PROCESSES)
  return {name: f"`{name}={'' if value is None else value}`" for name, value in vars(values).items() if name not in own}


def _train_all(points):
  from kd_jax.runs import loop, sweep

  names, of_names = zip(*points, strict=True)
  every = [one for several in of_names for one in several]
  results = loop.train_many(every)
  for one, result in zip(every, results, strict=True):
    if isinstance(result, dict):
      _show(one, result)
  in_order = iter(results)
  print("\n".join(sweep.summary(names, [[next(in_order) for _ in several] for several in of_names])), flush=True)
  sweep.check(results)


def _show(options, result):
  from kd_jax.evaluation import metric_names

  named = (name for text in (result["monitor"], options.metrics) for name in metric_names.split(text))
  shown = {*named, *(f"{metric}@{k}" for k in (10, 20) for metric in ("ndcg", "recall"))}
  validation = "  ".join(f"{k} {v:.4f}" for k, v in result["validation"].items() if k in shown or "@" not in k)
  print(f"{options.workdir}: {result['epochs']} epochs in {result['seconds']:.1f} s, best {result['best_epoch']}")
  if validation:
    print(f"validation  {validation}")


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
