"""README and pages hold: their commands run as written, in a copy of the repository, and what they name is there."""

import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Read one after the other, from the top.
_DOCS = ("command_line", "compression", "privacy", "labelled", "devices", "content", "tables", "extend")
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", *(f"docs/{page}.md" for page in _DOCS))}
README = PAGES["README.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
PATH = re.compile(r"[\w.-]+(/[\w.-]+)*(/|/[\w.-]+|\.(csv|flags|jsonl?|md|py|toml|txt))")
SECONDS = 900  # for one command; all of them take a third of it on two quiet cores
USERS, FEWEST = 60, 8  # of the log that stands for the reader's own
DISTILLED, CLOSED = ("kl", "rrd", "rcekd"), 0.5  # the share of the quickstart's gap that each closes at least


class Command(NamedTuple):
  """A command line of a page, as a reader would type it."""

  page: str
  text: str

  @property
  def name(self) -> str:
    script = re.search(r"scripts/(\w+)\.py", self.text)[1]
    target = re.search(r"--(?:workdir|out|run)=(\S+)", self.text)
    return f"{script} {target[1]}" if target else script


def typed(text: str) -> list[str]:
  """The commands of a block: whole lines, without installing, and without the tests that run this."""
  lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
  steps = [[s for s in line.split(" && ") if not re.match(r"(pip install|python -m pytest)\b", s)]
           for line in lines if line and not line.startswith("#")]
  return [" && ".join(line) for line in steps if line]


def commands() -> list[Command]:
  """Every command of the bash blocks, in their order; one that stands on several pages is typed once."""
  found = {}
  for page, text in PAGES.items():
    for m in FENCE.finditer(text):
      for command in typed(m[2]) if m[1] == "bash" else ():
        found.setdefault(command, page)
  return [Command(page, text) for text, page in found.items()]


COMMANDS = commands()


class Reader:
  """Someone who follows the pages from the top in `folder`."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    data = pathlib.Path(os.environ.get("KD_JAX_DATA") or ROOT.parent / "shared" / "data")
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    self.environment = os.environ | {"PATH": path} | ({"KD_JAX_DATA": str(data)} if data.is_dir() else {})
    self.done = {command: subprocess.run(
        ["bash", "-euc", command.text], cwd=folder, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=SECONDS) for command in COMMANDS}
    self.program = subprocess.run([sys.executable, "-c", PROGRAM], cwd=folder, env=self.environment,
                                  capture_output=True, text=True)


PROGRAM, = (m[2] for m in FENCE.finditer(README) if m[1] == "python" and m[2].startswith("import kd_jax"))


def follow():
  """Runs every command in a copy of the repository."""
  folder = pathlib.Path(tempfile.mkdtemp(prefix="kd_jax_readme_")) / "kd_jax"
  listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                          capture_output=True, text=True, check=True).stdout
  for name in filter(None, listed.split("\0")):
    if (ROOT / name).is_file():  # a file may be deleted and not yet committed
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy2(ROOT / name, folder / name)
  for text in PAGES.values():
    for m in FENCE.finditer(text):
      names = re.findall(r"^# (\w+\.py)$", m[2].split("\n")[0]) or re.findall(
          r"Save it as `(\w+\.py)`", text[: m.start()])[-1:]
      if m[1] == "python" and names and m[2] != PROGRAM:
        (folder / names[0]).write_text(m[2])
  write_log(folder / "log.csv")
  return Reader(folder)


BESIDE = {"reader": follow}


@pytest.fixture(scope="module")
def reader(beside):
  reader = beside("reader")
  yield reader
  shutil.rmtree(reader.folder.parent, ignore_errors=True)


def write_log(path):
  """Users with tastes, as (user, item) rows in the order of the visits."""
  rng = np.random.default_rng(0)
  titles = [f"{kind} {n}" for kind in ("tea", "coffee", "mug", "kettle") for n in range(20)]
  rows = []
  for user in range(USERS):
    weights = np.where(np.arange(len(titles)) // 20 == user % 4, 6.0, 1.0)
    chosen = rng.choice(len(titles), rng.integers(FEWEST, 25), replace=False, p=weights / weights.sum())
    rows += [f"customer-{user:03d},{titles[item]}" for item in chosen]
  rng.shuffle(rows)
  path.write_text("\n".join(["user,item", *rows, ""]))


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=[c.name for c in COMMANDS])
def test_command_succeeds(reader, command):
  done = reader.done[command]
  assert done.returncode == 0, f"{command.text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def quickstart(reader):
  command = next(c for c in COMMANDS if "--table=quickstart" in c.text)
  assert reader.done[command].returncode == 0
  return reader.folder / re.search(r"--workdir=(\S+)", command.text)[1]


@pytest.mark.slow
def test_quickstart_closes_the_gap_as_claimed(reader):
  result = json.loads((quickstart(reader) / "quickstart.json").read_text())
  found = {row["row"]: row["metrics"]["ndcg@10"] for row in result["rows"]}
  assert list(found) == ["pop", "teacher", "student", *DISTILLED]
  assert not result["synthetic"]
  assert all(len(row["values"]) == 3 and len(set(row["values"])) == 3 for name, row in found.items()
             if name != "pop")
  teacher, student = (found[name]["mean"] for name in ("teacher", "student"))
  assert found["pop"]["mean"] < student < teacher
  for name in DISTILLED:
    assert (found[name]["mean"] - student) / (teacher - student) >= CLOSED, name


@pytest.mark.slow
def test_quickstart_writes_table_and_figure(reader):
  folder = quickstart(reader)
  table = (folder / "quickstart.md").read_text()
  result = json.loads((folder / "quickstart.json").read_text())
  for row in result["rows"]:
    line, = re.findall(rf"^\| *{row['row']} *\|.*$", table, re.MULTILINE)
    assert f"{row['metrics']['ndcg@10']['mean']:.4f}" in line
  assert (folder / "quickstart.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.slow
def test_every_file_that_is_named_exists(reader):
  prose = FENCE.sub("", README)  # other pages: docs_test
  named = {m[1].rstrip("/") for m in INLINE.finditer(prose) if PATH.fullmatch(m[1])}
  links = re.findall(r"\]\(([^)#\s][^)\s]*)\)", prose)
  named |= {link.partition("#")[0] for link in links if "://" not in link}
  assert {"CONTRIBUTING.md", "docs/notebooks"} <= named
  places = reader.folder, reader.folder / "scripts", reader.folder / "runs" / "distilled"
  assert [name for name in sorted(named) if not any((place / name).exists() for place in places)] == []


@pytest.mark.short
def test_every_flag_that_is_named_exists():
  known = {"help"}
  for path in (ROOT / "scripts").glob("*.py"):
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    known |= set(script.FLAGS)
  without = re.sub(r"XLA_FLAGS=\S+", "", "".join(PAGES.values()))  # the compiler's own
  named = set(re.findall(r"(?<![\w-])--(\w+)", without))
  assert {"data", "model", "kd", "teacher", "workdir"} <= named
  assert sorted(named - known) == []


@pytest.mark.short
def test_every_extra_that_is_named_exists():
  for extra in re.findall(r"install -e \"?\.\[(\w+)\]", "".join(PAGES.values())):
    assert re.search(rf'"{extra}": \[', (ROOT / "setup.py").read_text()), extra


@pytest.mark.short
def test_the_readme_is_short():
  assert len(README.splitlines()) <= 110


@pytest.mark.slow
def test_the_program_in_python_runs_as_written(reader):
  """In Python and on the command line the README trains the same student."""
  assert len(PROGRAM.splitlines()) <= 10
  done = reader.program
  assert done.returncode == 0, done.stderr
  (command,) = (c for c in COMMANDS if "evaluate.py --run=runs/distilled --teacher" in c.text)
  assert reader.done[command].returncode == 0
  on_disk = json.loads((reader.folder / "runs/distilled/test.json").read_text())["metrics"]["ndcg@10"]
  assert float(done.stdout.splitlines()[-1].split()[0]) == pytest.approx(on_disk, abs=1e-3)


@pytest.mark.short
def test_nothing_is_left_to_fill_in():
  assert re.findall(r"^[A-Z]+_[A-Z_]+$|\b(?:TODO|TBD|FIXME)\b", README, re.MULTILINE) == []


@pytest.mark.short
def test_the_commands_are_found():
  scripts = {c.name.split()[0] for c in COMMANDS}
  assert {"reproduce", "train", "evaluate", "soft_labels", "export", "prepare"} <= scripts
  assert any("--flagfile=" in c.text for c in COMMANDS)
  assert not any("pip install" in c.text or "pytest" in c.text for c in COMMANDS)
