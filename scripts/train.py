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
  from kd_jax.runs import sweep

  names, points = zip(*sweep.points(values), strict=True)
  from kd_jax.devices import processes
  from kd_jax.runs import loop  # once the flags are known to be right: it takes seconds

  with processes.joined(values):
    if values.seeds == 1 and not values.sweep:
      _show(values.workdir, loop.run_training(values))
    else:
      _run_all(names, points)


def _run_all(names, points):
  from kd_jax.runs import loop, sweep

  every = [one for several in points for one in several]
  results = loop.run_together(every)
  for one, result in zip(every, results, strict=True):
    if isinstance(result, dict):
      _show(one.workdir, result)
  in_order = iter(results)
  print("\n".join(sweep.summary(names, [[next(in_order) for _ in several] for several in points])), flush=True)
  sweep.check(results)


def _show(workdir, result):
  shown = {result["monitor"], *(f"{metric}@{k}" for k in (10, 20) for metric in ("ndcg", "recall"))}
  validation = "  ".join(f"{k} {v:.4f}" for k, v in result["validation"].items() if k in shown or "@" not in k)
  print(f"{workdir}: {result['epochs']} epochs in {result['seconds']:.1f} s, best {result['best_epoch']}")
  if validation:
    print(f"validation  {validation}")


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
