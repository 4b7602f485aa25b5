"""Trains a teacher, a plain student or a distilled student; started again, goes on where it stopped.

  python scripts/train.py --model="mf(dim=128)" --workdir=runs/teacher
  python scripts/train.py --model="mf(dim=8)" --kd="rcekd()" --teacher=runs/teacher --workdir=runs/student
"""

from kd_jax import cli

FLAGS = cli.define(cli.DATA, cli.TRAIN, workdir=("string", None, "Directory of the run."))


def main(values):
  cli.require(values, "workdir")
  from kd_jax import experiment

  result = experiment.run_training(values)
  shown = {result["monitor"], *(f"{metric}@{k}" for k in (10, 20) for metric in ("ndcg", "recall"))}
  validation = "  ".join(f"{k} {v:.4f}" for k, v in result["validation"].items() if k in shown or "@" not in k)
  print(f"{values.workdir}: {result['epochs']} epochs in {result['seconds']:.1f} s, best {result['best_epoch']}")
  print(f"validation  {validation}")


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
