"""Loads an export and ends: what a program does to its process, it does here.

  python -m kd_jax.serving.trial DIRECTORY FORMAT INDEX

The status is 0 if the export is loaded and answers as the training code does, and 2, with one line, if it is refused.
"""

import sys

from kd_jax.base import InputError
from kd_jax.serving import loading, new_items


def main(directory: str, format: str, index: str) -> int:
  """Returns the exit status."""
  try:
    new_items.run_once(loading.load(directory, format, trial=False, index=index == "1"))
  except InputError as error:
    print(error, file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(*sys.argv[1:]))
