"""Amazon Toys and Games as sequences."""

from __future__ import annotations

from kd_jax.data import _s3rec
from kd_jax.data.recipe import Recipe

_SHA256 = "176c680c688d497598c4a89a03b402c0fe78d795e5db335c2e78dd5f2d778a3f"


def toys(split="loo_last", ratios=(0.8, 0.1, 0.1), split_seed=0) -> Recipe:
  """Amazon Toys and Games: 167,597 reviews by 19,412 users of 11,924 products, in time order within each user.

  Origin: Toys_and_Games.txt of github RUCAIBox/CIKM2020-S3Rec (2a81540), data/, from a local copy (s3rec-toys/) or
  by download. Licence: none stated; research use, cite McAuley et al., SIGIR 2015. sha256 176c680c... Every
  user and product has at least five reviews; no filter is applied. The file has no times, only each user's order.
  Split: loo_last (the default, and the split of S3-Rec, Zhou et al., CIKM 2020) holds out each user's last review
  for test and the one before it for validation: 128,773/19,412/19,412. The others are random, position and loo.
  """
  return _s3rec.sequences("toys", "Toys_and_Games.txt", _SHA256, split, ratios, split_seed)
