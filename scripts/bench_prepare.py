"""Measures time and memory of preparing a generated log, and of reading it with pandas or Polars.

  python scripts/bench_prepare.py --rows=20000000 --workdir=runs/preparing
  python scripts/bench_prepare.py --rows=20000000 --workdir=runs/preparing --against=pandas,polars
"""

import pathlib
import tempfile

from kd_jax import cli
from kd_jax.cli import flag

FLAGS = cli.define(
    {"cache_dir": cli.FIT["cache_dir"]},
    rows=flag("integer", 20_000_000, "Number of rows of the file.", above=0, most=10**9),
    against=flag("string", "pandas", "Libraries that read the same file, with commas: pandas, polars."),
    workdir=flag("string", None, "Directory of the generated file; delete it afterwards."),
    side=flag("string", "", "Internal: measure this side in this process.", choices=("kd_jax", "pandas", "polars", "")),
    path=flag("string", "", "Internal: the file of this side."))


def main(values):
  from kd_jax.bench import preparing
  from kd_jax.storage import sealed

  if values.side:
    print(sealed.to_json(preparing.side(values.side, values.path, values.cache_dir), indent=None).decode(), end="")
    return
  cli.require(values, "workdir")
  others = [name for name in values.against.split(",") if name]
  if wrong := [name for name in others if name not in ("pandas", "polars")]:
    raise cli.InputError(f"`against={wrong[0]}`: choose from pandas, polars")
  folder = pathlib.Path(values.workdir)
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f"{values.rows}.csv"
  if not path.exists():
    preparing.generate(path, values.rows)
  seconds = {}
  for name in ("kd_jax", *others):
    with tempfile.TemporaryDirectory(dir=folder) as cache:  # of its own, so that nothing is prepared already
      found = preparing.measure(name, path.absolute(), __file__, cache)
    seconds[name] = found["seconds"]
    memory = f", {preparing.above(found):.0f} bytes a row above the result" if name == "kd_jax" else ""
    ratio = f", {seconds['kd_jax'] / seconds[name]:.2f} times as long for kd_jax" if name != "kd_jax" else ""
    print(f"{name}: {found['rows']:,} rows in {found['seconds']:.1f} s, peak {found['peak'] / 1e9:.2f} GB"
          f"{memory}{ratio}", flush=True)


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
