"""Writes docs/data.md from the docstrings of the data sets and the counts in docs/data_counts.json.

  python scripts/data_page.py
  python scripts/data_page.py --measure
"""

from kd_jax import cli
from kd_jax.cli import flag

FLAGS = cli.define(
    {name: cli.FIT[name] for name in ("data_dir", "cache_dir")},
    measure=flag("boolean", False, "Load every data set whose source is at hand, and write the counts first."))


def main(values):
  from kd_jax.storage import sealed
  from kd_jax.tables import data_page

  if values.measure:
    sealed.write_json_atomic(data_page.COUNTS, data_page.measure(values.data_dir, values.cache_dir))
  page = data_page.FOLDER / "data.md"
  page.write_text(data_page.write())
  print(page)


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
