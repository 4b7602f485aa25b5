"""What the documents show is executed: their files, tests and commands, and the generated page."""

import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import processes_test
import pytest
from conftest import DATA, in_a_folder

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


def worked_example(folder):
  commands, run = follow(ROOT / "docs/add_a_loss.md", folder, DATA)
  assert len(commands) == 3
  for command in commands:
    run(command)


def python_page(folder):
  commands, run = follow(ROOT / "docs/python.md", folder, DATA)
  assert not commands
  assert 0 < float(run("python in_python.py").splitlines()[-1].split()[0]) < 1
  assert {path.name for path in folder.iterdir()} == {"in_python.py", "scripts"}  # without a workdir


def search(folder):
  commands, run = follow(ROOT / "docs/search.md", folder, DATA)
  run('python scripts/train.py --data=movielens --model="mf(dim=16)" --epochs=3 --workdir=runs/teacher')
  assert len(commands) == 2
  assert "trial 0" in run(commands[0]) and "3 trials: 3 complete" in run(commands[1])
  assert 0 < float(run("python best_rate.py").split()[-1]) < 1


def scale(folder):
  """Processes and split tables are what the page on scale says."""
  commands, run = follow(ROOT / "docs/scale.md", folder, DATA)
  assert len(commands) == 4 and "127.0.0.1:7654" in commands[0] and commands[0].endswith("& done; wait)")
  # At a port that is free here; the shell's `wait` alone would hide that a process failed.
  commands[0] = commands[0].replace("127.0.0.1:7654", f"127.0.0.1:{processes_test.free_port()}").replace(
      "& done; wait)", '& pids="$pids $!"; done; for pid in $pids; do wait $pid || exit; done)')
  for command in commands:
    assert run(command).count("validation") == 1  # the first process prints
  for name in ("two", "split"):
    processes_test.assert_equal_runs(folder / "runs/one", folder / "runs" / name)
  measured = run("python traffic.py 1 0 200 256 0").splitlines()
  assert len(measured) == 5 and all(re.fullmatch(r"[\d.]+ ms, [\d.]+ MB a step", line) for line in measured)


IMPORTED = {"svd": "embeddings of width 32 of all 942 users and 1,447 items",
            "als": "embeddings of width 64 of all 942", "lists": "of 847 of 942 users"}


def importing(folder):
  """{teacher: what its student's training printed}, from the commands of docs/import_a_teacher.md."""
  commands, run = follow(ROOT / "docs/import_a_teacher.md", folder, DATA)
  assert commands[0] == "python write_train.py" and len(commands) == 7
  run(commands[0])
  said = {}
  for name in IMPORTED:
    if name != "als" or importlib.util.find_spec("implicit"):
      write, train = (c for c in commands if f"{name}.py" in c or f"from_{name}" in c)
      run(write)
      said[name] = run(train)
  return said


FOLLOWED = {function.__name__: in_a_folder(function) for function in (worked_example, python_page, scale, search)}
BESIDE = (FOLLOWED | {"importing": in_a_folder(importing)}) if DATA.is_dir() else {}


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLLOWED)
def test_a_page_holds(name, real_data, beside):
  beside(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", IMPORTED)
def test_a_teacher_of_another_library_is_distilled(name, real_data, beside):
  if name == "als":
    pytest.importorskip("implicit", reason="pip install implicit to run the part of it in docs/import_a_teacher.md")
  said = beside("importing")[name]
  assert IMPORTED[name] in said
  assert float(re.search(r"validation .*ndcg@10 ([\d.]+)", said)[1]) > 0.12  # popularity: 0.1


PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs/results").glob("*.md")) if path.stem != "README"}
INDEX = (ROOT / "RESULTS.md").read_text()


def first_table(page):
  """The cells of its head and of its rows."""
  head, rows = re.search(r"^(\| row .*\n)\| --- .*\n((?:\|.*\n)+)", page, re.MULTILINE).groups()
  return [[cell.strip() for cell in line.split("|")[1:-1]] for line in (head + rows).splitlines()]


def test_the_results_are_what_their_commands_say():
  """A page has the name of its table; its command names the rows of the page, and a folder of its own."""
  folders = set()
  for name, page in PAGES.items():
    command = re.search(r"scripts/reproduce.py (.*)", page)[1]
    given = dict(flag.removeprefix("--").split("=", 1) for flag in shlex.split(command))
    assert name == given["table"] or ("rows" in given and name.startswith(f"{given['table']}_"))
    table = toml_file.load(given["table"])
    table = toml_file.choose(table, given["rows"].split(",")) if "rows" in given else table
    assert [cells[0] for cells in first_table(page)[1:]] == [row["row"] for row in table["row"]]
    assert given["workdir"] not in folders, f"{given['workdir']} holds the runs of another table"
    folders.add(given["workdir"])
  assert len(folders) > 8


def test_every_table_has_a_page_of_results():
  elsewhere = {table for page in ("settings", "compression")
               for table in re.findall(r"--table=(\w+)", (ROOT / f"docs/{page}.md").read_text())}
  tables = {path.stem for path in (ROOT / "configs/tables").glob("*.toml")}
  assert tables - elsewhere <= tables & set(PAGES)


def test_the_index_of_results_is_what_the_pages_say():
  lines = re.findall(r"^\| \[.*", INDEX, re.MULTILINE)
  linked = [re.search(r"\]\(docs/results/(\w+)\.md\)", line)[1] for line in lines]
  assert sorted(linked) == sorted(PAGES)
  for line, name in zip(lines, linked, strict=True):
    page = PAGES[name]
    heading, verdict, *_ = page.split("\n\n")
    head, *rows = first_table(page)
    transfer = next(i for i, name in enumerate(head) if name.startswith("transfer"))
    best = max(((float(row[transfer]), row[0]) for row in rows if row[transfer]), default=None)
    seeds = re.search(r"^(One|\d+) seeds?,", page, re.MULTILINE)[1].replace("One", "1")
    within = re.search(r"^(\d+ of \d+) values are within the tolerance that", page, re.MULTILINE)
    assert verdict.startswith("**")
    told = [f"[{heading.removeprefix('# ')}](docs/results/{name}.md)", str(len(rows)), seeds,
            within[1] if within else "", f"{best[1]}: {best[0]:.2f}" if best else "", " ".join(verdict.split())]
    assert line == f"| {' | '.join(told)} |"


def test_the_count_of_values_within_the_tolerance_is_that_of_the_verdicts():
  for name, page in PAGES.items():
    verdicts = re.findall(r"\| (within|above|below) \|$", page, re.MULTILINE)
    counts = re.findall(r"(\d+) of (\d+) values are within", page)
    assert bool(verdicts) == bool(counts), name
    assert set(counts) <= {(str(verdicts.count("within")), str(len(verdicts)))}, name


def test_the_table_that_the_page_on_tables_shows_is_one(tmp_path):
  text, = blocks(ROOT / "docs/tables.md", "toml")
  (tmp_path / "own.toml").write_text(text)
  assert [row["row"] for row in toml_file.load(str(tmp_path / "own.toml"))["row"]] == ["teacher", "student", "rrd"]


def test_the_page_on_tables_lists_all_of_them():
  listed = re.findall(r"^\| `(\w+)` \|", section("docs/tables.md", "All tables"), re.MULTILINE)
  assert sorted(listed) == sorted(path.stem for path in (ROOT / "configs/tables").glob("*.toml"))


def section(name, heading):
  return (ROOT / name).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


DOCUMENTS = [str(path.relative_to(ROOT)) for pattern in ("*.md", "docs/**/*.md") for path in sorted(ROOT.glob(pattern))]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_paths_named_in_documents_exist(name):
  for path in re.findall(r"`((?:kd_jax|configs|scripts|docs|tests)/[\w/.]+)`", (ROOT / name).read_text()):
    if "NAME" not in path and "confident" not in path:
      assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_of_documents_lead_somewhere(name):
  """Relative links, and the headings that they name."""
  text = re.sub(r"^```.*?^```$", "", (ROOT / name).read_text(), flags=re.DOTALL | re.MULTILINE)
  for link in re.findall(r"\]\(([^)\s]+)\)", text):
    path, _, anchor = link.partition("#")
    if "://" not in link:
      target = ROOT / name if not path else (ROOT / name).parent / path
      assert target.exists(), link
      assert not anchor or anchor in anchors(target.read_text()), link


def anchors(text):
  """Of all headings, as GitHub makes them."""
  headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_site_has_every_page():
  """As mkdocs.yml says: the menu names each page of docs/ once."""
  named = re.findall(r"([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
  assert sorted(named) == sorted(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").glob("**/*.md"))
