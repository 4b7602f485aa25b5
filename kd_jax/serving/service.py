"""Starts an HTTP service for exports."""

from __future__ import annotations

import importlib.util
import ipaddress
import socket
from collections.abc import Mapping
from typing import Any

from kd_jax.base import InputError

_NEEDS = ("fastapi", "uvicorn", "prometheus_client")
_SECONDS_TO_END = 10  # for requests that run when a signal comes


def run(places: Mapping[str, str], *, host: str = "127.0.0.1", port: int = 8080, share: float = 0.5,
        format: str | None = None, index: bool = False, limits: Mapping[str, Any] | None = None) -> None:
  """Loads the exports {"a", "b" or "teacher": directory} and answers requests until a signal ends it.

  `share` of the users get "b". `limits` are fields of `http.Settings`. Raises InputError: the extra is not installed;
  an export is refused; or others can reach the service, and there is no token.
  """
  if missing := [name for name in _NEEDS if importlib.util.find_spec(name) is None]:
    raise InputError(f"`export`: a service needs {missing[0]}: pip install 'kd_jax[serve]'")
  import uvicorn

  from kd_jax.serving import http, live

  settings = http.Settings(**(limits or {}))
  if not settings.token and not _is_loopback(host):
    raise InputError(f"`host={host}`: other machines can reach it, so a `token` is needed")
  with _listening(host, port) as listening:  # before the exports are loaded, which takes longer
    loaded = live.Live(dict(places), share, format, index, settings.most_together)
    config = uvicorn.Config(http.app(loaded, settings), access_log=False, log_level="warning",
                            timeout_graceful_shutdown=_SECONDS_TO_END)
    uvicorn.Server(config).run([listening])


def _listening(host, port) -> socket.socket:
  try:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=1024)
  except (OSError, UnicodeError) as error:
    raise InputError(f"`port={port}`: cannot listen on {host}: {error}") from None


def _is_loopback(host) -> bool:
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host == "localhost"
