"""Writes docs/methods.md from the docstrings of the methods and the costs in docs/methods_cost.json.

  python scripts/methods_page.py
"""

from kd_jax import cli

FLAGS = cli.define()


def main(values):
  del values
  from kd_jax.tables import methods_page

  page = methods_page.FOLDER / "methods.md"
  page.write_text(methods_page.write())
  print(page)


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
