"""Times evaluation, and an epoch of the plain student and of methods, after a warm-up; can compare with a library.

  python scripts/bench.py --data="citeulike(split='position')"
  python scripts/bench.py --data="citeulike(split='position')" --against=torch
  python scripts/bench.py --data="citeulike(split='position')" --kernels
  python scripts/bench.py --data="citeulike(split='position')" --methods --out=docs/methods_cost.json
  python scripts/bench.py --sealing=quickstart
"""

import sys

from kd_jax import cli
from kd_jax.cli import flag

FLAGS = cli.define(
    cli.DATA,
    model=flag("string", "mf(dim=20)", "The student."),
    teacher_model=flag("string", "mf(dim=400)", "The teacher; it stays untrained."),
    kds=flag("string", "rrd(k=100, uninteresting=200); rcekd()", "Methods to time, separated by semicolons."),
    methods=flag("boolean", False, "Instead, time every method with its default arguments."),
    kernels=flag("boolean", False, "Instead, time kernels, and show the minimum time on this machine."),
    sealing=flag("string", "", "Instead, make this table, and show the share of its time that seals take."),
    batch_size=flag("integer", 2048, "Interactions per step.", above=0, most=2**24),
    warmup=flag("integer", 50, "Epochs before the first timing: ranked lists become stable.", least=0, most=10**6),
    repeats=flag("integer", 7, "Number of timings after the warm-up; the median is reported.", above=0, most=10**6),
    against=flag("string", "", "Compare with plain PyTorch (torch), implicit or recbole: alternate the same tasks. "
             "Needs: pip install -e \".[bench]\".", choices=("torch", "implicit", "recbole", "")),
    side=flag("string", "", "Internal: run as the process for this library; reads requests from standard input."),
    out=flag("string", None, "Write the timings to this JSON file."))


def main(values):
  if values.kernels:
    for name in ("against", "methods", "kds"):
      if name in values.given:
        raise cli.InputError(f"`{name}`: `kernels` times kernels alone, of kd_jax alone")
  if values.sealing:
    print(share_of_seals(values))
    return
  kds = methods_of(values)
  from kd_jax.bench import interleave

  settings = interleave.Settings(values.model, values.teacher_model, tuple(kds), values.batch_size, values.warmup)
  if values.side:
    interleave.serve(lambda: side(values, settings))
    return
  names = [interleave.OWN, *([values.against] if values.against else [])]
  running = {name: interleave.Side([sys.executable, *sys.argv, f"--side={name}"]) for name in names}
  measured = {name: {} for name in names}
  print("\n".join(str(x.machine) for x in running.values()) + "\n" + heading(names), flush=True)
  for work, found in interleave.measure(running, values.repeats):
    print(f"{work:40s}{row(found)}", flush=True)
    for name, seconds in found.items():
      measured[name][work] = seconds
  for running_side in running.values():
    running_side.close()
  if values.out:
    from kd_jax.storage import sealed

    command = " ".join(["python scripts/bench.py", *(f"--{k}={getattr(values, k)}" for k in values.given)])
    machine = {k: v for x in running.values() for k, v in x.machine.items()}
    others = {name: measured[name] for name in names[1:]}
    sealed.write_json_atomic(values.out, {"command": command, "machine": machine, "seconds": measured[interleave.OWN],
                                             **({"against": others} if others else {})})


def share_of_seals(values):
  """One line about the time of the table `values.sealing`, made in an empty directory."""
  import tempfile

  from kd_jax.bench import sealing

  with tempfile.TemporaryDirectory() as folder:
    found = sealing.measure(values.sealing, folder, None, values.data_dir, values.cache_dir)
  return (f"{values.sealing}: {found['seconds']:.1f} s, of these {found['sealing']:.2f} s "
          f"({100 * found['sealing'] / found['seconds']:.2f} %) in hashes and their checks")


def methods_of(values):
  """The methods to time, as texts."""
  registry = cli.registry
  kds = [kd.strip() for kd in values.kds.split(";") if kd.strip()]
  if values.methods:
    methods = {f"{name}()": registry.build("losses", registry.Call(name)) for name in registry.names("losses")}
    kds = [kd for kd, method in methods.items() if not method.labels]  # interactions have no labels
  for kd in kds:
    registry.parse_sum("losses", kd, "kds")
  return kds


def side(values, settings):
  """(machine, tasks) of one side, for this process."""
  import importlib

  from kd_jax import data
  from kd_jax.bench import interleave

  dataset = data.load(values.data, values.data_dir, values.cache_dir)
  if values.side == interleave.OWN:
    module = importlib.import_module("kd_jax.bench.kernels" if values.kernels else "kd_jax.bench.epoch")
  else:
    try:
      module = importlib.import_module(f"kd_jax.bench.against.{values.side}")
    except ModuleNotFoundError as error:
      raise cli.InputError(f"`against={values.side}`: {error}; pip install -e \".[bench]\"") from None
  return module.machine(), module.works(dataset, settings)


_COLUMNS = ("median", "min", "max", "first", "peak", "drawing", "needed", "products")


def heading(names):
  """The two header lines of the table; the ratio is the last column."""
  columns = _COLUMNS if len(names) == 1 else _COLUMNS[:5]
  widths = [f"{name + ', seconds (peak: GB)':>{9 * len(columns)}s}" for name in names]
  return " " * 40 + "".join(widths) + "\n" + " " * 40 + "".join(f"{c:>9s}" for _ in names for c in columns) + (
      "    ratio" if len(names) > 1 else "")


def row(found):
  """The cells of one task; the last one is the time of the other side, divided by ours."""
  columns = _COLUMNS if len(found) == 1 else _COLUMNS[:5]
  cells = [f"{seconds[c]:9.3f}" if c in seconds else " " * 9 for seconds in found.values() for c in columns]
  medians = [seconds["median"] for seconds in found.values()]
  return "".join(cells) + (f"{medians[1] / medians[0]:9.2f}" if len(medians) > 1 else "")


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
