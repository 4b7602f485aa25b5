"""Measures a service under load: wrk sends requests at a rate, as fast as it can, and while exports are replaced.

  python scripts/load_test.py --teacher=runs/teacher --student=runs/distilled --out=load
"""

from kd_jax import cli
from kd_jax.cli import flag

FLAGS = cli.define(
    {name: cli.PLACES[name] for name in ("data_dir", "cache_dir")},
    teacher=flag("string", None, "Run directory of the teacher."),
    student=flag("string", None, "Run directory of the student, which is served."),
    out=flag("string", None, "Folder for load.md, load.json, the log of the service and the exports."),
    seconds=flag("integer", 60, "Seconds of each of the three phases.", above=0, most=3600),
    rate=flag("integer", 500, "Requests per second.", above=0, most=10**6),
    connections=flag("integer", 32, "Connections, each with at most one request at a time.", above=0, most=10_000),
    replace_seconds=flag("float", 5.0, "Seconds between an export and its replacement.", least=0, most=3600),
    format=flag("string", "npz", "Format of the exports.", choices=("stablehlo", "onnx", "npz")),
    cores=flag("string", "", "Numbers of two cores, A,B: of the service and of wrk; default: the system chooses."))


def main(values):
  cli.require(values, "teacher", "student", "out")
  cores = values.cores.split(",") if values.cores else []
  if cores and (len(cores) != 2 or not all(core.isdecimal() and len(core) < 5 for core in cores)):
    raise cli.InputError(f"`cores={values.cores}`: two numbers with a comma, e.g. 0,1, are expected")
  from kd_jax.bench import under_load

  settings = under_load.Settings(values.seconds, values.rate, values.connections, values.replace_seconds, values.format,
                                 (int(cores[0]), int(cores[1])) if cores else None)
  for line in under_load.write(values.teacher, values.student, values.out, settings, data_dir=values.data_dir,
                               cache_dir=values.cache_dir):
    print(line, flush=True)


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
