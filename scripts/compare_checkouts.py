"""Compares two checkouts: trains the same runs in both, and checks that the numbers are equal bit for bit.

  python scripts/compare_checkouts.py --before=../kd_jax_before --after=. --workdir=/tmp/compared

It trains the tables of --tables (with --seeds seeds) and one epoch of every method of the second checkout. It compares
losses, metrics and the best parameters. Finished runs are reused.
"""

from kd_jax import cli
from kd_jax.cli import flag

FLAGS = cli.define(
    cli.PLACES,
    before=flag("string", None, "Folder of the first checkout."), after=flag("string", ".", "The second one."),
    workdir=flag("string", None, "Directory of the runs."),
    tables=flag("string", "quickstart,tags_100k", "Tables of configs/tables, with commas."),
    seeds=flag("integer", 1, "Number of seeds per table.", above=0, most=1000),
    methods=flag("boolean", True, "Also train one epoch of every method, on MovieLens 100K."))

_NEEDS_LABELS = ("masked_soft_labels",)
_NEEDS_PEER = ("bd",)


def main(values):
  cli.require(values, "before", "workdir")
  import pathlib

  from kd_jax import registry

  places = {name: pathlib.Path(getattr(values, name)).resolve() for name in ("before", "after")}
  root, own = pathlib.Path(values.workdir).resolve(), [f"--{k}={getattr(values, k)}" for k in cli.PLACES
                                                      if getattr(values, k)]
  for name, checkout in places.items():
    for table in filter(None, values.tables.split(",")):
      _run(checkout, "reproduce", f"--table={table}", f"--seeds={values.seeds}", f"--workdir={root / name / table}",
           *own)
    for method in registry.names("losses") if values.methods else ():
      for part, arguments in _method(method, root / name).items():
        if part == method or not (root / name / "methods" / part / "result.json").exists():
          _run(checkout, "train", f"--workdir={root / name / 'methods' / part}", *arguments, *own)
  runs = sorted(path.parent.relative_to(root / "before") for path in (root / "before").rglob("result.json"))
  different = [run for run in runs if _outcome(root / "before" / run) != _outcome(root / "after" / run)]
  for run in runs:
    print(f"{run}: {'DIFFERENT' if run in different else 'equal'}")
  if different or not runs:
    raise cli.InputError(f"{len(different)} of {len(runs)} runs are different")
  print(f"{len(runs)} runs are equal, bit for bit")


def _method(method, root):
  """{run: flags} for one epoch of a method; its teacher is first."""
  data = "movielens_tags" if method in _NEEDS_LABELS else "movielens"
  model = {"movielens": "mf(dim={})", "movielens_tags": "mlp(hidden=({},))"}[data]
  teacher = f"teacher_{data}"
  student = [f"--data={data}", f"--model={model.format(8)}", f"--kd={method}()", "--epochs=1"]
  if method in _NEEDS_PEER:
    return {method: [*student, f"--peer={model.format(16)}"]}
  return {teacher: [f"--data={data}", f"--model={model.format(32)}", "--epochs=2"],
          method: [*student, f"--teacher={root / 'methods' / teacher}"]}


def _run(checkout, script, *arguments):
  import os
  import subprocess
  import sys

  command = [sys.executable, str(checkout / "scripts" / f"{script}.py"), *map(str, arguments)]
  print(" ".join(command[1:]), flush=True)
  environment = os.environ | {"PYTHONPATH": str(checkout)}
  done = subprocess.run(command, cwd=checkout, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                        text=True)
  if done.returncode:
    raise cli.InputError(f"{script}.py of {checkout}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")


def _outcome(run):
  """(hashes of the best parameters, losses and metrics without times)."""
  import numpy as np

  from kd_jax.base import parameter_name
  from kd_jax.storage import checkpoint, run_directory, sealed

  if not (run / run_directory.RESULT).exists():
    return None
  import jax

  best = jax.tree_util.tree_leaves_with_path(checkpoint.restore_best(run)[0])
  hashes = {parameter_name(path): sealed.hash_array(np.asarray(leaf)) for path, leaf in best}
  lines = run_directory.read_metrics(run) if (run / run_directory.METRICS).exists() else []
  files = [*lines, run_directory.read_json(run / run_directory.RESULT)]
  if (run / run_directory.TEST).exists():
    files.append({"metrics": run_directory.read_json(run / run_directory.TEST)["metrics"]})
  return hashes, [{k: v for k, v in x.items() if k != "seconds"} for x in files]


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
