"""The page of a service in a browser, used with the keyboard alone; and the commands of docs/serving.md."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import service_test
import small_export as small
from conftest import DATA, ROOT, in_a_folder

try:
  from playwright import sync_api
except ImportError:
  sync_api = None
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None or sync_api is None, reason="pip install playwright; and Chromium")
TITLES = {f"i{number}": f"Film {number} <b>" for number in range(small.ITEMS)}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
  folder = tmp_path_factory.mktemp("page")
  for seed, name in enumerate(("student", "teacher")):
    small.write_export(folder / name, seed, TITLES)
  service = service_test.Service(folder, "--export=student", "--teacher=teacher", "--format=npz")
  service.wait()
  with sync_api.sync_playwright() as started:
    browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
    opened = browser.new_page(bypass_csp=True)  # waiting for a function needs eval
    wrong = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("requestfailed", lambda request: wrong.append(request.url))
    opened.goto(f"http://127.0.0.1:{service.port}/")
    opened.wait_for_selector("#users option", state="attached")
    yield opened, service
    assert wrong == []
    browser.close()
  service.stop()


def shown(opened):
  """{heading: titles} of the lists."""
  return {part.query_selector("h2").inner_text(): [line.inner_text() for line in part.query_selector_all("li .title")]
          for part in opened.query_selector_all("#lists > div")}


def wait_for_lists(opened, text):
  opened.wait_for_function("text => [...document.querySelectorAll('.ms')].filter("
                           "x => x.textContent.includes(text)).length === 2", arg=text)


@pytest.mark.slow
@needs_browser
def test_lists_of_a_user_stand_side_by_side(page):
  opened, service = page
  assert opened.evaluate("document.activeElement.id") == "user"
  opened.keyboard.type("u3")
  opened.keyboard.press("Enter")
  wait_for_lists(opened, "from: user")
  found = shown(opened)
  assert list(found) == ["Teacher: mf(dim=5)", "Student: mf(dim=5)"]
  for name, titles in zip(("teacher", "a"), found.values(), strict=True):
    expected = [item["title"] for item in service.get(f"/recommend?user=u3&model={name}")["items"]]
    assert [title.strip() for title in titles] == expected and len(titles) == 10
  assert opened.query_selector("#lists b") is None  # titles are text
  assert re.fullmatch(r"from: user; [\d.]+ ms", opened.query_selector(".ms").inner_text())


@pytest.mark.slow
@needs_browser
def test_items_are_picked_and_taken_back_with_the_keyboard(page):
  opened, service = page
  opened.focus("#user")
  opened.keyboard.press("Control+A")
  opened.keyboard.press("Delete")
  opened.keyboard.press("Tab")
  assert opened.evaluate("document.activeElement.id") == "item"
  for text in ("Film 7 <b>", "i9"):
    opened.keyboard.type(text)
    opened.keyboard.press("Enter")
    opened.wait_for_function("document.getElementById('item').value === ''")
  wait_for_lists(opened, "from: fold-in")
  opened.wait_for_function("document.querySelectorAll('#picked li').length === 2")
  expected = service.ask("/recommend", {"history": ["i7", "i9"], "model": "a"})[1]["items"]
  opened.wait_for_timeout(300)
  assert [title.strip() for title in shown(opened)["Student: mf(dim=5)"]] == [item["title"] for item in expected]
  for _ in range(2):
    opened.focus("#picked button")
    opened.keyboard.press("Space")
  wait_for_lists(opened, "from: popularity")
  assert opened.query_selector_all("#picked li") == []
  opened.focus("#item")
  opened.keyboard.type("no such film")
  opened.keyboard.press("Enter")
  opened.wait_for_function("document.getElementById('said').textContent.includes('no item has')")
  assert opened.get_attribute("#said", "role") == "alert"
  unlabelled = "[...document.querySelectorAll('input')].filter(x => !x.labels.length).length"
  assert opened.evaluate(unlabelled) == 0


DOCUMENT = (ROOT / "docs/serving.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", DOCUMENT, re.DOTALL) for line in block.splitlines()]


def follow(folder):
  """Runs the commands of the page in `folder`; what the program in Python and the service said."""
  shutil.copytree(ROOT / "scripts", folder / "scripts")
  program, = re.findall(r"```python\n# recommend\.py\n(.*?)```", DOCUMENT, re.DOTALL)
  (folder / "recommend.py").write_text(program)
  environment = os.environ | {
      "PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "KD_JAX_DATA": str(DATA),
      "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
  said = {}
  for command in COMMANDS:
    name = re.search(r"(\w+)\.py", command)[1]
    if name == "serve":
      flags = [x for x in command.split()[2:] if not x.startswith("--port")]
      service = service_test.Service(folder, *flags)
      said[name] = [service.wait(), service.get("/recommend?user=196&k=3"), service.stop()][:2]
      continue
    if name == "load_test" and not shutil.which("wrk"):
      continue
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    said[command.partition(" --")[0].rpartition("/")[2]] = done.stdout
  said["parquet"] = len(list((folder / "recommended/student").glob("*.parquet")))
  said["table"] = (folder / "latency/latency.json").read_text()
  return said


BESIDE = {"followed": in_a_folder(follow)}


@pytest.mark.slow
def test_the_commands_of_the_page_do_what_it_says(beside, real_data):
  said = beside("followed")
  lines = said["python recommend.py"].splitlines()
  assert lines[0].startswith("Answer(items=[") and lines[4] == "popularity" and lines[6] == "[10, 5]"
  health, reply = said["serve"]
  assert set(health["models"]) == {"a", "teacher"} and len(reply["items"]) == 3
  assert said["parquet"] == 1
  forms = [row["form"] for row in json.loads(said["table"])["rows"]]
  assert [forms.count(name) for name in ("jit", "npz", "int8 npz")] == [2, 2, 2]
  assert not shutil.which("wrk") or "| 500 a second, replaced |" in said["load_test.py"]


def test_the_container_has_only_what_exists():
  """Its flags are those of the script; its files and extras are there."""
  folder = ROOT / "configs/serving"
  docker, compose = (folder / "Dockerfile").read_text(), (folder / "compose.yml").read_text()
  flags = set(re.findall(r'"--(\w+)=', docker)) - {"flagfile"}
  script = (ROOT / "scripts/serve.py").read_text()
  assert {"export", "host", "port"} <= flags and all(re.search(rf"^    {flag}=flag", script, re.MULTILINE)
                                                     for flag in flags)
  for name in ("configs/serving/requirements.txt", "configs/serving/Dockerfile", "configs/serving/prometheus.yml"):
    assert (ROOT / name).is_file() and name.rpartition("/")[2] in docker + compose
