"""Processes find each other at a port, or all hear why not. Here they are threads; processes_test.py has processes."""

import contextlib
import re
import socket
import threading
import time
from concurrent import futures

import pytest

from kd_jax.base import InputError
from kd_jax.devices import rendezvous

SEED = {"seed": "`seed=0`"}


@pytest.fixture
def port():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


@pytest.fixture
def come(port):
  """come((number, facts), ..., count=3): what each call of `connect` returned or raised, and after how many seconds."""
  with futures.ThreadPoolExecutor(8) as pool, contextlib.ExitStack() as opened:
    def one(number, facts, count, seconds):
      start = time.monotonic()
      try:
        found = rendezvous.connect(f"localhost:{port}", facts, count, number, seconds)
        for connection in found:
          opened.enter_context(connection)
      except InputError as error:
        found = str(error)
      return found, time.monotonic() - start

    def all_of_them(*who, count=3, seconds=20):
      return [call.result() for call in [pool.submit(one, *each, count, seconds) for each in who]]

    yield all_of_them


def talk(first, others):
  """Whether each of the others is connected with the first process by one connection."""
  for number, (connection,) in enumerate(others):
    connection.sendall(b"%d" % number)
  return sorted(connection.recv(1) for connection in first) == [b"%d" % number for number in range(len(others))]


def test_all_are_connected_with_the_first_and_nobody_listens(come, port):
  (first, _), *others = come((0, SEED), (1, SEED), (2, SEED))
  assert len(first) == 2 and talk(first, [found for found, _ in others])
  with pytest.raises(ConnectionRefusedError):
    socket.create_connection(("localhost", port))
  with rendezvous._listen("", port):  # as JAX does next, although the connections go on
    pass


def test_the_first_may_come_last(come):
  with futures.ThreadPoolExecutor(1) as pool:
    others = pool.submit(come, (1, SEED), (2, SEED))
    time.sleep(0.5)
    (first, _), = come((0, SEED))
    assert talk(first, [one for one, _ in others.result()])


def until_somebody_listens(port):
  while True:
    with contextlib.suppress(ConnectionRefusedError):
      return socket.create_connection(("localhost", port))


def test_strangers_are_sent_away(come, port, monkeypatch):
  """One is silent, one is a browser, three say what no process says; a process ends before the others are there."""
  monkeypatch.setattr(rendezvous, "_MOMENT", 0.1)
  mark = rendezvous._MARK
  said = [b"", b"GET / HTTP/1.1\r\n\r\n", mark + b"\0\0\0\2[]", mark + b"\0\0\0\2{}", mark + b"\xff\xff\xff\xff0"]
  with contextlib.ExitStack() as opened, futures.ThreadPoolExecutor(1) as pool:
    first = pool.submit(come, (0, SEED))
    strangers = [opened.enter_context(until_somebody_listens(port)) for _ in said]
    for stranger, words in zip(strangers, said, strict=True):
      stranger.sendall(words)
    with until_somebody_listens(port) as gone:
      rendezvous._send(gone, {"number": 1, "facts": SEED, "at": "here"})
      assert rendezvous._read(gone) == {"waits": True}
    others = come((1, SEED), (2, SEED))
    assert talk(first.result()[0][0], [one for one, _ in others])
    for stranger in strangers:
      with contextlib.suppress(ConnectionResetError):
        assert stranger.recv(1) == b""


def test_all_hear_who_is_missing(come, port):
  for said, seconds in come((0, SEED), (2, SEED), (3, SEED), count=6, seconds=1):
    assert said == (f"`coordinator=localhost:{port}`: processes 1 and 4 and 5 of 6 did not come within "
                    "`connect_seconds=1`")
    assert 0.9 < seconds < 5


def test_the_others_end_without_the_first(come, port):
  (said, seconds), = come((1, SEED), seconds=1)
  assert said == (f"`coordinator=localhost:{port}`: did not find process 0 within `connect_seconds=1`: "
                  "Connection refused")
  assert 0.9 < seconds < 5


@contextlib.contextmanager
def serving(port, answer, keep=True):
  """Something that answers whoever connects with these bytes, and then keeps the connection, or ends it."""
  def serve():
    with contextlib.suppress(OSError):  # it is closed
      while True:
        connection = server.accept()[0]
        connection.sendall(answer)
        if keep:
          kept.append(connection)
        else:
          connection.close()

  kept = []
  with socket.create_server(("", port)) as server:
    threading.Thread(target=serve, daemon=True).start()
    yield
    server.shutdown(socket.SHUT_RDWR)
  for connection in kept:
    connection.close()


WAITS = rendezvous._MARK + b'\0\0\0\x0e{"waits":true}'


def test_the_others_end_when_the_first_ends(come, port):
  with serving(port, WAITS, keep=False):
    (said, seconds), = come((1, SEED))
  assert said == f"`coordinator=localhost:{port}`: process 0 has ended while it waited for others" and seconds < 5


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", rendezvous._MARK + b"\0\0\0\2{}"])
def test_a_port_that_is_taken_ends_all(answer, come, port):
  """By a program that is silent, or by one that answers."""
  with serving(port, answer):
    (first, seconds), (second, later) = come((0, SEED), (1, SEED), seconds=1)
  assert first == (f"`coordinator=localhost:{port}`: another program, or another run, uses port {port} of this host; "
                   "choose another port") and seconds < 0.9
  if answer:
    assert "what answers there is not the first process" in second and later < 0.9
  else:
    assert second.endswith("did not find process 0 within `connect_seconds=1`: it does not answer") and later < 5


def test_one_that_is_sent_away_comes_again(come, port):
  """As behind a forwarded port, at which somebody listens before the first process does."""
  with serving(port, b"", keep=False):
    (said, seconds), = come((1, SEED), seconds=1)
  assert re.search("did not find process 0 within `connect_seconds=1`: (the connection ended|Connection reset)", said)
  assert seconds > 0.9


def test_all_hear_of_a_number_that_is_given_twice(come):
  for said, seconds in come((0, SEED), (1, SEED), (1, SEED)):
    assert said.startswith("`process_id=1` was given to process ") and seconds < 5


def test_all_hear_what_differs_also_one_that_comes_next(come):
  with futures.ThreadPoolExecutor(1) as pool:
    heard = pool.submit(come, (0, SEED), (1, {"seed": "`seed=1`"}))
    time.sleep(0.5)
    heard = [*come((2, SEED)), *heard.result()]
  for said, seconds in heard:
    assert said.startswith("the processes do not belong together: `seed=0` in process 0") and seconds < 5
    assert said.endswith(", `seed=1` in process 1")


def test_a_difference_is_told_with_both_values():
  assert rendezvous.difference({0: SEED, 1: SEED | {}}) == ""
  facts = {number: {"a": "a", "b": f"b{number % 2}", "c": "c" if number else "C"} for number in range(6)}
  assert rendezvous.difference(facts) == (
      "the processes do not belong together: b0 in processes 0 and 2 and 4, b1 in processes 1 and 3 and 5; "
      "C in process 0, c in process 1 and 4 others")
  many = rendezvous.difference({number: {str(name): f"{name}={number}" for name in range(9)} for number in range(2)})
  assert many.endswith("; 3=0 in process 0, 3=1 in process 1; and 5 more")
