"""MovieLens 25M."""

from __future__ import annotations

from kd_jax.data import _grouplens
from kd_jax.data.recipe import Recipe


def movielens_25m(min_rating: float | None = 4, min_user=1, min_item=1, split="random", ratios=(0.8, 0.1, 0.1),
                  split_seed=0) -> Recipe:
  """MovieLens 25M: 25,000,095 film ratings of 0.5 to 5 by 162,541 users, 1995-2019, with time stamps.

  Origin: ratings.csv in GroupLens' ml-25m.zip, from a local copy (ml-25m.zip) or by download. Licence: research use,
  no redistribution, no commercial use, cite Harper and Konstan 2015. sha256 of the archive 8b21cfb7...
  Filter: ratings of at least `min_rating` (None keeps all) count as interactions; k-core `min_user`,
  `min_item`. Split: random (the default), temporal, loo, loo_last and cold_items; rows are sorted first, see
  `order.unordered`, so position is refused. Counts of the prepared data are not known: no copy was at hand.
  """
  return _grouplens.ratings("ml-25m", min_rating, min_user, min_item, split, ratios, split_seed)
