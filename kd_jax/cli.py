"""The command line of all scripts: absl flags, flagfiles, and one-line errors.

Only this module uses flags. Scripts get plain values, and pass options to the package as dataclasses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
import runpy
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from kd_jax import __version__, registry
from kd_jax.base import InputError, check_option, one_line
from kd_jax.devices import failures, signals
from kd_jax.devices.options import ProcessOptions
from kd_jax.evaluation.options import EvaluationOptions
from kd_jax.runs.options import FitOptions, fit_options
from kd_jax.tuning.options import SearchOptions

Flag = tuple[str, Any, str, dict]  # type, default, help text, valid values


def flag(kind: str, default: Any, text: str, **bounds: Any) -> Flag:
  """A flag of a single script; `bounds` are the keywords of `base.option`."""
  return kind, default, text, bounds


def flags_of(options: type) -> dict[str, Flag]:
  """One flag for each field of a dataclass of options."""
  return {field.name: (_kind(field), field.default, field.metadata["help"], dict(field.metadata))
          for field in dataclasses.fields(options)}


def _kind(field) -> str:
  kinds = {"bool": "boolean", "int": "integer", "float": "float"}
  return kinds.get(str(field.type).partition(" ")[0], "string")


FIT, EVALUATION, PROCESSES, SEARCH = map(flags_of, (FitOptions, EvaluationOptions, ProcessOptions, SearchOptions))
DATA = {name: FIT[name] for name in ("data", "data_dir", "cache_dir")}
PLACES = {name: FIT[name] for name in ("data_dir", "cache_dir", "allow_code")}  # of scripts that read runs
_DEFINE = {"string": flags.DEFINE_string, "integer": flags.DEFINE_integer, "float": flags.DEFINE_float,
           "boolean": flags.DEFINE_boolean}


class Definition:
  """The flags of a script."""

  def __init__(self, *groups: dict[str, Flag], **own: Flag):
    self.flags = {name: flag for group in (*groups, own) for name, flag in group.items()}

  def __iter__(self):
    return iter(["flagfile", *self.flags])

  def parse(self, argv: Sequence[str]) -> types.SimpleNamespace:
    """The values of all flags; `given` lists the flags that `argv` sets. Raises InputError with one line."""
    values = _FlagValues()
    flags.DEFINE_string("flagfile", "", "Read flags from this file; later flags win.", flag_values=values)
    for name, (kind, default, text, _) in self.flags.items():
      _DEFINE[kind](name, default, text, flag_values=values)
    try:
      for word in argv:
        _check_word(word)
      rest = values(["kd_jax", *argv])[1:]
    except UnicodeDecodeError as error:
      raise InputError(f"`flagfile`: not a text in UTF-8: {error}") from None
    except (flags.Error, OSError, ValueError, RecursionError) as error:
      raise InputError(" ".join(str(error).split())) from None
    if rest:
      raise InputError(f"stray word {rest[0]!r}: every argument is a flag, --name=value")
    for name, (_, _, _, bounds) in self.flags.items():
      check_option(name, values[name].value, bounds)
    found = types.SimpleNamespace(**{name: values[name].value for name in self.flags})
    found.given = [name for name in self.flags if values[name].present]
    return found


class _FlagValues(flags.FlagValues):
  """Flags that may be in files, but not in devices, such as /dev/zero, which have no end."""

  def _get_flag_file_lines(self, filename, parsed_file_stack=None):
    _check_word(f"--flagfile={filename}")
    if pathlib.Path(filename).is_char_device():
      raise InputError(f"`flagfile={filename}`: a device, not a file")
    lines = super()._get_flag_file_lines(filename, parsed_file_stack)
    for line in lines:
      _check_word(line)
    return lines


def _check_word(word):
  """Raises InputError for a word on which the parser of flags would spend minutes."""
  name = word.lstrip("-").partition("=")[0]
  if "\0" in word and re.fullmatch(r"[a-z]\w*", name):
    raise InputError(f"`{one_line(word.lstrip('-'), 40)}`: holds a null byte")
  if len(name) > 100 and word.startswith("-"):
    raise InputError(f"{one_line(word, 40)}: no such flag")


def define(*groups: dict[str, Flag], **own: Flag) -> Definition:
  """The flags of a script: groups from above, and its own, `name=flag(type, default, help)`."""
  return Definition(*groups, **own)


def options_of(kind: type, values: types.SimpleNamespace) -> Any:
  """The dataclass of options `kind`, filled from the values of its flags. Raises InputError."""
  make = fit_options if kind is FitOptions else kind
  return make(**{field.name: getattr(values, field.name) for field in dataclasses.fields(kind)
                 if hasattr(values, field.name)})


def parse_fit(argv: Sequence[str]) -> FitOptions:
  """The options of a run from a list of flags, e.g. of a row of a table. Raises InputError."""
  return options_of(FitOptions, Definition(FIT).parse(argv))


def as_flags(text: str) -> str:
  """Writes the arguments in a message as flags: `epochs=0` becomes --epochs=0."""
  return re.sub(r"`([a-z]\w*(?:=[^`]*)?)`", r"--\1", text)


def usage(doc: str, definition: Definition) -> str:
  """The text of --help."""
  lines = [doc.strip(), "", "Flags:", "  --flagfile=\n      Read flags from this file; later flags win."]
  for name, (_, default, text, bounds) in definition.flags.items():
    lines.append(f"  --{name}={'' if default is None else default}\n      {as_flags(text)}")
    if bounds.get("choices"):
      lines.append(f"        {', '.join(filter(None, bounds['choices']))}")
    if package := bounds.get("lists"):
      known = {name: registry.signature(package, name) for name in registry.names(package)}
      lines += [f"        {_signature(package, *x)}" for x in (known | registry.own_factories(package)).items()]
  return "\n".join(lines)


def _signature(package, name, arguments):
  arguments = [(k, v.default) for k, v in arguments.items() if k not in registry.GIVEN.get(package, ())]
  return f"{name}({', '.join(f'{k}={default}' if default else k for k, default in arguments)})"


def run(main: Callable[[types.SimpleNamespace], None], doc: str, definition: Definition) -> None:
  """Runs a script: parses the flags and calls `main`. Whatever happens, the script ends with one line at most.

  The exit status is 2 for an input error, an error of the operating system on a file, and too little memory; 128 + the
  number of the signal for SIGINT and SIGTERM; 1 for anything else, whose traceback is written to a file.
  """
  program, values, told = sys.argv[0].rpartition("/")[2], types.SimpleNamespace(), ""
  try:
    with signals.raised(), failures.naming_output():
      if told := _told(doc, definition):
        print(told)
      else:
        values = definition.parse(sys.argv[1:])
        main(values)
      sys.stdout.flush()
  except KeyboardInterrupt as error:
    said, status = signals.said(error)
    _end(f"{program}: {said}; {_left(values, error)}; start the same command again to go on", status)
  except Exception as error:
    if told and isinstance(error, BrokenPipeError):  # of `--help | head`
      _end("", 0)
    said, status = failures.said(error, getattr(values, "workdir", None))
    _end(f"{program}: {as_flags(said)}", status)


def _told(doc, definition) -> str:
  """What is printed instead of running: the help, or the version; "" if neither is asked for."""
  if any(a in ("--help", "-h", "-help", "--helpfull") for a in sys.argv[1:]):
    return usage(doc, definition)
  return f"kd_jax {__version__}" if "--version" in sys.argv[1:] else ""


def _end(line, status):
  with contextlib.suppress(OSError):
    print(one_line(line), end="\n" if line else "", file=sys.stderr, flush=True)
  try:
    sys.stdout.flush()
  except OSError:  # closed, or on a full disk: at exit, Python would try again, complain and change the status
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  sys.exit(status)


def _left(values, error) -> str:
  """What an interrupted script has left."""
  place = pathlib.Path(getattr(values, "workdir", None) or getattr(values, "out", None) or "")
  if isinstance(error, signals.Agreed):
    return "what is done is saved"
  if place == pathlib.Path():
    return "nothing is half-written"
  if not place.exists():
    return f"{place} is not written"
  if not (place / "flags.txt").is_file():
    return f"{place} is whole"
  saved = any((place / "checkpoints").glob("*/manifest.json"))
  return f"{place} has {'its last checkpoint' if saved else 'no checkpoint yet'}"


def require(values: types.SimpleNamespace, *names: str) -> None:
  """Raises InputError for the first of these flags that has no value."""
  for name in names:
    if not getattr(values, name):
      raise InputError(f"`{name}` is needed")


def folder(name: str) -> pathlib.Path:
  """The folder `scripts` or `configs`: inside the installed package, or next to the package in a checkout."""
  inside = pathlib.Path(__file__).parent / name
  return inside if inside.is_dir() else pathlib.Path(__file__).parents[1] / name


def console() -> None:
  """The command `kd-jax NAME --flags`: runs the script of that name."""
  scripts = {path.stem: path for path in sorted(folder("scripts").glob("[!_]*.py"))}
  name = sys.argv[1] if len(sys.argv) > 1 else "--help"
  if name in ("--help", "-h"):
    about = {stem: (path.read_text().partition('"""')[2].partition("\n")[0]) for stem, path in scripts.items()}
    print("kd-jax NAME --flags; kd-jax NAME --help lists the flags.\n")
    print("\n".join(f"  {stem:18s} {line}" for stem, line in about.items()))
    return
  if name == "--version":
    print(f"kd_jax {__version__}")
    return
  if name not in scripts:
    print(f"kd-jax: no command {name!r}; there are: {', '.join(scripts)}", file=sys.stderr)
    sys.exit(2)
  sys.argv = [str(scripts[name]), *sys.argv[2:]]
  runpy.run_path(str(scripts[name]), run_name="__main__")
