"""The README holds: its commands run as written, in a copy of the repository, and what it names is there."""

import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
PATH = re.compile(r"[\w.-]+(/[\w.-]+)*(/|/[\w.-]+|\.(csv|flags|jsonl?|md|py|toml|txt))")
SECONDS = 900  # for one command; all of them take a third of it on two quiet cores
USERS, FEWEST = 60, 8  # of the log that stands for the reader's own
DISTILLED, CLOSED = ("kl", "rrd", "rcekd"), 0.5  # the share of the quickstart's gap that each closes at least


class Command(NamedTuple):
  """A command line of the README, as a reader would type it."""

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
  """Every command of the README, in its order: those of bash blocks and those within the text."""
  found = [(m.start(), c) for m in FENCE.finditer(README) if m[1] == "bash" for c in typed(m[2])]
  blanked = FENCE.sub(lambda m: " " * len(m[0]), README)
  found += [(m.start(), " ".join(m[1].split())) for m in INLINE.finditer(blanked)
            if m[1].startswith("python scripts/")]
  return [Command(text) for _, text in sorted(found, key=lambda pair: pair[0])]


COMMANDS = commands()


class Reader:
  """Someone who follows the README from its top in `folder`, as far as asked."""

  def __init__(self, folder: pathlib.Path):
    self.folder, self.done = folder, []
    data = pathlib.Path(os.environ.get("KD_JAX_DATA") or ROOT.parent / "shared" / "data")
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    self.environment = os.environ | {"PATH": path} | ({"KD_JAX_DATA": str(data)} if data.is_dir() else {})

  def run(self, command: Command) -> subprocess.CompletedProcess:
    """What became of the command; runs it, and all before it, if that has not been done."""
    position = COMMANDS.index(command)
    for step in COMMANDS[len(self.done) : position + 1]:
      self.done.append(subprocess.run(
          ["bash", "-euc", step.text], cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
          capture_output=True, text=True, timeout=SECONDS))
    return self.done[position]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
  folder = tmp_path_factory.mktemp("readme") / "kd_jax"
  listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                          capture_output=True, text=True, check=True).stdout
  for name in filter(None, listed.split("\0")):
    if (ROOT / name).is_file():  # a file may be deleted and not yet committed
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy2(ROOT / name, folder / name)
  for m in FENCE.finditer(README):
    if m[1] == "python":
      name = re.findall(r"save it\s+as\s+`(\w+\.py)`", README[: m.start()])[-1]
      (folder / name).write_text(m[2])
  write_log(folder / "log.csv")
  return Reader(folder)


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


@pytest.mark.parametrize("command", COMMANDS, ids=[c.name for c in COMMANDS])
def test_command_succeeds(reader, command):
  done = reader.run(command)
  assert done.returncode == 0, f"{command.text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def quickstart(reader):
  command, = (c for c in COMMANDS if "--table=quickstart" in c.text)
  assert reader.run(command).returncode == 0
  return reader.folder / re.search(r"--workdir=(\S+)", command.text)[1]


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


def test_quickstart_writes_table_and_figure(reader):
  folder = quickstart(reader)
  table = (folder / "quickstart.md").read_text()
  result = json.loads((folder / "quickstart.json").read_text())
  for row in result["rows"]:
    line, = re.findall(rf"^\| *{row['row']} *\|.*$", table, re.MULTILINE)
    assert f"{row['metrics']['ndcg@10']['mean']:.4f}" in line
  assert (folder / "quickstart.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_every_file_that_is_named_exists(reader):
  reader.run(COMMANDS[-1])
  prose = FENCE.sub("", README)
  named = {m[1].rstrip("/") for m in INLINE.finditer(prose) if PATH.fullmatch(m[1])}
  links = re.findall(r"\]\(([^)#\s][^)\s]*)\)", prose)
  named |= {link.partition("#")[0] for link in links if "://" not in link}
  assert {"CONTRIBUTING.md", "metrics.jsonl", "configs/tables"} <= named
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
  without = re.sub(r"XLA_FLAGS=\S+", "", README)  # the compiler's own
  named = set(re.findall(r"(?<![\w-])--(\w+)", without))
  assert {"data", "model", "kd", "teacher", "workdir"} <= named
  assert sorted(named - known) == []


@pytest.mark.short
def test_every_table_and_extra_that_is_named_exists():
  tables = {path.stem for path in (ROOT / "configs" / "tables").glob("*.toml")}
  section = README.partition("\n## Tables\n")[2].partition("\n## ")[0]
  listed = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
  assert listed and listed == tables
  assert set(re.findall(r"--table=(\w+)", README)) <= tables
  for extra in re.findall(r"install -e \"?\.\[(\w+)\]", README):
    assert re.search(rf'"{extra}": \[', (ROOT / "setup.py").read_text()), extra


@pytest.mark.short
def test_nothing_is_left_to_fill_in():
  assert re.findall(r"^[A-Z]+_[A-Z_]+$|\b(?:TODO|TBD|FIXME)\b", README, re.MULTILINE) == []


@pytest.mark.short
def test_the_commands_are_found():
  scripts = {c.name.split()[0] for c in COMMANDS}
  assert {"reproduce", "train", "evaluate", "soft_labels", "export", "prepare"} <= scripts
  assert any("--flagfile=" in c.text for c in COMMANDS)
  assert not any("pip install" in c.text or "pytest" in c.text for c in COMMANDS)
