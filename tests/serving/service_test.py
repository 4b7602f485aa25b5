"""The HTTP service, started as a user starts it, and asked over real connections."""

import asyncio
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent import futures

import pytest
import small_export as small
from conftest import ROOT

from kd_jax import serving
from kd_jax.base import InputError

for needed in ("fastapi", "uvicorn", "prometheus_client"):
  pytest.importorskip(needed, reason="pip install 'kd_jax[serve]'")

from prometheus_client import parser  # noqa: E402

from kd_jax.serving import live, service  # noqa: E402
from kd_jax.serving.batching import Batches, FullError  # noqa: E402

TOKEN = "secret-of-the-test"


class Service:
  """A service in a process of its own."""

  def __init__(self, folder: pathlib.Path, *flags: str):
    with socket.create_server(("127.0.0.1", 0)) as free:
      self.port = free.getsockname()[1]
    self.log = folder / f"log-{self.port}"
    with open(self.log, "wb") as log:
      self.process = subprocess.Popen([sys.executable, ROOT / "scripts/serve.py", f"--port={self.port}", *flags],
                                      stdout=log, stderr=subprocess.DEVNULL, cwd=folder)

  def wait(self):
    for _ in range(600):
      assert self.process.poll() is None, self.log.read_text()
      try:
        return self.get("/health")
      except OSError:
        time.sleep(0.1)
    raise AssertionError("not ready")

  def ask(self, path, body=None, token=None, method=None):
    """(status, content of the JSON answer)."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers, method=method)
    try:
      with urllib.request.urlopen(request, timeout=30) as answer:
        content = answer.read()
        return answer.status, json.loads(content) if "json" in answer.headers["content-type"] else content.decode()
    except urllib.error.HTTPError as error:
      content = error.read()
      return error.code, json.loads(content) if "json" in error.headers["content-type"] else content.decode()

  def get(self, path):
    status, content = self.ask(path)
    assert status == 200, content
    return content

  def stop(self):
    self.process.send_signal(signal.SIGTERM)
    return self.process.wait(30)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder of exports."""
  folder = tmp_path_factory.mktemp("services")
  titles = {"i3": "A film", "i4": "Another <b>film</b>"}
  for seed, name in enumerate(("a", "b", "teacher")):
    small.write_export(folder / name, seed, titles)
  shutil.copytree(folder / "a", folder / "swapped")
  return folder


@pytest.fixture(scope="module")
def services(place):
  """The services, started at the same time."""
  common = ("--format=npz", "--reload_seconds=0.1")
  made = {"open": Service(place, "--export=a", "--export_b=b", "--teacher=teacher", "--share_b=0.3", "--most_k=40",
                          "--most_bytes=20000", *common),
          "closed": Service(place, "--export=swapped", f"--token={TOKEN}", *common)}
  for one in made.values():
    one.wait()
  yield made
  assert [one.stop() for one in made.values()] == [128 + signal.SIGTERM] * 2


@pytest.fixture(scope="module")
def opened(services):
  return services["open"]


@pytest.fixture(scope="module")
def libraries(place):
  return {name: serving.load(place / name, "npz") for name in ("a", "b", "teacher")}


def expected(answer):
  return {"items": answer.items, "scores": pytest.approx(answer.scores, rel=1e-5), "source": answer.source}


def seen(reply):
  return {"items": [item["id"] for item in reply["items"]], "scores": [item["score"] for item in reply["items"]],
          "source": reply["source"]}


def test_answers_are_those_of_the_library(opened, libraries):
  for name in libraries:
    reply = opened.get(f"/recommend?user=u3&k=5&model={name}")
    assert seen(reply) == expected(libraries[name].recommend("u3", k=5)) and reply["model"] == name
    assert reply["export"] == libraries[name].contents.sha256[:12]
  asked = {"user": "u2", "history": ["i1", "i9"], "exclude": ["i5"], "candidates": ["i5", "i6", "i7", "i9"], "k": 3}
  assert seen(opened.ask("/recommend", asked | {"model": "a"})[1]) == expected(libraries["a"].recommend(**asked))
  for body in ({}, {"user": "nobody"}, {"user": None, "history": []}):
    reply = opened.ask("/recommend", body)[1]
    assert seen(reply) == expected(libraries["a"].recommend(body.get("user"))) and reply["source"] == "popularity"
  assert seen(opened.get("/similar?item=i7&k=4&model=b")) == expected(libraries["b"].similar("i7", 4))
  titled = opened.ask("/recommend", {"candidates": ["i3", "i50"]})[1]["items"]
  assert {item["id"]: item["title"] for item in titled} == {"i3": "A film", "i50": None}


WRONG = [("/recommend?user=u1&k=41", None), ("/recommend?user=u1&k=0", None), ("/recommend?user=u1&k=nan", None),
         ("/recommend", None), ("/recommend?user=u1&model=c", None), ("/similar?item=unknown", None),
         *(("/recommend", body) for body in (
             b"", b"{", b"[]", b"\xff", b'{"k": NaN}', b'{"k": 1e400}', b'{"history": [NaN]}', {"k": "3"}, {"k": True},
             {"k": 10**30}, {"history": "i1"}, {"history": ["unknown"]}, {"exclude": [["i1"]]}, {"user": ["u1"]},
             {"user": True}, {"candidates": {"i1": 1}}, {"more": 1}, {"history": [1] * 10_001},
             {"user": "u" * 2000}))]


@pytest.mark.parametrize("path, body", WRONG, ids=lambda x: str(x)[:40])
def test_what_is_wrong_gets_a_reason(path, body, opened):
  status, content = opened.ask(path, body)
  assert 400 <= status < 500 and 3 < len(content["detail"]) <= 600


def test_a_large_body_is_refused_before_it_is_read(opened):
  status, content = opened.ask("/recommend", {"history": ["i1"] * 9000})
  assert status == 413 and "20,000 bytes" in content["detail"]


def test_users_are_split_by_their_id(opened, libraries):
  users = [f"u{number}" for number in range(40)]
  chosen = {user: opened.get(f"/recommend?user={user}")["model"] for user in users}
  assert all(opened.ask("/recommend", {"user": user})[1]["model"] == chosen[user] for user in users[:10])
  assert chosen == {user: "b" if live.bucket(user) < 0.3 else "a" for user in users}
  assert opened.ask("/recommend", {"history": ["i1"]})[1]["model"] == "a"
  buckets = [live.bucket(str(number)) for number in range(4000)]
  for share in (0.1, 0.3, 0.9):
    assert sum(bucket < share for bucket in buckets) / 4000 == pytest.approx(share, abs=0.03)


def test_items_and_users_are_found_by_parts_of_their_names(opened):
  assert opened.get("/items?q=FILM") == [{"id": "i3", "title": "A film"}, {"id": "i4", "title": "Another <b>film</b>"}]
  assert opened.get("/users?q=u39") == [{"id": "u39", "title": "u39"}]
  assert len(opened.get("/items")) == 50


def test_a_token_is_needed_where_one_is_set(services):
  closed = services["closed"]
  for path in ("/recommend?user=u1", "/metrics", "/openapi.json", "/items", "/nothing"):
    assert closed.ask(path)[0] == closed.ask(path, token="wrong")[0] == 401
  assert closed.ask("/recommend?user=u1", token=TOKEN)[0] == 200
  assert closed.ask("/health")[0] == closed.ask("/")[0] == 200


def test_the_log_says_what_was_asked_but_not_by_whom_and_of_what(opened):
  opened.ask("/recommend", {"user": "u17", "history": ["i21", "i22"], "model": "b"})
  time.sleep(0.3)  # a request is logged after it is answered
  lines = [json.loads(line) for line in opened.log.read_text().splitlines()]
  last = [line for line in lines if line["event"] == "request"][-1]
  assert {"time", "path", "status", "ms", "model", "export", "source", "k", "user"} <= last.keys()
  assert last["model"] == "b" and last["status"] == 200 and last["user"] not in (None, "u17")
  for line in lines:
    assert not {"i21", "i22", "u17"} & {str(value) for value in line.values()} and "history" not in line


def test_metrics_count_requests(opened):
  def count(name, **labels):
    found = parser.text_string_to_metric_families(opened.get("/metrics"))
    return sum(sample.value for family in found for sample in family.samples
               if sample.name == name and labels.items() <= sample.labels.items())

  wanted = dict(path="/recommend", status="200")
  time.sleep(0.3)
  before = count("kd_jax_requests_total", **wanted)
  for _ in range(3):
    opened.get("/recommend?user=u1")
  time.sleep(0.3)
  assert count("kd_jax_requests_total", **wanted) == before + 3
  assert count("kd_jax_seconds_count", path="/recommend") >= 3 and count("kd_jax_export_info", model="b") == 1


def test_an_export_is_replaced_under_load_without_a_failed_request(services, place, tmp_path):
  """Each answer is the list of one export or the other, and the new one answers in the end."""
  closed, users = services["closed"], [f"u{number}" for number in range(8)]
  small.write_export(tmp_path / "new", seed=7)
  by_seal = {}
  for folder in (place / "swapped", tmp_path / "new"):
    library = serving.load(folder, "npz")
    by_seal[library.contents.sha256[:12]] = {user: library.recommend(user).items for user in users}
  new, replies, stopped = library.contents.sha256[:12], [], threading.Event()

  def load():
    while not stopped.is_set():
      for user in users:
        replies.append((user, *closed.ask(f"/recommend?user={user}", token=TOKEN)))

  with futures.ThreadPoolExecutor(4) as threads:
    running = [threads.submit(load) for _ in range(4)]
    time.sleep(0.5)
    (place / "swapped").rename(tmp_path / "old")
    shutil.copytree(tmp_path / "new", place / "swapped")
    end = time.monotonic() + 30
    while not any(reply[2].get("export") == new for reply in replies[-8:]) and time.monotonic() < end:
      time.sleep(0.1)
    time.sleep(0.3)
    stopped.set()
    for one in running:
      one.result()
  assert {status for _, status, _ in replies} == {200}
  served = [reply["export"] for _, _, reply in replies]
  assert set(served) == set(by_seal) and served[-1] == new
  for user, _, reply in replies:
    assert [item["id"] for item in reply["items"]] == by_seal[reply["export"]][user]
  library = serving.load(place / "swapped", "npz")
  path = place / "swapped" / "weights" / "item.npy"
  path.write_bytes(path.read_bytes()[:-1])
  (place / "swapped" / "manifest.sha256").write_text("0  manifest.json\n")
  end = time.monotonic() + 30
  while "refused" not in closed.log.read_text() and time.monotonic() < end:
    time.sleep(0.1)
  refused, = (line for line in map(json.loads, closed.log.read_text().splitlines()) if line["event"] == "refused")
  assert "swapped" in refused["reason"]
  assert closed.ask("/recommend?user=u1", token=TOKEN)[1]["export"] == library.contents.sha256[:12]


def test_who_waits_together_is_answered_together():
  """By one call; too many are refused; an error of one call is told to its clients, and the next call works."""
  sizes, running = [], threading.Event()

  class Slow:
    def answer(self, many):
      if "bad" in many:
        raise InputError("bad")
      running.wait(5)
      return [f"answer to {request}" for request in many]

  async def scenario():
    batches = Batches(4, 6, sizes.append)
    worker = asyncio.create_task(batches.run())
    one = Slow()
    first = asyncio.create_task(batches.answer(one, 0))
    await asyncio.sleep(0.05)
    waiting = [asyncio.create_task(batches.answer(one, number)) for number in range(1, 7)]
    await asyncio.sleep(0.05)
    with pytest.raises(FullError):
      await batches.answer(one, 7)
    waiting[5].cancel()
    running.set()
    answers = await asyncio.gather(first, *waiting[:5])
    assert answers == [f"answer to {number}" for number in range(6)]
    with pytest.raises(InputError):
      await batches.answer(one, "bad")
    assert await batches.answer(one, 8) == "answer to 8"
    worker.cancel()

  asyncio.run(scenario())
  assert sizes == [1, 4, 1, 1, 1]


def test_a_service_that_others_can_reach_needs_a_token(place):
  for host in ("0.0.0.0", "192.0.2.1", "::", "example.org"):
    with pytest.raises(InputError, match="a `token` is needed"):
      service.run({"a": str(place / "a")}, host=host)
  with socket.create_server(("127.0.0.1", 0)) as taken:
    with pytest.raises(InputError, match="cannot listen on 127"):
      service.run({"a": str(place / "a")}, port=taken.getsockname()[1])


def test_an_export_that_is_refused_ends_the_start(place, tmp_path):
  shutil.copytree(place / "a", tmp_path / "bad")
  (tmp_path / "bad" / "users.json").write_text("[]")
  with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
  with pytest.raises(InputError, match=r"users\.json is"):
    service.run({"a": str(tmp_path / "bad")}, port=port)


@pytest.mark.slow
def test_no_request_that_the_interface_allows_or_forbids_is_an_error_of_the_server(opened, place):
  """Schemathesis: at least 500 cases from the service's own description."""
  pytest.importorskip("schemathesis", reason="pip install schemathesis to send nonsense to the service")
  before = len(opened.log.read_text().splitlines())
  done = subprocess.run(
      [pathlib.Path(sys.executable).parent / "schemathesis", "run", f"http://127.0.0.1:{opened.port}/openapi.json",
       "--max-examples=100", "--phases=fuzzing", "--checks=not_a_server_error", "--request-timeout=20", "--no-color",
       "--seed=0", "--suppress-health-check=all"],
      capture_output=True, text=True, cwd=place, env=os.environ | {"HYPOTHESIS_STORAGE_DIRECTORY": str(place / "h")})
  assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
  lines = [json.loads(line) for line in opened.log.read_text().splitlines()[before:]]
  sent = [line["status"] for line in lines if line["event"] == "request"]
  assert len(sent) >= 500 and max(sent) < 500 and {200, 422} <= set(sent)
