"""Names on the command line: what is parsed, and what is refused in one line."""

import ast
import pathlib
import sys

import pytest

from kd_jax import registry
from kd_jax.base import KD, InputError
from kd_jax.registry import Call, bounds, own_code

pytestmark = pytest.mark.short


def test_a_name_is_a_call_without_arguments():
  assert registry.parse("losses", "rrd", "kd") == registry.parse("losses", " rrd() ", "kd") == Call("rrd")


def test_arguments_are_literals_in_any_order():
  call = registry.parse("losses", "rrd(temperature=1.5, k=3)", "kd")
  assert call == Call("rrd", (("k", 3), ("temperature", 1.5)))
  assert call == registry.parse("losses", "rrd(k=3,temperature=1.5)", "kd")
  assert str(call) == "rrd(k=3, temperature=1.5)"
  assert registry.parse("losses", str(call), "kd") == call
  hash(registry.parse("data", "movielens(ratios=[0.8, 0.1, 0.1])", "data"))


@pytest.mark.parametrize(("text", "terms"), [
    ("", ()), ("  ", ()), ("kl", ((1.0, Call("kl")),)), ("2*kl()", ((2.0, Call("kl")),)),
    ("0*kl()", ((0.0, Call("kl")),)),
    ("1e-3*kl(k=3) + rrd + 0.1*bce()", ((1e-3, Call("kl", (("k", 3),))), (1.0, Call("rrd")), (0.1, Call("bce")))),
    ("kl() + kl()", ((1.0, Call("kl")), (1.0, Call("kl")))),
])
def test_sums_keep_their_order_and_weights(text, terms):
  assert registry.parse_sum("losses", text, "kd") == terms


@pytest.mark.parametrize(("text", "said"), [
    ("rcedk()", "did you mean rcekd"), ("nonsense()", "'nonsense'"), ("kl(tmperature=1)", "temperature=1.0"),
    ("kl(2.0)", "needs its argument's name"), ("kl(k=nan)", "nan is not a literal"), ("kl(k=x)", "x is not a literal"),
    ("kl(k=[y])", "not a literal"), ("kl(k=2**9)", "not a literal"), ("kl(**{'k': 1})", "needs its"), ("kl(", "`kd="),
    ("'kl'", "not a name or a call"), ("kl()()", "not a name or a call"), ("kl() rrd()", "`kd="), ("kl\0", "`kd="),
    ("linear_schedule(77, end_value=1.0)*kl()", "77 needs its argument's name"),
    ("linear_schedule(**{}, end_value=1.0)*kl()", "{} needs its"), ("nan*kl()", "nan is not a literal"),
    ("'a'*kl()", "is not a number"), ("True*kl()", "is not a number"),
    ("1e999*kl()", "not finite"), ("kl()*2", "`kd="), ("kl() - rrd()", "`kd="), ("kl() +", "`kd="), ("+", "`kd="),
    ("nowhere_at_all.loss()", "cannot import nowhere_at_all"), ("os.nothing_there()", "has no 'nothing_there'"),
    ("kl(k=__import__('os'))", "not a literal"), ("__import__('os').system('x')", "`kd="), ("lists", "'lists'"),
    ("kl(k=1, k=2)", "`kd="), ("kl(k={'a': 1})", "`kd="), ("os.path", "`kd="), ("1e999*kl(k=1)", "`kd=")])
def test_wrong_calls_are_refused_naming_the_flag(text, said):
  with pytest.raises(InputError) as error:
    registry.parse_sum("losses", text, "kd")
  message = str(error.value)
  assert message.startswith("`kd=") and said in message and len(message.splitlines()) == 1


def test_arguments_of_the_frame_cannot_be_given():
  with pytest.raises(InputError, match="num_users"):
    registry.parse("models", "mf(num_users=3)", "model")


OWN = '''
import pathlib

import flax.linen as nn
import optax

from kd_jax.base import KD
from kd_jax.data.recipe import Recipe

pathlib.Path("imported").touch()


def scaled(size, base=2) -> KD:
  if size < 0:
    raise ValueError("size must not be negative")
  return KD(size * base)


def unsaid(size=1):
  pathlib.Path("called").touch()


def other() -> Recipe:
  pathlib.Path("called").touch()


def lying() -> KD:
  return 3


def named() -> "KD":
  return KD(None)


def schedule(learning_rate) -> optax.Schedule:
  return lambda step: learning_rate


class Net(nn.Module):
  num_users: int
  dim: int = 3


def net(num_users) -> Net:
  return Net(num_users)
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
  (tmp_path / "own_factory_of_test.py").write_text(OWN)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", list(sys.path))
  yield "own_factory_of_test"
  sys.modules.pop("own_factory_of_test", None)


def test_a_dotted_name_reaches_a_module_of_the_working_directory(own):
  call = registry.parse("losses", f"{own}.scaled(size=4)", "kd")
  assert registry.build("losses", call).loss == 8
  with pytest.raises(InputError, match="needs size"):
    registry.parse("losses", f"{own}.scaled()", "kd")
  with pytest.raises(InputError, match="base=2"):
    registry.parse("losses", f"{own}.scaled(size=1, bse=3)", "kd")


def test_what_a_factory_refuses_is_an_error_of_input(own):
  with pytest.raises(InputError, match=r"^`kd`: .*scaled.*must not be negative"):
    registry.build("losses", registry.parse("losses", f"{own}.scaled(size=-1)", "kd"))
  with pytest.raises(InputError, match="most"):
    registry.build("losses", registry.parse("losses", "kl(candidates='most')", "kd"))


@pytest.mark.parametrize("package", sorted(registry.KINDS))
def test_every_name_builds_what_its_signature_says(package):
  assert registry.names(package)
  for name in registry.names(package):
    assert registry.signature(package, name) is not None
    factory = registry._factory(package, name)
    assert list(registry.signature(package, name)) == list(factory.__code__.co_varnames[: factory.__code__.co_argcount])


def test_an_own_factory_says_what_it_returns(own):
  assert isinstance(registry.build("losses", Call(f"{own}.named")), KD)
  assert registry.build("schedules", Call(f"{own}.schedule"), learning_rate=0.5)(7) == 0.5
  for name in ("Net", "net"):
    assert registry.build("models", registry.parse("models", f"{own}.{name}", "model"), num_users=7).num_users == 7
  with pytest.raises(InputError, match="returned int, not a KD"):
    registry.build("losses", Call(f"{own}.lying"))


@pytest.mark.parametrize("text", [
    "{own}.unsaid()", "{own}.other()", "{own}.pathlib()", "os.system(command='touch called')", "numpy.array(object=1)",
    "pathlib.Path()", "subprocess.run(args='touch called')", "builtins.print()", "os.path", "{own}.scaled.__call__()"])
@pytest.mark.parametrize("package", ["losses", "models"])
def test_what_makes_no_part_is_refused_before_it_is_called(text, package, own):
  for ask in (lambda x: registry.parse(package, x, "kd"), lambda x: registry.build(package, Call(x.partition("(")[0]))):
    with pytest.raises(InputError) as error:
      ask(text.format(own=own))
    assert not pathlib.Path("called").exists() and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["own_factory_of_test.absent()", "broken_of_test.f()", "script_of_test.f()"])
def test_a_module_that_cannot_be_imported_is_named(name, own):
  pathlib.Path("broken_of_test.py").write_text("def f(:\n")
  pathlib.Path("script_of_test.py").write_text("raise SystemExit(3)\n")
  with pytest.raises(InputError, match="_of_test"):
    registry.parse("losses", name, "kd")


# Texts that parsers of Python give up on in many ways.
HOSTILE = [
    "(" * 5000, "[" * 300 + "]" * 300, "-" * 9000 + "1*kl()", "+".join(["kl()"] * 2400), "kl(" * 90 + ")" * 90,
    "a" * 100_000, ".".join("a" * 500) + "()", ".".join("a" * 500), "kl(k=" + "9" * 4000 + ")",
    "kl(k=0x" + "f" * 5000 + ")", "kl(k=1_000_000_000_000_000_000_000)", "kl(k={[]: 1})", "kl(k={1})", "kl(k=b'a')",
    "kl(k=1j)", "kl(k=...)", "kl(k=- - 1)", "kl(k=not 1)", "kl(k='\\ud800')", "kl(k='\\0')", "kl(k='\\d')", "kl\0()",
    "kl(k='a\nb')", "kl(k=f'{1}')", "kl(k=[1, *[2]])", "kl(k=1 if 1 else 2)", "(lambda: 1)()", "kl\ud800()",
    "\xb2()", "kl(k=1e999)", "kl(k=-1e999)", "[kl()][0]", "kl(k:=1)", "kl() if 1 else kl()", "a.b.c.d()", "kl\u2029()",
    "\x1b[31m"]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:20].encode("unicode_escape").decode())
def test_any_text_is_refused_in_one_short_line(text, recwarn):
  for package, parse in (("losses", registry.parse), ("losses", registry.parse_sum), ("data", registry.parse)):
    if (package, parse) == ("losses", registry.parse_sum) and text.startswith("kl()+"):
      continue  # a sum, though a long one
    with pytest.raises(InputError) as error:
      parse(package, text, "kd")
    message = str(error.value)
    assert message.startswith("`kd=") and message.isprintable() and len(message) < 1000
  assert not recwarn.list


def numbers(package, name):
  """The numeric arguments of a factory, with their defaults."""
  known = registry.signature(package, name)
  defaults = {k: ast.literal_eval(v.default) for k, v in known.items() if v.default}
  kinds = {"int", "float"}
  return {k: defaults.get(k) for k, v in known.items() if k not in registry.GIVEN.get(package, ()) and (
      kinds & set(v.types(inferred=True)) or (isinstance(defaults.get(k), tuple) and bounds.interval(name, k)))}


FACTORIES = [(package, name) for package in registry.KINDS for name in registry.names(package)]


@pytest.mark.parametrize(("package", "name"), FACTORIES)
def test_every_number_has_bounds_that_hold_its_default_and_refuse_nonsense(package, name):
  needed = "path='x.csv', " if "path" in registry.signature(package, name) else ""
  for argument, default in numbers(package, name).items():
    bound = bounds.interval(name, argument)
    assert bound, f"{name}: {argument} has no bounds in kd_jax/registry/bounds.py"
    values = default if isinstance(default, tuple) else () if default is None else (default,)
    assert all(bounds.within(value, bound) for value in values), (argument, default)
    for nonsense in ("-1e30", "1e30", "-9223372036854775807", "9223372036854775807", "'a'", "True", "1e999"):
      nonsense = f"({nonsense},)" if isinstance(default, tuple) else nonsense
      with pytest.raises(InputError, match=f"{argument}=|not finite") as error:
        registry.parse(package, f"{name}({needed}{argument}={nonsense})", "x")
      assert len(str(error.value).splitlines()) == 1
    with pytest.raises(InputError, match=f"{argument}="):
      registry.build(package, Call(name, ((argument, 1e30 if not isinstance(default, tuple) else (1e30,)),)))


def test_no_bounds_are_left_of_arguments_that_are_gone():
  there = {x for package, name in FACTORIES for k in numbers(package, name) for x in (k, f"{name}.{k}")}
  assert set(bounds.BOUNDS) <= there


@pytest.mark.parametrize(("value", "bound", "inside"), [
    (0, "[0, 1)", True), (1, "[0, 1)", False), (0, "(0, 1]", False), (1, "(0, 1]", True), (0.5, "(0, 1)", True),
    (-1e-9, "[0, 1)", False), (10**400, "[0, 1)", False)])
def test_intervals(value, bound, inside):
  assert bounds.within(value, bound) is inside


def test_factories_check_their_arguments_in_python_too():
  import kd_jax

  for wrong in ({"temperature": 0}, {"temperature": float("nan")}, {"k": 2.5}, {"k": "a"}, {"k": True}):
    with pytest.raises(InputError, match=f"kl: {next(iter(wrong))}="):
      kd_jax.losses.kl(**wrong)
  assert isinstance(kd_jax.losses.kl(temperature=2), KD)
  for weight in (-1, float("inf"), float("nan"), 1e30):
    with pytest.raises(InputError, match="weight"):
      weight * kd_jax.losses.kl()


@pytest.mark.parametrize("text", ["-1*kl()", "1e7*kl()", "-0.5*kl() + rrd()"])
def test_weights_are_not_negative_nor_huge(text):
  with pytest.raises(InputError, match="weight"):
    registry.parse_sum("losses", text, "kd")


@pytest.fixture
def stranger(tmp_path, monkeypatch):
  """A directory with a module that no one has named, and from which no code is allowed."""
  (tmp_path / "stranger_of_test.py").write_text(OWN)
  (tmp_path / "elsewhere").mkdir()
  monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
  monkeypatch.setattr(own_code, "_NAMED", set())
  monkeypatch.setattr(own_code, "_ALLOWED", [])
  monkeypatch.chdir(tmp_path / "elsewhere")
  yield tmp_path
  sys.modules.pop("stranger_of_test", None)


NAMING = [{"model": "stranger_of_test.net()"}, {"data": "(stranger_of_test # x\n . other)()"},
          {"peer": "stranger_of_test . Net(dim=3)"}, {"monitor": "ndcg@5, stranger_of_test.scaled@10(sampled 9)"},
          {"monitor": "stranger_of_test.scaled(size=3, base=2.5)"}, {"model": "stranger_of_test.inner.net()"},
          {"model": "stranger_of_test\\\n.net()"}]


@pytest.mark.parametrize("content", NAMING, ids=str)
def test_code_named_in_a_file_is_refused_unimported_with_the_flag_that_allows_it(content, stranger):
  with pytest.raises(InputError) as error:
    registry.refuse_code("run/run.json", content)
  message = str(error.value)
  assert message.startswith("run/run.json: names code of a file, stranger_of_test.")
  assert message.endswith(f"`allow_code={stranger}`") and len(message.splitlines()) == 1
  assert "stranger_of_test" not in sys.modules
  registry.allow_code(stranger / "elsewhere")
  with pytest.raises(InputError, match="names code"):
    registry.refuse_code("run/run.json", content)
  registry.allow_code(stranger)
  registry.refuse_code("run/run.json", content)
  assert not list(stranger.rglob("imported"))


def test_code_that_this_process_has_named_itself_is_no_strangers(stranger):
  registry.parse("models", "stranger_of_test.net()", "model")
  registry.refuse_code("run.json", {"model": "stranger_of_test.net(num_users=3)"})
  with pytest.raises(InputError, match=r"stranger_of_test\.Net"):
    registry.refuse_code("run.json", {"model": "stranger_of_test.Net()"})


@pytest.mark.parametrize("content", [
    {"model": "mf(dim=2)", "data": "interactions(path='a.b/c.csv', ratios=(0.8, 0.1, 0.1))", "peer": None},
    {"monitor": "ndcg@10,hit@10(sampled 499)"}, {"monitor": "epoch"}, {"model": "<mine.Net 12ab>"},
    {"data": "a name. of one's own"}, {}])
def test_files_may_name_what_kd_jax_has(content, stranger):
  registry.refuse_code("run.json", content)


@pytest.mark.parametrize("content", [{"model": 3}, {"data": ["x"]}, {"monitor": "a.b@3, (("}])
def test_damaged_names_are_refused(content, stranger):
  with pytest.raises(InputError, match=r"run\.json: damaged"):
    registry.refuse_code("run.json", content)


def test_an_allowed_directory_must_be_there(tmp_path):
  with pytest.raises(InputError, match=r"`allow_code=.*no such directory"):
    registry.allow_code(tmp_path / "absent")
