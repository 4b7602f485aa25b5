"""Trains a teacher, a plain student or a distilled student; started again, goes on where it stopped.

  python scripts/train.py --model="mf(dim=128)" --workdir=runs/teacher
  python scripts/train.py --model="mf(dim=8)" --kd="rcekd()" --teacher=runs/teacher --workdir=runs/student
"""

from kd_jax import cli

FLAGS = cli.define(
    cli.DATA, cli.TRAIN,
    workdir=("string", None, "Directory of the run, or of the runs."),
    seeds=("integer", 1, "Train so many seeds at once, from --seed on, each in its own directory of --workdir."),
    sweep=("string", "", "Train all combinations at once: FLAG=A|B; FLAG=C|D."))


def main(values):
  cli.require(values, "workdir")
  from kd_jax import experiment, sweep

  if values.seeds == 1 and not values.sweep:
    _show(values.workdir, experiment.run_training(values))
    return
  names, points = zip(*sweep.points(values), strict=True)
  results = iter(experiment.run_together([one for several in points for one in several]))
  results = [[next(results) for _ in several] for several in points]
  for several, made in zip(points, results, strict=True):
    for one, result in zip(several, made, strict=True):
      _show(one.workdir, result)
  print("\n".join(sweep.summary(names, results)))


def _show(workdir, result):
  shown = {result["monitor"], *(f"{metric}@{k}" for k in (10, 20) for metric in ("ndcg", "recall"))}
  validation = "  ".join(f"{k} {v:.4f}" for k, v in result["validation"].items() if k in shown or "@" not in k)
  print(f"{workdir}: {result['epochs']} epochs in {result['seconds']:.1f} s, best {result['best_epoch']}")
  print(f"validation  {validation}")


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
