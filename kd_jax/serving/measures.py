"""What a service counts, in the format of Prometheus, and its log: one line of JSON for each request."""

from __future__ import annotations

import hashlib
import sys
import time
from typing import Any

import prometheus_client as prometheus

from kd_jax.storage import sealed

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)
_TOGETHER = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Measures:
  """The counters of one service."""

  def __init__(self):
    self._registry = prometheus.CollectorRegistry()

    def made(kind, name, text, *labels, **options):
      return kind(f"kd_jax_{name}", text, labels, registry=self._registry, **options)

    self.requests = made(prometheus.Counter, "requests", "Requests", "path", "status")
    self.answers = made(prometheus.Counter, "answers", "Answers", "model", "source")
    self.seconds = made(prometheus.Histogram, "seconds", "Seconds until a request is answered", "path",
                        buckets=_SECONDS)
    self.together = made(prometheus.Histogram, "together", "Requests that are answered by one call", buckets=_TOGETHER)
    self.waiting = made(prometheus.Gauge, "waiting", "Requests that wait")
    self.replaced = made(prometheus.Counter, "replaced", "Exports that were replaced", "model")
    self.refused = made(prometheus.Counter, "refused", "New exports that were refused", "model")
    self.export = made(prometheus.Info, "export", "The exports", "model")

  def text(self) -> bytes:
    """All of them, as /metrics returns them."""
    return prometheus.generate_latest(self._registry)


def log(**entry: Any) -> None:
  """Writes one line of JSON to standard output, with the time."""
  sys.stdout.write(sealed.to_json({"time": round(time.time(), 3), **entry}, indent=None).decode())
  sys.stdout.flush()


def pseudonym(user: Any) -> str | None:
  """What the log has in place of a user's id: a hash, by which requests of one user can be counted."""
  if user is None:
    return None
  return hashlib.blake2b(str(user).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
