"""What is searched: names of options or of arguments of factories, each with a distribution.

`learning_rate=log(1e-4, 1e-1); rrd.weight=log(1e-3, 1); rrd.k=20|40`: a name is an option of `FitOptions`, or
FACTORY.ARGUMENT of a model, method, loss, optimiser or schedule that the options name. FACTORY.weight is the weight of
a method.
"""

from __future__ import annotations

import ast
from typing import Any, NamedTuple

from kd_jax import registry
from kd_jax.base import HEAVIEST, InputError
from kd_jax.registry import bounds, literals
from kd_jax.runs.options import FIELDS, SUMS, FitOptions, fit_options, with_text

# Of every run that is trained in epochs; the distributions of arguments are declared beside their factories.
_OPTIONS = "learning_rate=log(1e-4, 1e-1); weight_decay=0|1e-6|1e-5|1e-4|1e-3|1e-2"
_HAVE_FACTORIES = ("model", "kd", "loss", "optimizer", "schedule")
_NEVER = ("workdir", "data", "data_dir", "cache_dir", "allow_code", "seed", "monitor", "metrics", "log_test",
          "mask_validation", "keep_every", "profile", "callbacks", *_HAVE_FACTORIES)
_DIGITS = 4  # of a drawn number: more would only make commands long
Value = float | int | str | bool | tuple | None


class Distribution(NamedTuple):
  """Where a value is drawn from: uniformly, by its logarithm, as an integer, or one of several values."""

  kind: str  # "uniform", "log", "integer", "log_integer" or "choice"
  low: float = 0.0
  high: float = 0.0
  choices: tuple[str, ...] = ()  # texts

  @property
  def ends(self) -> tuple[str, ...]:
    """All choices, or both ends of the interval, as texts."""
    return self.choices or tuple(map(_text, (self.low, self.high)))

  def text(self, drawn: float | int | str) -> str:
    """A drawn value as the text that a command line has."""
    return drawn if isinstance(drawn, str) else _text(drawn)

  def drawn(self, text: str | None) -> float | int | str | None:
    """The value whose text this is, or that equals it as a number; None if it cannot be drawn."""
    number = None if text is None else _number(text)
    if self.choices:
      return next((x for x in self.choices if x == text or (number is not None and _number(x) == number)), None)
    if number is None or not self.low <= number <= self.high or ("integer" in self.kind and number % 1):
      return None
    return int(number) if "integer" in self.kind else number


def _text(number) -> str:
  return str(number) if isinstance(number, int) else repr(float(f"{number:.{_DIGITS}g}"))


def parse(text: str, where: str = "`space`") -> dict[str, Distribution]:
  """{name: distribution} of a text. Raises InputError, which begins with `where`."""
  found: dict[str, Distribution] = {}
  for part in filter(None, (x.strip() for x in text.split(";"))):
    name, equals, said = (x.strip() for x in part.partition("="))
    if not equals or not name or not said:
      raise InputError(f"{where}: {part!r} is not NAME=DISTRIBUTION, such as learning_rate=log(1e-4, 1e-1) or "
                       "rrd.k=20|40")
    if name in found:
      raise InputError(f"{where}: {name} is there twice; separate its values by |")
    found[name] = _distribution(said, f"{where}: {name}")
  return found


def _distribution(said, where) -> Distribution:
  if "|" in said or "(" not in said:
    choices = tuple(x.strip() for x in said.split("|"))
    if len(set(choices)) < max(2, len(choices)) or not all(choices):
      raise InputError(f"{where}={said}: at least two different values are expected, such as 10|20|40")
    return Distribution("choice", choices=choices)
  node = literals.tree(said, where, "a distribution: log(LOW, HIGH), uniform(LOW, HIGH), integer(LOW, HIGH), "
                       "log_integer(LOW, HIGH), or values with | between them")
  kind = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
  ends = [literals.literal(x, where) for x in node.args] if kind else []
  if kind not in ("log", "uniform", "integer", "log_integer") or len(ends) != 2 or node.keywords or not all(
      isinstance(x, int | float) and not isinstance(x, bool) for x in ends):
    raise InputError(f"{where}={said}: not log(LOW, HIGH), uniform(LOW, HIGH), integer(LOW, HIGH) or "
                     "log_integer(LOW, HIGH)")
  if "integer" in kind and not all(isinstance(x, int) for x in ends):
    raise InputError(f"{where}={said}: its ends are not integers")
  if not ends[0] < ends[1] or (kind.startswith("log") and ends[0] <= 0):
    raise InputError(f"{where}={said}: LOW must be less than HIGH{', and above 0' if kind.startswith('log') else ''}")
  return Distribution(kind, *(ends if "integer" in kind else map(float, ends)))


def declared(options: FitOptions) -> dict[str, Distribution]:
  """What the factories that the options name declare as `SEARCH`, learning rate and weight decay."""
  found = parse(_OPTIONS)
  for _, package, _, call in _calls(options):
    text = "" if "." in call.name else registry.search_space(package, call.name)
    found |= {f"{call.name}.{name}": one for name, one in parse(text, f"SEARCH of {call.name}").items()}
  return found


def of(options: FitOptions, text: str) -> dict[str, Distribution]:
  """The space of a search, {name: distribution}: that of `text`, or what is declared if it is empty.

  Raises InputError for a name that is none of these options, and for a distribution beyond the bounds of its name.
  """
  space = parse(text) or declared(options)
  for name, distribution in space.items():
    for end in distribution.ends:
      try:
        changed(options, {name: end})
      except InputError as error:
        raise InputError(f"`space`: {name}={end}: {error}") from None
  return space


def changed(options: FitOptions, values: dict[str, str]) -> FitOptions:
  """The options with these values, {name: text}. Raises InputError."""
  for name, text in values.items():
    if name in _NEVER or (name not in FIELDS and "." not in name):
      raise InputError(f"{name} is not searched; names are options of training, or FACTORY.ARGUMENT of "
                       f"{', '.join(_HAVE_FACTORIES)}")
    options = with_text(options, name, text) if name in FIELDS else _with_argument(options, name, text)
  return options


def present(options: FitOptions, name: str) -> str | None:
  """The text of a name's value in these options; None if it is the factory's own default, which no text holds."""
  if name in FIELDS:
    return str(getattr(options, name))
  factory, _, argument = name.rpartition(".")
  _, package, weight, call = _the_call(options, factory)
  if argument == "weight" and package == "losses":
    return str(weight)
  known = dict(call.arguments)
  if argument in known:
    return str(known[argument])
  signature = registry.signature(package, factory)
  return str(ast.literal_eval(signature[argument].default)) if signature else None


def _calls(options) -> list[tuple[str, str, Any, registry.Call]]:
  """[(option, folder, weight, call)] of all factories that the options name by texts."""
  found = []
  for name in _HAVE_FACTORIES:
    text, package = getattr(options, name), FIELDS[name].metadata["factory"]
    if isinstance(text, str) and text:
      terms = registry.parse_sum(package, text, name) if name in SUMS else [(1.0, registry.parse(package, text, name))]
      found += [(name, package, weight, call) for weight, call in terms]
  return found


def _the_call(options, factory):
  calls = [x for x in _calls(options) if x[3].name == factory]
  if len(calls) != 1:
    raise InputError(f"{factory} is named {len(calls)} times by {', '.join(_HAVE_FACTORIES)}; once is expected")
  return calls[0]


def _with_argument(options, name, text) -> FitOptions:
  factory, _, argument = name.rpartition(".")
  option, package, _, call = _the_call(options, factory)
  if argument == "weight" and package == "losses":
    weight = _number(text)
    if weight is None or not 0 <= weight <= HEAVIEST:
      raise InputError(f"a weight is a number in [0, {HEAVIEST}]")
    return fit_options(options, **{option: _sum(options, option, package, call, weight, call)})
  value = _literal(text)
  signature = registry.signature(package, factory)
  if signature is not None:
    if argument not in signature or argument in registry.GIVEN.get(package, ()):
      raise InputError(f"{factory} has no argument {argument!r}; it has {', '.join(signature) or 'none'}")
    if said := bounds.wrong(factory, argument, value, signature[argument]):
      raise InputError(f"{argument}={value!r} {said}")
  new = call.changed(**{argument: value})
  text = _sum(options, option, package, call, None, new) if option in SUMS else str(new)
  return fit_options(options, **{option: text})


def _sum(options, option, package, old, weight, new) -> str:
  """The sum of an option as text, with the term of `old` as `new` with `weight`; None: its present weight."""
  terms = registry.parse_sum(package, getattr(options, option), option)
  return " + ".join(f"{_weight(w if call != old or weight is None else weight)}{new if call == old else call}"
                    for w, call in terms)


def _weight(weight) -> str:
  return "" if weight == 1.0 else f"{weight}*"


def _number(text) -> float | None:
  try:
    return float(text)
  except ValueError:
    return None


def _literal(text) -> Value:
  """The value that a text writes; a word is a text."""
  try:
    return literals.literal(literals.tree(text, "", ""), "")
  except InputError:
    return text
