"""Amazon Beauty as sequences."""

from __future__ import annotations

from kd_jax.data import _s3rec
from kd_jax.data.recipe import Recipe

_SHA256 = "226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8"


def beauty(split="loo_last", ratios=(0.8, 0.1, 0.1), split_seed=0) -> Recipe:
  """Amazon Beauty: 198,502 reviews by 22,363 users of 12,101 products, in time order within each user.

  Origin: Beauty.txt of github RUCAIBox/CIKM2020-S3Rec (2a81540), data/, from a local copy (s3rec-beauty/) or
  by download. Licence: none stated; research use, cite McAuley et al., SIGIR 2015. sha256 226cce9c... Every
  user and product has at least five reviews; no filter is applied. The file has no times, only each user's order.
  Split: loo_last (the default, and the split of S3-Rec, Zhou et al., CIKM 2020) holds out each user's last review
  for test and the one before it for validation: 153,776/22,363/22,363. The others are random, position and loo.
  """
  return _s3rec.sequences("beauty", "Beauty.txt", _SHA256, split, ratios, split_seed)
