"""Values of the PyTorch code that kd_jax is compared with, for tests that run where torch is not installed.

`torch.npz` holds the inputs ("inputs/NAME") and what kd_jax.bench.against.torch returns for them ("CASE/NAME");
`torch.json` says which versions and which functions returned it. Each case below is one function of the inputs.
To write both files again, with torch installed: `cd tests && python -m golden.write_torch`.
"""

import json
import pathlib
import platform

import numpy as np
import torch

from kd_jax.base import Dataset, Interactions
from kd_jax.bench.against import torch as against

FOLDER = pathlib.Path(__file__).parent
USERS, ITEMS, DIM = 70, 90, 6
_SEED = 1
_SMALLEST_GAP = 1e-5  # between two scores of a user: ranks must not depend on the order of a float32 sum


def inputs():
  """{name: array}, all drawn from one seed."""
  rng = np.random.default_rng(_SEED)

  def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)

  items = np.argsort(rng.random((USERS, ITEMS)), axis=1)[:, :12].astype(np.int32)
  users = np.repeat(np.arange(USERS, dtype=np.int32)[:, None], 12, axis=1)
  order = rng.permutation(USERS * 9)
  return {
      "train_users": users[:, :9].flatten(), "train_items": items[:, :9].flatten(),
      "validation_users": users[:, 9:].flatten(), "validation_items": items[:, 9:].flatten(),
      "user": normal(USERS, DIM), "item": normal(ITEMS, DIM), "teacher_user": normal(USERS, DIM),
      "scale": normal(USERS + ITEMS, DIM),  # weights of a sum over nodes whose gradient is taken
      "bpr_users": rng.integers(USERS, size=32), "bpr_items": rng.integers(ITEMS, size=(32, 2)),
      "rrd_scores": normal(5, 12),
      "rcekd_scores": normal(5, 10), "rcekd_teacher": normal(5, 10),
      "rcekd_fresh": rng.random((5, 4)) < 0.5, "rcekd_shared": rng.random(5).astype(np.float32),
      "negatives_users": rng.integers(USERS, size=500), "negatives_uniform": rng.random(500),
      "epoch_order": order.reshape(7, 90), "epoch_negatives": rng.integers(ITEMS, size=(7, 90)),
  }


def dataset_of(given):
  """The data set of the inputs."""
  splits = (Interactions(given[f"{name}_users"], given[f"{name}_items"]) for name in ("train", "validation"))
  ids = np.arange(USERS).astype(str), np.arange(ITEMS).astype(str)
  return Dataset("in_memory()", USERS, ITEMS, *splits, None, *ids, hashes={}, report={})


def _tensors(given, *names):
  return [torch.from_numpy(given[name]) for name in names]


def _seen(log):
  return against.seen_of(*log[:2], USERS, ITEMS)


def _with_gradient(loss, value):
  """The losses of a leaf `value`, and the gradient of their sum."""
  losses = loss(value.requires_grad_())
  losses.sum().backward()
  return {"losses": losses, "gradient": value.grad}


def bpr(given, dataset):
  """bpr, and by autograd the gradient with respect to the rows of users, then items."""
  users, items = _tensors(given, "bpr_users", "bpr_items")
  nodes = torch.cat(_tensors(given, "user", "item"))
  return _with_gradient(lambda x: against.bpr(x, users, items[:, 0] + USERS, items[:, 1] + USERS), nodes)


def rrd(given, dataset):
  """Rrd.loss with k=4, and by autograd the gradient with respect to the scores."""
  seen = against.seen_of(np.array([0]), np.array([0]), 5, 30)
  method = against.Rrd(torch.arange(1, 11).expand(5, 10), seen, 4, 8, 10.0)
  return _with_gradient(method.loss, *_tensors(given, "rrd_scores"))


def rcekd(given, dataset):
  """Rcekd.loss (k=4, sampled=2, temperature=2), and by autograd the gradient with respect to the student's scores."""
  others = _tensors(given, "rcekd_teacher", "rcekd_fresh", "rcekd_shared")
  method = against.Rcekd(torch.zeros(5, 4), None, 6, 2, 2.0, 10.0, 3.0)
  return _with_gradient(lambda scores: method.loss(scores, *others), *_tensors(given, "rcekd_scores"))


def rrd_targets(given, dataset):
  """top_k of the teacher without seen items, and Rrd.targets with so many draws that every unseen item is drawn."""
  seen = _seen(dataset.train)
  lists = against.top_k(*_tensors(given, "teacher_user", "item"), 10, seen)
  unseen = ITEMS - 9 - 10  # all that a user has neither seen nor in the list
  return {"lists": lists, "items": against.Rrd(lists, seen, 10, unseen, 10.0).targets(None, None)[0]}


def rcekd_targets(given, dataset):
  """Rcekd.targets of all users (k=5, depth=9, sampled=9: the whole list is drawn, here sorted)."""
  user, item, teacher_user = _tensors(given, "user", "item", "teacher_user")
  teacher = teacher_user, item
  method = against.Rcekd(against.top_k(*teacher, 5), teacher, 9, 9, 1.0, 10.0, 3.0)
  items, scores, fresh, shared = method.targets(user, item)
  best, drawn, own = items.split((5, 9, 5), 1)
  known = torch.cat([scores[:, :5], scores[:, 14:]], 1)
  return {"best": best, "drawn": drawn.sort(1).values, "own": own, "scores": known, "fresh": fresh, "shared": shared}


def lightgcn(given, dataset):
  """lightgcn with 2 layers on adjacency; by autograd the gradient of sum(nodes * scale) with respect to the table."""
  table, (scale,) = torch.cat(_tensors(given, "user", "item")).requires_grad_(), _tensors(given, "scale")
  nodes = against.lightgcn(table, against.adjacency(dataset), 2)
  (nodes * scale).sum().backward()
  return {"nodes": nodes, "gradient": table.grad}


def ranks(given, dataset):
  """ranks of the validation items, by user and then item."""
  found = against.ranks(*_tensors(given, "user", "item"), _seen(dataset.validation), _seen(dataset.train))
  return {"ranks": found}


def negatives(given, dataset):
  """draw_unseen."""
  return {"items": against.draw_unseen(_seen(dataset.train), *_tensors(given, "negatives_users", "negatives_uniform"))}


def epoch(given, dataset):
  """Student: its table after 7 steps, an epoch in a fixed order, of bpr on lightgcn with 2 layers and its torch Adam.

  Learning rate 0.005 and weight decay 0.1, larger than the benchmark's, so that a small error in either shows.
  """
  student = against.Student(dataset, f"lightgcn(dim={DIM}, layers=2)")
  with torch.no_grad():
    student.table.copy_(torch.cat(_tensors(given, "user", "item")))
  student.optimizer.param_groups[0].update(lr=0.005, weight_decay=0.1)
  log = given["train_users"].astype(np.int64), given["train_items"].astype(np.int64)
  for rows, unseen in zip(given["epoch_order"], given["epoch_negatives"], strict=True):
    users, items = (torch.from_numpy(x[rows]) for x in log)
    student.optimizer.zero_grad()
    against.bpr(student.nodes(), users, items + USERS, torch.from_numpy(unseen) + USERS).sum().backward()
    student.optimizer.step()
  return {"table": student.table}


CASES = {case.__name__: case for case in (
    bpr, rrd, rcekd, rrd_targets, rcekd_targets, lightgcn, ranks, negatives, epoch)}


def values(case, given, dataset):
  """{name: array} of one case."""
  torch.manual_seed(0)
  return {name: value.detach().numpy() for name, value in CASES[case](given, dataset).items()}


def write():
  """Writes torch.npz and torch.json."""
  given = inputs()
  for user in (given["user"], given["teacher_user"]):
    assert np.diff(np.sort(user @ given["item"].T, axis=1)).min() > _SMALLEST_GAP, "take another seed"
  dataset = dataset_of(given)
  arrays = {f"inputs/{name}": value for name, value in given.items()}
  for case in CASES:
    arrays |= {f"{case}/{name}": value for name, value in values(case, given, dataset).items()}
  np.savez_compressed(FOLDER / "torch.npz", **arrays)
  source = {
      "written by": "cd tests && python -m golden.write_torch", "torch": torch.__version__, "numpy": np.__version__,
      "machine": platform.machine(), "functions": "kd_jax.bench.against.torch",
      "cases": {name: " ".join(case.__doc__.split()) for name, case in CASES.items()}}
  (FOLDER / "torch.json").write_text(json.dumps(source, indent=2) + "\n")


if __name__ == "__main__":
  write()
