"""Names on the command line: what is parsed, and what is refused in one line."""

import sys

import pytest

from kd_jax import registry
from kd_jax.base import InputError
from kd_jax.registry import Call

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
    ("-0.5*kl()", ((-0.5, Call("kl")),)),
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
def scaled(size, base=2):
  if size < 0:
    raise ValueError("size must not be negative")
  return size * base
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
  assert registry.build("losses", call) == 8
  with pytest.raises(InputError, match="needs size"):
    registry.parse("losses", f"{own}.scaled()", "kd")
  with pytest.raises(InputError, match="base=2"):
    registry.parse("losses", f"{own}.scaled(size=1, bse=3)", "kd")


def test_what_a_factory_refuses_is_an_error_of_input(own):
  with pytest.raises(InputError, match=r"scaled.*must not be negative"):
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
