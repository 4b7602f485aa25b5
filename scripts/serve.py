"""Serves recommendations over HTTP from an export, with a page to look at them.

  python scripts/serve.py --export=exported/student --port=8080
"""

from kd_jax import cli
from kd_jax.cli import flag

FLAGS = cli.define(
    export=flag("string", None, "Directory of an export. When another one is written there, that one is served."),
    export_b=flag("string", None, "A second export, for an A/B test: each user always gets the same one of the two."),
    share_b=flag("float", 0.5, "The share of users that get the second export.", least=0, most=1),
    teacher=flag("string", None, "An export of the teacher, for the page: both lists are shown side by side."),
    format=flag("string", "", "Format of the exports; default: the first that can be run here.",
                choices=("", "stablehlo", "onnx", "npz")),
    use_index=flag("boolean", False, "Search the approximate index of the exports."),
    host=flag("string", "127.0.0.1", "Address to listen on. Other than loopback addresses need a token."),
    port=flag("integer", 8080, "Port to listen on.", above=0, most=65535),
    token=flag("string", "", "Requests need the header `Authorization: Bearer TOKEN`. A flagfile hides it from ps."),
    most_k=flag("integer", 1000, "The longest list.", above=0, most=10**6),
    most_bytes=flag("integer", 10**6, "The largest body of a request, in bytes.", above=0, most=10**9),
    most_waiting=flag("integer", 1000, "Requests that may wait; more get status 429.", above=0, most=10**6),
    most_together=flag("integer", 256, "Requests that one call of the network answers.", above=0, most=256),
    reload_seconds=flag("float", 2.0, "Seconds between looks for a new export; 0: never.", least=0, most=10**6))
_LIMITS = ("token", "most_k", "most_bytes", "most_waiting", "most_together", "reload_seconds")


def main(values):
  cli.require(values, "export")
  from kd_jax.serving import service

  places = {"a": values.export, "b": values.export_b, "teacher": values.teacher}
  service.run({name: place for name, place in places.items() if place}, host=values.host, port=values.port,
              share=values.share_b, format=values.format or None, index=values.use_index,
              limits={name: getattr(values, name) for name in _LIMITS})


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
