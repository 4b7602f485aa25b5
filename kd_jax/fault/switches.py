"""Switches a check of the package off, to see that cases then fail: a test of the tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kd_jax.data import store
from kd_jax.storage import run_directory, sealed


def _nothing(*arguments: Any, **named: Any) -> None:
  """In the place of a check."""


def _without_manifest():
  sealed._check = _nothing


def _without_seal():
  run_directory._verified = _unverified
  sealed._check = _nothing


def _unverified(root, name, sha256):
  return (root / name).read_bytes()


def _without_data():
  sealed._check = _nothing
  sealed.hash_file = _same
  store._hash = _same


def _same(*arguments: Any) -> str:
  return "0" * 64


# {name: function that switches the check off}
CHECKS: dict[str, Callable[[], None]] = {
    "manifest": _without_manifest, "seal": _without_seal, "data": _without_data}


def off(name: str) -> None:
  """Switches a check off in this process; "" leaves all on."""
  if name:
    CHECKS[name]()
