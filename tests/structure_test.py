"""The shape of the code: imports point one way, nothing unsafe is called."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = sorted((ROOT / "kd_jax").rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in [*PACKAGE, *SCRIPTS]}
UNPICKLER = ROOT / "kd_jax" / "data" / "pickles.py"  # restricted to lists, dicts and numbers
PYTORCH = [ROOT / "kd_jax" / "bench" / "against" / f"{name}.py" for name in ("torch", "recbole")]  # train beside us


def module_name(path):
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in PACKAGE}


def imports(tree):
  """Every module that is imported anywhere in a file, `from a import b` as a.b where that is a module."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      for alias in node.names:
        whole = f"{node.module}.{alias.name}"
        yield whole if whole in MODULES else node.module


GRAPH = {module_name(path): {name for name in imports(TREES[path]) if name in MODULES} for path in PACKAGE}


def test_no_import_is_relative():
  for path, tree in TREES.items():
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level], path


def test_imports_have_no_cycle():
  def visit(module, above):
    assert module not in above, " -> ".join([*above, module])
    for imported in GRAPH[module] - {module}:
      visit(imported, (*above, module))

  for module in GRAPH:
    visit(module, ())


# Folders (and the modules at the top) from the bottom up: each imports only from those before it.
ORDER = ("base", "registry", "storage", "data", "models", "losses", "objectives", "metrics", "label_metrics",
         "optimizers", "schedules", "callbacks", "compression", "ranking", "training", "devices", "teachers",
         "evaluation", "serving", "runs", "tuning", "cli", "tables", "bench", "fault")


def test_folders_import_in_one_direction():
  def folder(module):
    return module.split(".")[1] if "." in module else "base"

  assert {folder(module) for module in MODULES} == set(ORDER)
  up = [(module, other) for module, imported in GRAPH.items() for other in imported - {"kd_jax"}
        if module != "kd_jax" and ORDER.index(folder(other)) > ORDER.index(folder(module))]
  assert up == []


@pytest.mark.parametrize("folder", ["losses", "objectives", "metrics", "label_metrics", "optimizers", "schedules",
                                    "callbacks", "compression"])
def test_what_is_extended_knows_only_the_types(folder):
  package = f"kd_jax.{folder}"
  assert package in GRAPH
  for module, imported in GRAPH.items():
    if module == package or module.startswith(f"{package}."):
      known = {"kd_jax.base", "kd_jax.registry"} if module == package else {"kd_jax.base"}
      assert all(i in known or i.startswith(f"{package}.") for i in imported), module


def test_only_the_command_line_knows_of_flags():
  knowing = {path for path, tree in TREES.items() if "absl" in {name.partition(".")[0] for name in imports(tree)}}
  assert knowing == {ROOT / "kd_jax" / "cli.py"}


SPEAKS_OF_FLAGS = {ROOT / "kd_jax" / "cli.py", ROOT / "kd_jax" / "tables" / "toml_file.py"}  # a table holds flags


def test_errors_of_the_library_name_arguments_not_flags():
  """`epochs=0`: only the command line turns it into --epochs=0."""
  for path in PACKAGE:
    if path in SPEAKS_OF_FLAGS or (ROOT / "kd_jax" / "bench") in path.parents:
      continue
    for node in ast.walk(TREES[path]):
      made = isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "InputError"
      if made or isinstance(node, ast.Raise):
        for text in ast.walk(node):
          flag = isinstance(text, ast.Constant) and isinstance(text.value, str) and re.search("--[A-Za-z]", text.value)
          assert not flag, f"{path}:{node.lineno}: {flag and text.value}"


def test_few_modules_stand_at_the_top():
  assert len(list((ROOT / "kd_jax").glob("*.py"))) <= 4


def test_only_the_look_up_reaches_methods_and_models():
  for module, imported in GRAPH.items():
    if not module.startswith(("kd_jax.losses", "kd_jax.models")):
      reached = [i for i in imported if i.startswith(("kd_jax.losses.", "kd_jax.models."))]
      assert all(".models._" in i for i in reached), module  # pieces that models share


def test_scripts_import_only_the_command_line_at_the_top():
  assert len(SCRIPTS) >= 6
  for path in SCRIPTS:
    top = ast.Module([n for n in TREES[path].body if isinstance(n, ast.Import | ast.ImportFrom)], [])
    found = {name for name in imports(top) if name.partition(".")[0] not in sys.stdlib_module_names}
    assert found == {"kd_jax.cli"}, path


def test_the_command_line_loads_neither_jax_nor_tensorflow_datasets():
  code = ("import sys, kd_jax.cli; "
          "print(sorted({m.partition('.')[0] for m in sys.modules} & {'jax', 'flax', 'optax', 'tensorflow_datasets', "
          "'orbax', 'numpy', 'tensorflow'}))")
  found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
  assert found.stdout.strip() in ("[]", "['numpy']")


FORBIDDEN_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "torch", "yaml"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "serialize_executable", "deserialize_and_load"}


def test_nothing_that_runs_foreign_bytes():
  assert UNPICKLER in TREES
  for path, tree in TREES.items():
    allowed = ({UNPICKLER: {"pickle"}} | {file: {"torch"} for file in PYTORCH}).get(path, set())
    found = {name.partition(".")[0] for name in imports(tree)} & FORBIDDEN_MODULES
    assert found <= allowed, path
    for node in ast.walk(tree):
      if isinstance(node, ast.Call):
        called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        is_method = isinstance(node.func, ast.Attribute) and called in ("compile", "eval")  # re.compile
        assert is_method or called not in FORBIDDEN_CALLS, f"{path}:{node.lineno}: {called}"
        assert called != "system", f"{path}:{node.lineno}"
        for keyword in node.keywords:
          literal = keyword.value.value if isinstance(keyword.value, ast.Constant) else "not a literal"
          assert keyword.arg != "allow_pickle" or literal is False, f"{path}:{node.lineno}: allow_pickle"
          assert keyword.arg != "shell" or literal is False, f"{path}:{node.lineno}: shell"
        if ast.unparse(node.func) in ("np.load", "numpy.load"):
          assert any(k.arg == "allow_pickle" for k in node.keywords), f"{path}:{node.lineno}: say allow_pickle=False"


def test_no_file_is_named_after_nothing():
  for path in [*PACKAGE, *SCRIPTS]:
    assert path.stem not in ("utils", "util", "common", "helpers", "helper", "misc", "tools"), path


def test_every_module_says_what_it_is():
  for path, tree in TREES.items():
    assert ast.get_docstring(tree), path
