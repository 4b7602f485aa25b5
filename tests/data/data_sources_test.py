"""Finding and downloading: verified, cached, and quick to give up."""

import contextlib
import hashlib
import http.server
import io
import os
import pathlib
import socket
import threading
import time
import zipfile

import pytest

from kd_jax import data
from kd_jax.base import InputError
from kd_jax.data import movielens, sources
from kd_jax.data.recipe import Source

CONTENT = b"1\t2\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def source(*fetch, **change):
  return Source("file.tsv", SHA256, (("set/file.tsv", SHA256),), fetch)._replace(**change)


@contextlib.contextmanager
def server(content, delay=0.0):
  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      time.sleep(delay)
      self.send_response(200 if content is not None else 404)
      self.end_headers()
      self.wfile.write(content or b"")

    def log_message(self, *arguments):
      del arguments

  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}/file"
    running.shutdown()


@contextlib.contextmanager
def silent_server():
  """Accepts connections and never answers."""
  with socket.create_server(("127.0.0.1", 0)) as listening:
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def offline(monkeypatch, tmp_path):
  """No local copy and no way out; returns a function that points all addresses at `url`."""
  monkeypatch.delenv("KD_JAX_DATA", raising=False)
  for name in [n for n in os.environ if n.startswith("PIP_") or n.lower().endswith("_proxy")]:
    monkeypatch.delenv(name)
  monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
  monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")

  def point(url):
    monkeypatch.setattr(movielens, "_ZIP", f"{url}/ml-100k.zip")
    monkeypatch.setenv("PIP_INDEX_URL", f"{url}/simple")
    return tmp_path / "cache"

  return point


def load_fails(cache):
  start = time.monotonic()
  with pytest.raises(InputError) as error:
    data.load("movielens", cache_dir=cache)
  text = str(error.value)
  assert "no copy of u.data" in text and "pip download recbole==1.2.1" in text and "\n" not in text
  assert "Put it at <data_dir>/ml-100k/u.data" in text
  return time.monotonic() - start


def test_no_network_refused(offline, capsys):
  assert load_fails(offline("http://127.0.0.1:9")) < 10
  assert "cite F. M. Harper" in capsys.readouterr().err


def test_no_network_hanging(offline):
  with silent_server() as url:
    assert load_fails(offline(url)) < 10


def test_a_name_service_that_hangs(offline, monkeypatch):
  monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(30))
  monkeypatch.setattr(sources, "CONNECT", 0.5)
  assert load_fails(offline("http://localhost:9")) < 10


def test_pip_that_hangs_is_stopped(monkeypatch, tmp_path):
  pip = tmp_path / "python"
  pip.write_text("#!/bin/sh\necho Collecting recbole\nexec sleep 60\n")
  pip.chmod(0o700)
  monkeypatch.setattr(sources.sys, "executable", str(pip))
  monkeypatch.setattr(sources, "PIP_START", 0.5)
  start = time.monotonic()
  with pytest.raises(OSError, match="stopped after Collecting recbole"):
    sources.wheel("recbole==1.2.1")
  assert time.monotonic() - start < 5


def test_pip_that_downloads_slowly_is_given_time(monkeypatch, tmp_path):
  pip = tmp_path / "python"
  pip.write_text("#!/bin/sh\necho Downloading x.whl\nsleep 1.5\n"
                 'for d; do [ -d "$d" ] && echo ok > "$d/x.whl"; done\nexit 0\n')
  pip.chmod(0o700)
  monkeypatch.setattr(sources.sys, "executable", str(pip))
  monkeypatch.setattr(sources, "PIP_START", 0.5)
  assert sources.wheel("x") == b"ok\n"


def test_the_wheel_gives_the_original_bytes(monkeypatch):
  packed = io.BytesIO()
  with zipfile.ZipFile(packed, "w") as archive:
    archive.writestr("recbole/dataset_example/ml-100k/ml-100k.inter", b"user_id:token\n196\t242\t3\t881\n")
  monkeypatch.setattr(sources, "wheel", lambda requirement: packed.getvalue())
  assert movielens._from_wheel() == b"196\t242\t3\t881\n"
  with pytest.raises(OSError, match="not the expected archive"):
    sources.member(packed.getvalue(), "other")
  with pytest.raises(OSError, match="not the expected archive"):
    sources.member(b"<html>", "other")


def test_a_download_is_verified_and_kept(tmp_path):
  with server(CONTENT) as url:
    path = sources.find(source(lambda: sources.get(url)), None, tmp_path)
  assert path.read_bytes() == CONTENT
  assert sources.find(source(), None, tmp_path) == path  # no address any more
  path.write_bytes(b"damaged")
  with server(CONTENT) as url:
    assert sources.find(source(lambda: sources.get(url)), None, tmp_path).read_bytes() == CONTENT


def test_a_download_that_cannot_be_kept_leaves_nothing(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "replace", full)
  with server(CONTENT) as url, pytest.raises(InputError, match=r"`cache_dir`: cannot write .*: No space left"):
    sources.find(source(lambda: sources.get(url)), None, tmp_path)
  assert list((tmp_path / "downloads").iterdir()) == []


@pytest.mark.parametrize("content", [b"<html>404</html>", CONTENT[:-1], b"", CONTENT + b"\n"])
def test_a_wrong_download_or_copy_is_refused(tmp_path, content):
  wrong = r"downloaded\): sha256 .* is not the expected"
  with server(content) as url, pytest.raises(InputError, match=wrong):
    sources.find(source(lambda: sources.get(url)), None, tmp_path)
  assert not (tmp_path / "downloads").exists()
  (tmp_path / "set").mkdir()
  (tmp_path / "set/file.tsv").write_bytes(content)
  with pytest.raises(InputError, match=r"file\.tsv: sha256 .* is not the expected"):
    sources.find(source(), tmp_path, tmp_path / "cache")


def test_the_next_address_is_tried(tmp_path):
  with server(None) as missing, server(CONTENT) as url:
    path = sources.find(source(lambda: sources.get(missing), lambda: sources.get(url)), None, tmp_path)
  assert path.read_bytes() == CONTENT


def test_only_the_content_counts_where_a_canonical_form_is_given(tmp_path):
  (tmp_path / "set").mkdir()
  (tmp_path / "set/file.tsv").write_bytes(b"1 \t 2\n")
  found = sources.find(source(canonical=lambda b: b.replace(b" ", b"")), tmp_path, tmp_path / "cache")
  assert found == tmp_path / "set/file.tsv"


def test_a_wrong_data_folder_is_named(tmp_path):
  with pytest.raises(InputError, match=r"`data_dir=.*nowhere`: no such folder"):
    data.load("movielens", data_dir=tmp_path / "nowhere", cache_dir=tmp_path)
  (tmp_path / "u.data").write_bytes(b"196\t242\t3\t881250949\n")
  with pytest.raises(InputError, match=r"u\.data: sha256"):
    data.load("movielens", data_dir=tmp_path, cache_dir=tmp_path / "cache")


def test_every_pinned_source_says_where_it_is():
  from kd_jax import registry

  for name in registry.names("data"):
    if name in ("interactions", "labelled"):  # the user's own files
      continue
    for item in registry.build("data", registry.Call(name)).sources:
      assert len(item.sha256) == 64 and item.advice, name
      assert all(not pathlib.PurePosixPath(place).is_absolute() for place, _ in item.places)
