"""Amazon Sports and Outdoors as sequences."""

from __future__ import annotations

from kd_jax.data import _s3rec
from kd_jax.data.recipe import Recipe

_SHA256 = "2a095e0648872beb9982408958290f5d655db5be2911c3756b5446de9f0b8de2"


def sports(split="loo_last", ratios=(0.8, 0.1, 0.1), split_seed=0) -> Recipe:
  """Amazon Sports and Outdoors: 296,337 reviews by 35,598 users of 18,357 products, in time order within each user.

  Origin: Sports_and_Outdoors.txt of github RUCAIBox/CIKM2020-S3Rec (2a81540), data/, from a local copy (s3rec-sports/)
  or by download. Licence: none stated; research use, cite McAuley et al., SIGIR 2015. sha256 2a095e06... Every
  user and product has at least five reviews; no filter is applied. The file has no times, only each user's order.
  Split: loo_last (the default, and the split of S3-Rec, Zhou et al., CIKM 2020) holds out each user's last review
  for test and the one before it for validation: 225,141/35,598/35,598. The others are random, position and loo.
  """
  return _s3rec.sequences("sports", "Sports_and_Outdoors.txt", _SHA256, split, ratios, split_seed)
