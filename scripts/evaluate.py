"""Evaluates a run on the test split. With a teacher and a plain student, also computes the gain of distillation.

  python scripts/evaluate.py --run=runs/student
  python scripts/evaluate.py --run=runs/distilled --teacher=runs/teacher --student=runs/student
  python scripts/evaluate.py --run=runs/distilled --compare=runs/student

Results of earlier calls on the same run with the same options are kept, and printed again.
"""

import sys

from kd_jax import cli
from kd_jax.cli import flag

FLAGS = cli.define(
    cli.EVALUATION, cli.PLACES,
    run=flag("string", None, "Run directory to evaluate."),
    split=flag("string", "test", "Split to evaluate: test or validation.", choices=("test", "validation")),
    teacher=flag("string", None, "Run of its teacher: adds compression ratio and overlap."),
    student=flag("string", None, "Run of the plain student: adds the transfer ratio; needs --teacher."),
    cost=flag("boolean", False, "Also measure bytes on disk and in memory, operations and latency of a request."),
    attack=flag("boolean", False, "Also infer who had which item in training, from scores, soft labels and answers."),
    compare=flag("string", "", "Other runs on the same data, A,B: adds paired significance tests over users."))


def main(values):
  cli.require(values, "run")
  from kd_jax.evaluation import run_report
  from kd_jax.storage import sealed

  found = run_report.evaluate_run(
      values.run, split=values.split, teacher=values.teacher, student=values.student,
      others=[run.strip() for run in values.compare.split(",") if run.strip()], cost=values.cost, attack=values.attack,
      data_dir=values.data_dir, cache_dir=values.cache_dir, allow_code=values.allow_code,
      options=cli.options_of(cli.EvaluationOptions, values))
  print(sealed.to_json(_rounded({k: v for k, v in found.items() if k != "differences"})).decode(), end="")
  for other, differences in found["differences"].items():
    print(f"against {other}: difference [95 % interval], Cohen's d, p of paired t-test and of randomisation, users")
    for metric, x in differences.items():
      effect = "no d" if x["effect_size"] is None else f"d {x['effect_size']:+.3f}"
      print(f"  {metric}: {x['difference']:+.4f} [{x['interval'][0]:+.4f}, {x['interval'][1]:+.4f}], {effect}, "
            f"p {x['t_test']:.2g} and {x['randomisation']:.2g}, {x['users']:,}")
  print(f"all digits: {values.run}/{values.split}.json")
  if found["left_out"]:
    print(found["left_out"], file=sys.stderr)
  if unknown := found["users_without_training"]:
    print(f"WARNING: {unknown:,} of {found['users']:,} evaluated users have no training interaction; they are in every "
          "mean over users, see recall and ndcg of (known) and (unknown) users", file=sys.stderr)


def _rounded(value):
  if isinstance(value, dict):
    return {k: _rounded(v) for k, v in value.items()}
  return round(value, 5) if isinstance(value, float) else value


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
