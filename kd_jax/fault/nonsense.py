"""Draws nonsense: numbers, words, paths, literals and calls that a user, a shell or a script may write by mistake."""

from __future__ import annotations

import numpy as np

from kd_jax import registry

Random = np.random.Generator
NUMBERS = ("0", "-1", "1", "2", "1.5", "-0.5", "1e-30", "1e30", "-1e30", "1e400", "nan", "-nan", "inf", "-inf",
           "4294967295", "4294967296", "1000000000", "99999999999999999999", "9" * 400, "0x10", "1_000", "٣", "",
           " 3", "3.0", "1e3", "+1", "--1", "1,2", "1/2", "True", "None", "1" + "0" * 30, "0.1e", "-", "5e-324",
           "1.7976931348623157e308")
WORDS = ("", " ", "a", "None", "true", "null", "nan", "mf", "rrd", "kl", "pop", "train", "test", "ü", "日本", "a b",
         "a,b,,c", "A=B|C", "a\nb", "a\r\nb", "a\tb", "\x00", "\x1b[31m", "\udcff", "'", '"', "`x=1`", "`", "%s%n",
         "{}", "${HOME}", "--epochs", "--", "-", "=", "#", "x" * 300, "y" * 5000, "((", "))", "[", "0", ".", "..",
         "a.b", ".a", "a.", "a..b", ".".join(["a"] * 500), "*", "user,item", "item*", "epoch", "ndcg@10", "ndcg@0",
         "ndcg@99999999999", "ndcg@-1", "ndcg@", "@10", "hit@10(sampled 499)", "hit@10(sampled 0)",
         "hit@10(sampled 99999999999)", "ndcg@10,ndcg@10")
PATHS = ("teacher", "student", "labels", "exported", "table", "new", "new/deep/er", "log.csv", "log.csv/x", "nothing",
         "", "/dev/null", "/dev/null/x", "/dev/full", "/proc/none", "x" * 300, "a,b", "teacher,student", "teacher,",
         ",", "ü", "a\nb", "\x00", "\udcff", "file:", "file:scores.npz", "file:log.csv", "file:teacher",
         "file:nothing.npz", ".", "cache", "unfinished", "teacher/after/2", "teacher/run.json", "-", "*",
         "vectors.npz", "scores.npz")
_LITERALS = ("[]", "()", "{}", "{[]: 1}", "{1: 2}", "set()", "...", "1j", "b'x'", "'x'", "\"x\"", "f'{1}'",
             "lambda: 0", "[*x]", "x", "x.y", "x()", "not 1", "1 if 1 else 2", "[x for x in y]", "(1, 2)", "(1, -1)",
             "(0.8, 0.1, 0.1)", "(0.5, 0.6, 0.7)", "(nan,)", "(1,)", "('a',)", "9**9**9", "-9**9", "'a' * 10**9",
             "1 << 10**9", "(((" * 100, "(" * 150 + "1" + ")" * 150, "~1", "*a", "**a", "yield", "await x", "x := 1",
             "'\\ud800'", "'\\0'", "#", "\n")
_DOTTED = ("numpy.array", "math.sqrt", "json.loads", "collections.OrderedDict", "a.b", "numpy.nothing",
           "numpy.float32", "kd_jax.losses.kl.kl", "kd_jax.models.mf.mf", "kd_jax.data.synthetic.synthetic",
           "os.path", "builtins.dict")


def number(rng: Random) -> str:
  """A number, or nearly one."""
  if rng.random() < 0.5:
    return NUMBERS[rng.integers(len(NUMBERS))]
  return str([int(rng.integers(-5, 100)), float(rng.normal() * 10.0 ** rng.integers(-5, 6))][rng.integers(2)])


def word(rng: Random) -> str:
  """A text of any kind."""
  if rng.random() < 0.8:
    return WORDS[rng.integers(len(WORDS))]
  return "".join(chr(int(c)) for c in rng.choice([*range(1, 127), 0xE9, 0x3B1, 0x1F600, 0x202E], rng.integers(1, 30)))


def path(rng: Random) -> str:
  """A path below the working directory, or one that nobody can write."""
  return PATHS[rng.integers(len(PATHS))]


def literal(rng: Random) -> str:
  """The text of an argument."""
  kind = rng.integers(4)
  if kind == 0:
    return number(rng)
  if kind == 1:
    return repr(word(rng))
  if kind == 2:
    return _LITERALS[rng.integers(len(_LITERALS))]
  return f"({literal(rng)}, {literal(rng)})" if rng.random() < 0.3 else str(rng.integers(-3, 60))


def call(rng: Random, package: str) -> str:
  """A call of a factory, mostly one of `package`, with arguments that it may have."""
  names = registry.names(package)
  kind = rng.random()
  name = names[rng.integers(len(names))]
  if kind > 0.85:
    name = _DOTTED[rng.integers(len(_DOTTED))] if kind < 0.95 else word(rng)
  if rng.random() < 0.15:
    return name
  known = list(registry.signature(package, name) or ("x",))
  arguments = []
  for _ in range(rng.integers(0, 4)):
    argument = known[rng.integers(len(known))] if known and rng.random() < 0.9 else word(rng)
    arguments.append(f"{argument}={literal(rng)}" if rng.random() < 0.95 else literal(rng))
  return f"{name}({', '.join(arguments)})"


def space(rng: Random) -> str:
  """What a search varies: names with distributions, right ones and others."""
  names = ("learning_rate", "epochs", "mf.dim", "mf.init_std", "rrd.weight", "rrd.k", "kl.temperature", "model", "")
  kinds = ("log", "uniform", "integer", "log_integer", "normal")
  parts = []
  for _ in range(rng.integers(1, 4)):
    ends = [number(rng) for _ in range(rng.choice(4, p=[0.05, 0.1, 0.8, 0.05]))]
    said = "|".join(ends) if rng.random() < 0.4 else f"{kinds[rng.integers(len(kinds))]}({', '.join(ends)})"
    parts.append(f"{names[rng.integers(len(names))]}{['=', ''][int(rng.random() < 0.05)]}{said}")
  return "; ".join(parts)


def weighted_sum(rng: Random, package: str) -> str:
  """A sum of calls with weights."""
  terms = []
  for _ in range(rng.integers(1, 4)):
    term = call(rng, package)
    kind = rng.random()
    if kind < 0.3:
      term = f"{number(rng)}*{term}"
    elif kind < 0.4:
      term = f"{registry.SCHEDULES[rng.integers(len(registry.SCHEDULES))]}(init_value={literal(rng)})*{term}"
    elif kind < 0.45:
      term = f"{term}*{number(rng)}"
    terms.append(term)
  return [" + ", "+", " - ", "*"][rng.choice(4, p=[0.7, 0.2, 0.05, 0.05])].join(terms)
