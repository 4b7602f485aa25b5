"""The format of a table, a TOML file in configs/tables.

  title, about             the content of the table, and its protocol
  flags                    flags for every run
  metrics                  the columns: names as in --metrics, any cut-off
  seeds                    default number of seeds
  evaluate                 {mask_validation = false, history = "train", sampled = 0}
  teacher_row, student_row the two rows for the transfer ratio
  compare                  [["row", "other row"], ...], pairs for significance tests; default: every distilled row with
                           student_row, and the best distilled row with every other row
  tolerance                {absolute = 0.012, relative = 0.1, stds = 2}: the largest difference from a published value
                           that counts as "within": absolute, relative to the published value, or in standard
                           deviations over seeds; the largest of the three applies
  agreement                ["overlap@10", ...], how far the lists of a row agree with those of its teacher; of a
                           compressed row, with those of the row that it is made from; of others, with teacher_row
  cost                     true: bytes, operations and latency of a request
  attack                   true: membership inference, on the test split
  [[row]]  row, flags      a run. `teacher = "row"` (or a list) distils from that row's run with the same seed;
                           "row@50" from its state after 50 epochs (--keep_every), or its end if it has fewer;
                           `init_from = "row"` starts from its parameters
           of, compress    instead of flags: the run of another row, compressed, `compress = "int8()"`
           seed_offset     added to the seeds of the row's runs, e.g. of a second teacher
           published       {"recall@10" = 0.0283}; `source` of the table names the paper; a row may have a `tolerance`
           published_curve {"recall@50" = [[1, 0.0374], [11, 0.1255]]}: [epoch, test value]; needs --log_test
"""

from __future__ import annotations

import itertools
import math
import pathlib
import re
import tomllib
from typing import Any

from kd_jax import cli
from kd_jax.base import InputError
from kd_jax.evaluation import agreement, metric_names
from kd_jax.evaluation.options import EvaluationOptions
from kd_jax.runs import compress, setup
from kd_jax.runs.options import FitOptions, fit_options
from kd_jax.storage import run_directory

_FOLDER = cli.folder("configs") / "tables"
_KEYS = {"title", "about", "source", "flags", "metrics", "seeds", "evaluate", "teacher_row", "student_row", "compare",
         "tolerance", "agreement", "cost", "attack", "row"}
FROM_ROWS = ("teacher", "init_from")  # flags that name other rows
NAMES_ROWS = (*FROM_ROWS, "of")  # all keys that do
_ROW_KEYS = {"row", "flags", *NAMES_ROWS, "compress", "seed_offset", "published", "published_curve", "tolerance",
             "note"}
_AGREEMENT = re.compile(rf"({'|'.join(agreement.NAMES)})@({'|'.join(map(str, metric_names.CUTOFFS))})")
_TOLERANCES = {"absolute", "relative", "stds"}


def _text(x):
  return isinstance(x, str) and bool(x)


def _number(x):
  return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


def _list_of(is_one):
  return lambda x: isinstance(x, list) and all(map(is_one, x))


def _dict_of(is_one):
  return lambda x: isinstance(x, dict) and all(map(is_one, x.values()))


_rows = "a row or a list of rows", lambda x: _text(x) or _list_of(_text)(x)


def _point(x):
  return isinstance(x, list) and len(x) == 2 and isinstance(x[0], int) and _number(x[1])


_KINDS = {  # {key: (description of valid values, function that checks a value)}
    **dict.fromkeys(("title", "about", "source", "teacher_row", "student_row", "note", "of", "compress"),
                    ("text", _text)),
    **dict.fromkeys(("cost", "attack"), ("true or false", lambda x: isinstance(x, bool))),
    "seed_offset": ("a whole number that is not negative", lambda x: type(x) is int and x >= 0),
    "agreement": (f"a list of {', '.join(agreement.NAMES)} at 5, 10, 20 or 50: [\"overlap@10\"]",
                  _list_of(lambda x: isinstance(x, str) and bool(_AGREEMENT.fullmatch(x)))),
    "flags": ("a list of texts, --name=value", _list_of(lambda x: _text(x) and x.startswith("--"))),
    "metrics": ("a list of metrics", lambda x: _list_of(_text)(x) and bool(x)),
    "seeds": ("a positive whole number", lambda x: type(x) is int and x > 0),
    "evaluate": ("a table of options", lambda x: isinstance(x, dict)),
    "compare": ("a list of pairs of rows", _list_of(lambda x: _list_of(_text)(x) and len(x) == 2)),
    "tolerance": ("numbers that are not negative, {absolute = 0.01}", _dict_of(lambda x: _number(x) and x >= 0)),
    **dict.fromkeys(FROM_ROWS, _rows), "published": ("numbers by metric", _dict_of(_number)),
    "published_curve": ("[[epoch, value], ...] by metric", _dict_of(_list_of(_point)))}


def load(name: str) -> dict[str, Any]:
  """Loads a table by name (configs/tables/NAME.toml) or path. Raises InputError, which names file and key."""
  path = pathlib.Path(name) if name.endswith(".toml") else _FOLDER / f"{name}.toml"
  if not path.is_file():
    known = ", ".join(sorted(p.stem for p in _FOLDER.glob("*.toml")))
    raise InputError(f"`table={name}`: no such table; there are: {known}")
  try:
    table = tomllib.loads(path.read_text())
  except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
    raise InputError(f"{path}: {error}") from None
  _check_kinds(path, table)
  _check(path, table)
  in_order(path, table["row"])
  return table | {"name": path.stem, "evaluate": _evaluation(path, table.get("evaluate", {}))}


def _evaluation(path, given) -> EvaluationOptions:
  """The options in `evaluate`, parsed like the flags of evaluate.py."""
  if unknown := set(given) - set(cli.EVALUATION):
    raise InputError(f"{path}: evaluate: unknown keys {', '.join(sorted(unknown))}; there are: "
                     f"{', '.join(cli.EVALUATION)}")
  try:
    values = cli.define(cli.EVALUATION).parse([f"--{key}={value}" for key, value in given.items()])
    return cli.options_of(EvaluationOptions, values)
  except InputError as error:
    raise InputError(f"{path}: evaluate: {cli.as_flags(str(error))}") from None


def _check_kinds(path, table):
  """Raises InputError if a value has a wrong type."""
  rows = table.get("row", [])
  if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and _text(row.get("row")) for row in rows):
    raise InputError(f"{path}: row: one or more [[row]], each with its name, row = \"student\"")
  for where, part in (("", table), *((f"row {row['row']!r}: ", row) for row in rows)):
    for key, value in part.items():
      if key in _KINDS and not _KINDS[key][1](value):
        raise InputError(f"{path}: {where}{key} = {value!r}: must be {_KINDS[key][0]}")


def in_order(path: str | pathlib.Path, rows: list[dict]) -> list[dict]:
  """Sorts rows so that each row follows the rows that it learns from. Raises InputError if there is a cycle."""
  found, left = [], rows
  while left:
    done = {row["row"] for row in found}
    ready = [row for row in left if done.issuperset(other for key in NAMES_ROWS for other in others(row, key))]
    if not ready:
      raise InputError(f"{path}: rows learn from each other in a circle: {', '.join(row['row'] for row in left)}")
    found, left = found + ready, [row for row in left if row not in ready]
  return found


def _check(path, table):
  """All checks that are possible before a run starts. Raises InputError."""
  _check_keys(path, table)
  parsed = {row["row"]: _checked_row(path, table, row) for row in table["row"]}
  _check_kept(path, table, parsed)
  try:
    for column in table["metrics"]:
      metric_names.check(metric_names.computed(column))
  except ValueError as error:
    raise InputError(f"{path}: metrics: {error}") from None
  mentioned = [table[key] for key in ("teacher_row", "student_row") if key in table]
  missing = {*mentioned, *(row for pair in table.get("compare", []) for row in pair)} - set(parsed)
  if missing:
    raise InputError(f"{path}: compare, teacher_row and student_row name rows, not "
                     f"{', '.join(map(repr, sorted(missing)))}")


def _check_keys(path, table):
  for key in ("title", "flags", "metrics"):
    if key not in table:
      raise InputError(f"{path}: {key} is missing")
  unknown = set(table) - _KEYS
  for row in table["row"]:
    unknown |= set(row) - _ROW_KEYS
  for part in (table, *table["row"]):
    unknown |= set(part.get("tolerance", {})) - _TOLERANCES
  if unknown:
    raise InputError(f"{path}: unknown keys {', '.join(sorted(unknown))}")


def _checked_row(path, table, row) -> FitOptions:
  """The options of a row's runs."""
  where, names = f"{path}: row {row['row']!r}: ", [row["row"] for row in table["row"]]
  if other := set(row.get("published", {})) - set(table["metrics"]):
    raise InputError(f"{where}published {', '.join(sorted(other))} is none of the metrics")
  if set(",@/|\\\n") & set(row["row"]):
    raise InputError(f"{where}no comma, which separates rows, no @, before epochs, no / \\ |")
  try:
    learns_from = {other for key in NAMES_ROWS for other in others(row, key)}
    if not learns_from <= set(names) or [run_dir("", name, 0) for name in names].count(run_dir("", row["row"], 0)) != 1:
      raise InputError(f"is named twice or its {' or '.join(NAMES_ROWS)} is no row")
    if "of" in row or "compress" in row:
      return _checked_compression(table, row)
    options = cli.parse_fit(arguments(table, row, 0, "x", "x", []))
    setup.check(options)
  except InputError as error:
    raise InputError(f"{where}{cli.as_flags(str(error))}") from None
  if "published_curve" in row and not options.log_test:
    raise InputError(f"{where}published_curve needs --log_test")
  return options


def _checked_compression(table, row) -> FitOptions:
  """The options of the runs of which a row is the compression, which keep no epochs."""
  other = {"flags", *FROM_ROWS, "seed_offset"} & row.keys()
  if not {"of", "compress"} <= row.keys() or other:
    raise InputError("of names a row, and compress says how its runs are compressed; such a row has no "
                     f"{', '.join(sorted(other or {'flags', *FROM_ROWS}))}")
  compress.chain(row["compress"])
  trained, followed = row, set()
  while "of" in trained and trained["row"] not in followed:
    followed.add(trained["row"])
    trained = next(x for x in table["row"] if x["row"] == others(trained, "of")[0])
  return fit_options(cli.parse_fit(arguments(table, trained, 0, "x", "x", [])), keep_every=0)


def _check_kept(path, table, parsed):
  """Raises InputError if a row learns from ROW@EPOCH and that row does not keep EPOCH."""
  for row in table["row"]:
    for other, epoch in (named for key in NAMES_ROWS for named in _named(row, key)):
      every = parsed[other].keep_every
      if epoch and (not every or epoch % every):
        raise InputError(f"{path}: row {row['row']!r}: {other}@{epoch} needs a --keep_every of row {other!r} that "
                         f"divides {epoch}")


def others(row, flag) -> list[str]:
  """The names of the rows that a row learns from by `flag`."""
  return [name for name, _ in _named(row, flag)]


def _named(row, flag) -> list[tuple[str, int]]:
  """[(row, epoch; 0: its end)] of the rows that a row learns from by `flag`. Raises InputError."""
  found = []
  for other in [row[flag]] if isinstance(row.get(flag), str) else row.get(flag, []):
    name, at, epoch = other.partition("@")
    if at and not (epoch.isdigit() and int(epoch)):
      raise InputError(f"{flag} {other!r}: after @ comes a number of epochs")
    found.append((name, int(epoch or 0)))
  return found


def _directory(runs_dir, row, epoch, seed) -> pathlib.Path:
  """The directory of a row's run after `epoch`, or of the whole run if it ended before."""
  whole = run_dir(runs_dir, row, seed)
  return kept if epoch and (kept := run_directory.after(whole, epoch)).exists() else whole


def choose(table: dict[str, Any], rows: list[str]) -> dict[str, Any]:
  """The table with only these rows and the rows that they learn from. Raises InputError for an unknown row."""
  rows = [row.strip() for row in rows]
  by_name = {row["row"]: row for row in table["row"]}
  if unknown := [row for row in rows if row not in by_name]:
    raise InputError(f"`rows={','.join(rows)}`: no row {', '.join(map(repr, unknown))} in {table['name']}; "
                     f"there are: {', '.join(by_name)}")
  kept, waiting = set(), list(rows)
  while waiting:
    kept.add(row := waiting.pop())
    waiting += [other for key in NAMES_ROWS for other in others(by_name[row], key)]
  chosen = {key: value for key, value in table.items() if key not in ("teacher_row", "student_row") or value in kept}
  if "compare" in table:
    chosen["compare"] = [pair for pair in table["compare"] if kept.issuperset(pair)]
  return chosen | {"row": [row for row in table["row"] if row["row"] in kept]}


def with_pairs(table: dict[str, Any], pairs: str) -> dict[str, Any]:
  """The table with other pairs to compare: "row,other|row,other", or "all". Raises InputError for unknown rows."""
  names = [row["row"] for row in table["row"]]
  if pairs.strip() == "all":
    return table | {"compare": [list(pair) for pair in itertools.combinations(names, 2)]}
  found = [[row.strip() for row in pair.split(",")] for pair in pairs.split("|")]
  for pair in found:
    if len(pair) != 2 or len({*pair} & {*names}) != 2:
      raise InputError(f"`compare={pairs}`: {','.join(pair)!r} is not two rows, ROW,OTHER; there are: "
                       f"{', '.join(names)}")
  return table | {"compare": found}


def arguments(table, row, seed, workdir, runs_dir, own) -> list[str]:
  """The flags of a row's run: of the table, of the row, `own`, and of the rows that it learns from."""
  number = seed + row.get("seed_offset", 0)
  given = [*table["flags"], *row.get("flags", []), f"--seed={number}", f"--workdir={workdir}", *own]
  named = {flag: directories(row, flag, runs_dir, seed) for flag in FROM_ROWS}
  return given + [f"--{flag}={','.join(map(str, found))}" for flag, found in named.items() if found]


def directories(row: dict[str, Any], key: str, runs_dir: str | pathlib.Path, seed: int) -> list[pathlib.Path]:
  """The directories of the runs that a row names by `teacher`, `init_from` or `of`."""
  return [_directory(runs_dir, *other, seed) for other in _named(row, key)]


def run_dir(runs_dir: str | pathlib.Path, row: str, seed: int) -> pathlib.Path:
  """The directory of a row's run with a seed."""
  return pathlib.Path(runs_dir) / f"{row.replace(' ', '_')}-seed{seed}"
