"""Evaluates a run on the test split; with a teacher and a plain student, also says what distilling gained.

  python scripts/evaluate.py --run=runs/student
  python scripts/evaluate.py --run=runs/distilled --teacher=runs/teacher --student=runs/student
  python scripts/evaluate.py --run=runs/distilled --compare=runs/student
"""

import json

from kd_jax import cli

FLAGS = cli.define(
    cli.EVALUATION,
    data_dir=cli.DATA["data_dir"], cache_dir=cli.DATA["cache_dir"],
    run=("string", None, "Run directory to evaluate."),
    split=("string", "test", "test or validation."),
    teacher=("string", None, "Run of its teacher: compression ratio, overlap and transfer ratio."),
    student=("string", None, "Run of the plain student: transfer ratio."),
    compare=("string", "", "Other runs on the same data, A,B: is the difference significant? Paired tests over users."))


def main(values):
  cli.require(values, "run")
  from kd_jax.evaluation import run_report

  found = run_report.evaluate_run(
      values.run, split=values.split, mask_validation=values.mask_validation, history=values.history,
      sampled=values.sampled, sampled_seed=values.sampled_seed, teacher=values.teacher, student=values.student,
      others=[run.strip() for run in values.compare.split(",") if run.strip()],
      data_dir=values.data_dir, cache_dir=values.cache_dir)
  print(json.dumps(_rounded({k: v for k, v in found.items() if k != "differences"}), indent=1))
  for other, differences in found.get("differences", {}).items():
    print(f"against {other}: difference [95 % interval], Cohen's d, p of paired t-test and of randomisation, users")
    for metric, x in differences.items():
      effect = "no d" if x["effect_size"] is None else f"d {x['effect_size']:+.3f}"
      print(f"  {metric}: {x['difference']:+.4f} [{x['interval'][0]:+.4f}, {x['interval'][1]:+.4f}], {effect}, "
            f"p {x['t_test']:.2g} and {x['randomisation']:.2g}, {x['users']:,}")
  print(f"all digits: {values.run}/{values.split}.json")


def _rounded(value):
  if isinstance(value, dict):
    return {k: _rounded(v) for k, v in value.items()}
  return round(value, 5) if isinstance(value, float) else value


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
