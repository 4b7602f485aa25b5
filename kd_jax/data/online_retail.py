"""Online Retail: purchases in a gift shop."""

from __future__ import annotations

import functools

from kd_jax.data.parsing import read_columns
from kd_jax.data.recipe import Recipe, Source

_SHA256 = "6da946db27feba646a4b5784c1cdd8a5eb7ca9497d66b650941fa23b10ed0b0e"
_TERMS = ("Online Retail, UCI Machine Learning Repository 352, CC BY 4.0: name D. Chen (2015), "
          "doi 10.24432/C5BW33.")
_ADVICE = (
    "It is derived from https://archive.ics.uci.edu/dataset/352/online+retail (rows with a CustomerID, not "
    "cancelled, quantity and price above 0; one row per customer and StockCode: user, StockCode, first time, "
    "number of invoices, quantity). A file of your own making is read by "
    "`data=\"interactions(path='...', user='user', item='StockCode', timestamp='ts')\"`.")


def online_retail(min_user=5, min_item=5, split="temporal", ratios=(0.8, 0.1, 0.1), split_seed=0) -> Recipe:
  """UCI Online Retail: purchases of a British gift shop, December 2010 to December 2011, with time stamps.

  Origin: UCI Machine Learning Repository 352, as interactions.csv.gz, one row per customer and product at
  the time of the first purchase; from a local copy (online-retail/). Licence: CC BY 4.0, D. Chen 2015,
  doi 10.24432/C5BW33. sha256 6da946db... 4,338 customers, 3,665 products, 266,792 pairs. Filter: k-core
  `min_user`, `min_item`; the default of 5 leaves 4,078, 3,149 and 265,075. Split: any rule of
  splits.py. temporal, the default, splits all customers at the same points in time; loo_last holds out
  the last two purchases of each customer.
  """
  source = Source("online-retail.csv.gz", _SHA256, (("online-retail/interactions.csv.gz", _SHA256),),
                  advice=_ADVICE)
  read = functools.partial(read_columns, delimiter=",", header=True,
                           columns=("users", "items", "timestamps", None, None))
  return Recipe(lambda paths: read(paths[0]), (source,), None, min_user, min_item, split, ratios, split_seed,
                terms=_TERMS)
