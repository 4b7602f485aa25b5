"""What the documents show is executed: their files, tests and commands, and the generated page."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import processes_test
import pytest

from kd_jax.tables import methods_page, toml_file

ROOT = pathlib.Path(__file__).parent.parent


def blocks(path, language):
  return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


def test_the_page_of_methods_is_up_to_date():
  assert (ROOT / "docs/methods.md").read_text() == methods_page.write(), "run: python scripts/methods_page.py"


def follow(document, folder, real_data):
  """Writes the files of a document to `folder` and returns its commands, and a function that runs one there."""
  for block in blocks(document, "python"):
    (folder / block.splitlines()[0].removeprefix("# ")).write_text(block)
  shutil.copytree(ROOT / "scripts", folder / "scripts")
  path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
  modules = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
  environment = os.environ | {"PATH": path, "PYTHONPATH": modules, "KD_JAX_DATA": str(real_data)}

  def run(command):
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout

  return [line for block in blocks(document, "bash") for line in block.splitlines()], run


def test_the_worked_example_works(tmp_path, real_data):
  commands, run = follow(ROOT / "docs/add_a_loss.md", tmp_path, real_data)
  assert len(commands) == 3
  for command in commands:
    run(command)


def test_processes_and_split_tables_are_what_the_page_on_scale_says(tmp_path, real_data):
  commands, run = follow(ROOT / "docs/scale.md", tmp_path, real_data)
  assert len(commands) == 4 and "127.0.0.1:7654" in commands[0] and commands[0].endswith("& done; wait)")
  # At a port that is free here; the shell's `wait` alone would hide that a process failed.
  commands[0] = commands[0].replace("127.0.0.1:7654", f"127.0.0.1:{processes_test.free_port()}").replace(
      "& done; wait)", '& pids="$pids $!"; done; for pid in $pids; do wait $pid || exit; done)')
  for command in commands:
    assert run(command).count("validation") == 1  # the first process prints
  for name in ("two", "split"):
    processes_test.assert_equal_runs(tmp_path / "runs/one", tmp_path / "runs" / name)
  measured = run("python traffic.py 1 0 200 256 0").splitlines()
  assert len(measured) == 5 and all(re.fullmatch(r"[\d.]+ ms, [\d.]+ MB a step", line) for line in measured)


@pytest.fixture(scope="module")
def importing(tmp_path_factory, real_data):
  """The commands of docs/import_a_teacher.md, of which the first has been run."""
  commands, run = follow(ROOT / "docs/import_a_teacher.md", tmp_path_factory.mktemp("import"), real_data)
  assert commands[0] == "python write_train.py" and len(commands) == 7
  run(commands[0])
  return commands, run


@pytest.mark.parametrize(("name", "coverage"), [
    ("svd", "embeddings of width 32 of all 942 users and 1,447 items"), ("als", "embeddings of width 64 of all 942"),
    ("lists", "of 847 of 942 users")])
def test_a_teacher_of_another_library_is_distilled(name, coverage, importing):
  if name == "als":
    pytest.importorskip("implicit", reason="pip install implicit to run the part of it in docs/import_a_teacher.md")
  commands, run = importing
  write, train = (c for c in commands if f"{name}.py" in c or f"from_{name}" in c)
  run(write)
  said = run(train)
  assert coverage in said
  assert float(re.search(r"validation .*ndcg@10 ([\d.]+)", said)[1]) > 0.12  # popularity: 0.1


OVERVIEW, *SECTIONS = (ROOT / "RESULTS.md").read_text().split("\n## ")
RESULTS = [section for section in SECTIONS if "scripts/reproduce.py" in section]


def first_table(section):
  """The cells of its head and of its rows."""
  head, rows = re.search(r"^(\| row .*\n)\| --- .*\n((?:\|.*\n)+)", section, re.MULTILINE).groups()
  return [[cell.strip() for cell in line.split("|")[1:-1]] for line in (head + rows).splitlines()]


def test_the_results_are_what_their_commands_say():
  """Every command names the rows that stand below it, and a folder that no other table has."""
  folders = set()
  for section in RESULTS:
    command = re.search(r"scripts/reproduce.py (.*)", section)[1]
    given = dict(flag.removeprefix("--").split("=", 1) for flag in shlex.split(command))
    table = toml_file.load(given["table"])
    table = toml_file.choose(table, given["rows"].split(",")) if "rows" in given else table
    assert [cells[0] for cells in first_table(section)[1:]] == [row["row"] for row in table["row"]]
    assert given["workdir"] not in folders, f"{given['workdir']} holds the runs of another table"
    folders.add(given["workdir"])
  assert len(folders) > 8


def test_the_results_begin_with_what_their_sections_say():
  lines = re.findall(r"^\| \[.*", OVERVIEW, re.MULTILINE)
  for line, section in zip(lines, RESULTS, strict=True):
    heading = section.partition("\n")[0]
    anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    head, *rows = first_table(section)
    transfer = next(i for i, name in enumerate(head) if name.startswith("transfer"))
    best = max(((float(row[transfer]), row[0]) for row in rows if row[transfer]), default=None)
    seeds = re.search(r"^(One|\d+) seeds?,", section, re.MULTILINE)[1].replace("One", "1")
    within = re.search(r"^(\d+ of \d+) values are within the tolerance that", section, re.MULTILINE)
    told = [f"[{heading}](#{anchor})", str(len(rows)), seeds, within[1] if within else "",
            f"{best[1]}: {best[0]:.2f}" if best else ""]
    assert line == f"| {' | '.join(told)} |"


@pytest.mark.parametrize("name", [
    "README.md", "CONTRIBUTING.md", "docs/add_a_loss.md", "docs/import_a_teacher.md", "docs/scale.md",
    "docs/settings.md"])
def test_paths_named_in_documents_exist(name):
  for path in re.findall(r"`((?:kd_jax|configs|scripts|docs|tests)/[\w/.]+)`", (ROOT / name).read_text()):
    if "NAME" not in path and "confident" not in path:
      assert (ROOT / path).exists(), path
