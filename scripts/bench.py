"""Times evaluation and an epoch of the plain student and of every method, after a warm-up.

  python scripts/bench.py --data="citeulike(split='position')"
  python scripts/bench.py --data="citeulike(split='position')" --methods --out=docs/methods_cost.json
"""

from kd_jax import cli

FLAGS = cli.define(
    cli.DATA,
    model=("string", "mf(dim=20)", "The student."),
    teacher_model=("string", "mf(dim=400)", "The teacher; it is not trained."),
    kds=("string", "rrd(k=100, uninteresting=200); rcekd()", "Methods to time, separated by semicolons."),
    methods=("boolean", False, "Time every method at its defaults instead."),
    batch_size=("integer", 2048, "Interactions per step."),
    warmup=("integer", 50, "Epochs before the first timing: ranked lists settle as the student learns."),
    repeats=("integer", 7, "Timings after the warm-up; the median counts."),
    out=("string", None, "Write the timings to this JSON file."))


def main(values):
  kds = [kd.strip() for kd in values.kds.split(";") if kd.strip()]
  if values.methods:
    methods = {f"{name}()": cli.lookup.build("losses", cli.lookup.Call(name)) for name in cli.lookup.names("losses")}
    kds = [kd for kd, method in methods.items() if not method.labels]  # there are none in interactions
  for kd in kds:
    cli.lookup.parse_sum("losses", kd, "kds")
  from kd_jax import artifacts, benchmark

  results, columns = {}, ("median", "min", "max", "drawing", "needed", "first")
  print(f"{benchmark.machine()}\n{'seconds':44s}{''.join(f'{c:>9s}' for c in columns)}")
  timings = benchmark.run(values.data, values.model, values.teacher_model, kds, batch_size=values.batch_size,
                          repeats=values.repeats, warmup=values.warmup, data_dir=values.data_dir,
                          cache_dir=values.cache_dir)
  for name, seconds in timings:
    results[name] = seconds
    cells = [f"{seconds[c]:9.3f}" if c in seconds else " " * 9 for c in columns]
    print(f"{name:44s}{''.join(cells)}", flush=True)
  if values.out:
    command = " ".join(["python scripts/bench.py", *(f"--{k}={values[k].value}" for k in values if values[k].present)])
    artifacts.write_json_atomic(values.out, {"command": command, "machine": benchmark.machine(), "seconds": results})


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
