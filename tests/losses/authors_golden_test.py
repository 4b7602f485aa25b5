"""Losses and gradients of the authors' public PyTorch code on fixed random inputs, run once in float64.

`authors.npz` holds numbers only: the tables of a student [12, 5] [200, 5] and of a teacher [12, 11] [200, 11], whose
inner products are the scores; and per case the call, the users of a batch, the fields of its sampler, and what the
authors' code made of them: the loss, summed over the batch, and its gradients to the student's tables.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import quickly

from kd_jax import registry
from kd_jax.base import Outputs

STORED = dict(np.load(pathlib.Path(__file__).parents[1] / "golden/authors.npz"))
CASES = sorted({name.split("/")[0] for name in STORED if "/" in name})
FACTOR = {"11": 12}  # CD is a mean over 12 items here, a sum there
PADDING = "the authors' data have an item 0 for padding, which counts as an item: num_items = I + 1"
FROM_ZERO = "the discrepancy e_r - r has r from 0 in the code of RCE-KD and UnKD"
DIFFERS = {"13": FROM_ZERO, "22": PADDING, "24": PADDING, "26": PADDING}
WEIGHTS = {"cd": 1e-6, "rd": 1e-6, "unkd": 1e-6}  # relative: their code casts weights to float32, or adds 1e-10


def of(case, name):
  return STORED[f"{case}/{name}"]


def call_of(case):
  return registry.parse("losses", str(of(case, "kd")), "kd")


def ours(case, float_type):
  """(loss summed over rows, gradient to the table of users, of items)."""
  kd, users = registry.build("losses", call_of(case)), of(case, "users")

  def array(x):
    return jnp.asarray(x, {np.dtype(np.float64): float_type, np.dtype(np.int64): jnp.int32}.get(x.dtype, x.dtype))

  fields = {name.split("field_")[1]: array(x[users]) for name, x in STORED.items() if name.startswith(f"{case}/field_")}
  fields |= {"epoch": of(case, "epoch")}
  if "observed" in fields:  # HetComp: there are no lists of other stages, and no ties
    fields |= {"counted": jnp.zeros((len(users), 0), bool), "priority": jnp.zeros(fields["observed"].shape, jnp.int32)}

  def scores(of_users, of_items):
    return jnp.einsum("bd,bcd->bc", of_users[users], of_items[fields["items"]])

  teacher = STORED.get(f"{case}/teacher_scores")
  if teacher is None:
    teacher = scores(STORED["teacher_user"], STORED["teacher_item"])

  def loss(*tables):
    return FACTOR.get(case, 1) * kd.loss(Outputs(scores(*tables)), Outputs(array(teacher)), fields).sum()

  tables = [array(STORED[name]) for name in ("student_user", "student_item")]
  value, gradients = quickly(jax.value_and_grad(loss, (0, 1)))(*tables)
  return (value, *gradients)


def apart(found, expected):
  """The largest difference, relative to the largest expected value."""
  pairs = zip(found, expected, strict=True)
  return max(np.abs(np.asarray(x, np.float64) - y).max() / np.abs(y).max() for x, y in pairs)


def theirs(case):
  return of(case, "loss"), of(case, "grad_user"), of(case, "grad_item")


def test_there_are_cases_of_eight_methods():
  assert CASES == [f"{n:02d}" for n in range(32)]
  assert {call_of(case).name for case in CASES} == {"listnet", "kl", "rrd", "rcekd", "cd", "rd", "unkd", "hetcomp"}


@pytest.mark.parametrize("case", sorted(set(CASES) - set(DIFFERS)))
def test_loss_and_gradients_are_the_authors(case):
  with jax.enable_x64(True):
    found = ours(case, jnp.float64)
  assert found[0].dtype == np.float64 and apart(found, theirs(case)) < WEIGHTS.get(call_of(case).name, 1e-13)
  assert apart(ours(case, jnp.float32), theirs(case)) < 1e-5


def rd_by_hand(case, discrepancy):
  """The loss of RD in loops; `discrepancy(share, r)` is e_r - r for the r-th item, from 1."""
  scores = STORED["student_user"] @ STORED["student_item"].T
  renormalize, total = dict(call_of(case).arguments).get("renormalize", True), 0.0
  for user in of(case, "users"):
    items = of(case, "field_items")[user]
    listed, others = scores[user][items[:10]], scores[user][items[10:]]
    weight = np.exp(-np.arange(1.0, 11)) / np.exp(-np.arange(1.0, 11)).sum()
    for r, score in enumerate(listed, start=1):
      weight[r - 1] *= np.tanh(max(0.1 * discrepancy((others > score).mean(), r), 0))
    total += sum(weight * np.log1p(np.exp(-listed))) / (weight.sum() if renormalize else 1)
  return total


@pytest.mark.parametrize("case", sorted(DIFFERS))
def test_where_the_authors_code_differs_it_is_as_documented(case):
  def own(share, r):
    return np.floor(199 * share) + 1 - r

  departing = {FROM_ZERO: lambda share, r: own(share, r) + 1,
               PADDING: lambda share, r: np.floor(200 * share) + 1 - r}[DIFFERS[case]]
  assert rd_by_hand(case, departing) == pytest.approx(float(of(case, "loss")), rel=1e-6)
  with jax.enable_x64(True):
    found = float(ours(case, jnp.float64)[0])
  assert found == pytest.approx(rd_by_hand(case, own), rel=1e-6)
  difference = {"13": 5.255e-3, "22": -3.095e-4, "24": 5.255e-3, "26": -3.095e-4}[case]
  assert found / of(case, "loss") - 1 == pytest.approx(difference, rel=1e-3)
