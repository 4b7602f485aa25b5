"""Item-side ranking regularised distillation (IR-RRD)."""

from __future__ import annotations

import dataclasses

from kd_jax.base import KD
from kd_jax.losses.rrd import rrd

SEARCH = "weight=log(1e-4, 1); k=10|20|40; uninteresting=20|40|100; temperature=log(1, 100)"


def ir_rrd(k: int = 20, uninteresting: int = 20, temperature: float = 10.0, depth: int = 500) -> KD:
  """Item-side ranking regularised distillation (IR-RRD): Kang, Hwang, Kweon, Yu, Information Sciences 2021,
  https://doi.org/10.1016/j.ins.2021.08.060.

  `rrd` with users and items swapped: the list-wise likelihood of k users whom the teacher ranks high for an item, in
  the teacher's order, each before the users whom the teacher ranks low. The paper's loss is the sum of both sides; with
  the weights of the authors' code, it is `kd="0.001*rrd() + 0.0005*ir_rrd()"`. Rows are distinct items of two kinds:
  items that `rrd` sampled for the users of the batch, as in the authors' code (most of all items, if there are few
  items), and positives of the batch, which that code leaves out.

  Args:
    k: number of interested users, sampled without replacement from the teacher's top `depth` of users who have not
      seen the item, with p ~ exp(-rank / temperature), then sorted by the teacher's rank.
    uninteresting: number of users sampled uniformly from the users who have not seen the item and are not in the
      teacher's top `depth`.
    temperature: how fast the sampling probability falls with the rank.
    depth: length of the teacher's list.

  Departs from the paper in the same way as `rrd`.
  """
  return dataclasses.replace(rrd(k, uninteresting, temperature, depth), rows="items", sampled_items=True)
