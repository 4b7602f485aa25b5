"""Damages, kills, fills disks and feeds nonsense, on purpose: every case must end well, or with one line.

  python scripts/torture.py --hours=1 --seed=0
  python scripts/torture.py --minutes=5 --kinds=kill,disk
  python scripts/torture.py --cases=damage=500,flags=1000 --seed=3
  python scripts/torture.py --cases=damage=500 --without=seal

It needs Linux. docs/reliability.md states what is promised. A failure is printed with the command that repeats it.
"""

import sys
import tempfile

from kd_jax import cli
from kd_jax.cli import flag

FLAGS = cli.define(
    hours=flag("float", 0.0, "Time to run, after the artefacts are made.", least=0),
    minutes=flag("float", 0.0, "The same in minutes; both are added.", least=0),
    cases=flag("string", "", "Instead, numbers of cases, KIND=NUMBER,KIND=NUMBER."),
    first=flag("integer", 0, "The number of the first case of every kind.", least=0),
    seed=flag("integer", 0, "Seed of all cases.", least=0),
    kinds=flag("string", "", "Only these kinds, with commas; default: all."),
    jobs=flag("integer", 2, "Number of processes at the same time.", above=0),
    without=flag("string", "", "Switch off a check of the package (seal, manifest, data): cases must then fail."),
    workdir=flag("string", None, "Folder to keep the artefacts in for a next call; default: a temporary one."),
    out=flag("string", None, "JSON file for the results."))


def main(values):
  import pathlib

  from kd_jax.fault import campaign
  from kd_jax.storage import sealed

  with tempfile.TemporaryDirectory(prefix="kd_jax_torture_") as folder:
    plan = campaign.plan(pathlib.Path(values.workdir or folder).absolute() / "artefacts", seed=values.seed,
                         seconds=3600 * values.hours + 60 * values.minutes, cases=values.cases, kinds=values.kinds,
                         first=values.first, jobs=values.jobs, without=values.without, kept=values.workdir or "")
    campaign.set_up(plan.root)
    counts = campaign.run(plan, lambda text: print(text, flush=True))
  found = campaign.table(counts)
  print(campaign.as_text(found))
  if values.out:
    sealed.write_json_atomic(values.out, {"seed": values.seed, "without": values.without, "kinds": found})
  print(sealed.to_json(found, indent=None).decode(), end="")
  if any(count.failures for count in counts.values()):
    sys.exit(1)


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
