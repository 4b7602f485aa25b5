"""Item-side ranking regularised distillation (IR-RRD)."""

from __future__ import annotations

from kd_jax.base import KD
from kd_jax.losses.rrd import rrd


def ir_rrd(k: int = 20, uninteresting: int = 20, temperature: float = 10.0, depth: int = 500) -> KD:
  """Item-side ranking regularised distillation (IR-RRD): Kang, Hwang, Kweon, Yu, Information Sciences 2021,
  https://doi.org/10.1016/j.ins.2021.08.060.

  `rrd` with the sides swapped: the list-wise likelihood of k users whom the teacher ranks high for an item,
  in its order, each ahead of users whom it ranks low. The paper's loss is the sum of both sides; with the
  weights of the authors' code, --kd="0.001*rrd() + 0.0005*ir_rrd()". Rows are the distinct items of a batch:
  what `rrd` sampled for its users, as in the authors' code (most of all items, if there are few), and its
  positives, which that code leaves out.

  Args:
    k: interested users, drawn without replacement from the teacher's top `depth` of an item's unseen users
      with p ~ exp(-rank / temperature), then sorted back by the teacher's rank.
    uninteresting: users drawn uniformly from those who neither saw the item nor are in its top `depth`.
    temperature: how fast the probability of being drawn falls with the rank.
    depth: how much of the teacher's list is used.

  Departs from the paper as `rrd` does.
  """
  return rrd(k, uninteresting, temperature, depth)._replace(rows="items", sampled_items=True)
