"""Agreement of the lists of two models, against loops from the formulas and SciPy."""

import math

import numpy as np
import pytest
from scipy import special, stats

from kd_jax import data
from kd_jax.base import Interactions, Ranked
from kd_jax.evaluation import agreement, metric_names, run_report
from kd_jax.runs import loop
from kd_jax.teachers import loading

K = 6


def drawn(seed, users=40):
  """Lists of both models [U, K], some short, with scores of the first one's items by both, some equal."""
  rng = np.random.default_rng(seed)
  a, b = (np.array([rng.permutation(12)[:K] for _ in range(users)]) for _ in range(2))
  own, other = np.sort(rng.integers(-3, 4, (users, K)), axis=1)[:, ::-1], rng.integers(-2, 3, (users, K))
  for row, length in ((0, 0), (1, 1), (2, 3)):
    a[row, length:] = -1
  b[3, 4:] = -1
  b[4] = a[4]
  return a, b, own.astype(np.float32), other.astype(np.float32)


def rbo(a, b, p=0.9):
  """Equation 30 of Webber et al., with sets."""
  agreement_at = [len({x for x in a[:d] if x >= 0} & set(b[:d])) / d for d in range(1, K + 1)]
  return agreement_at[-1] * p**K + (1 - p) / p * sum(x * p**d for d, x in enumerate(agreement_at, 1))


@pytest.mark.parametrize("seed", range(3))
def test_values_are_the_formulas(seed):
  a, b, own, other = drawn(seed)
  there = a >= 0
  found = agreement.rank_biased_overlap(a, b)
  np.testing.assert_allclose(found, [rbo(x.tolist(), y.tolist()) for x, y in zip(a, b, strict=True)], atol=1e-12)
  assert found[4] == pytest.approx(1) and found[0] == 0
  taus, kls = agreement.kendall(there, own, other), agreement.divergence(there, own, other)
  for row, mask in enumerate(there):
    x, y = own[row, mask], other[row, mask]
    tau = stats.kendalltau(x, y).statistic if len(x) > 1 else math.nan
    assert taus[row] == pytest.approx(tau, abs=1e-12, nan_ok=True)
    kl = stats.entropy(special.softmax(x.astype(float)), special.softmax(y.astype(float))) if len(x) else math.nan
    assert kls[row] == pytest.approx(kl, abs=1e-9, nan_ok=True)
  assert np.isnan(kls[0]) and np.isnan(taus[1]) and np.isfinite(taus[5:]).all()


def test_following_is_counted_where_the_teacher_is_right_and_where_it_is_wrong():
  student, teacher = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[3, 9, 1], [7, 8, 9]])
  right = np.array([[True, True, False], [False, False, False]])
  assert agreement.follows(student, teacher, right).tolist() == pytest.approx([1 / 2, math.nan], nan_ok=True)
  assert agreement.follows(student, teacher, ~right).tolist() == pytest.approx([1, 0])


@pytest.fixture(scope="module")
def pair(tmp_path_factory, flags, small, teacher):
  """(run of a distilled student, run of its teacher)."""
  run = tmp_path_factory.mktemp("agreement") / "student"
  loop.train(flags(*small, "--kd=kl(k=10)", f"--teacher={teacher}", f"--workdir={run}"))
  return run, teacher


def test_a_run_is_compared_with_its_teacher(pair, small):
  student, teacher = pair
  found = run_report.evaluate_run(str(student), teacher=str(teacher))
  assert found["agreement"].keys() == {f"{name}@{k}" for name in agreement.NAMES for k in metric_names.CUTOFFS}
  assert found["agreement"]["overlap@10"] == found["overlap@10"]
  dataset = data.load(small[0].partition("=")[2], splits=("train", "validation", "test"))
  scores = []
  for run in (student, teacher):
    _, variables = loading.network(str(run), dataset)
    scores.append(np.asarray(variables["params"]["user"], float) @ np.asarray(variables["params"]["item"], float).T)
  sets = {name: [set(log.items[log.users == u].tolist()) for u in range(dataset.num_users)] for name, log in (
      ("train", dataset.train), ("validation", dataset.validation), ("test", dataset.test))}
  values = {name: [] for name in ("overlap", "follows_right", "follows_wrong", "kl")}
  for user in range(dataset.num_users):
    lists = [[i for i in np.argsort(-x[user]) if i not in sets["train"][user]][:5] for x in scores]
    values["overlap"].append(len(set(lists[0]) & set(lists[1])) / 5)
    values["kl"].append(stats.entropy(*(special.softmax(x[user, lists[1]]) for x in reversed(scores))))
    known = set().union(*(sets[name][user] for name in sets))
    others = set(range(dataset.num_items)) - known
    for name, items in (("follows_right", sets["test"][user]), ("follows_wrong", others)):
      chosen = [i for i in lists[1] if i in items]
      if chosen and sets["test"][user]:
        values[name].append(np.mean([i in lists[0] for i in chosen]))
  for name, expected in values.items():
    assert found["agreement"][f"{name}@5"] == pytest.approx(np.mean(expected), abs=1e-6), name


def test_only_users_with_held_out_items_are_asked_what_they_follow(pair, small):
  dataset = data.load(small[0].partition("=")[2], splits=("train", "validation", "test"))
  kept = dataset.test.users >= 50
  some = dataset._replace(test=Interactions(dataset.test.users[kept], dataset.test.items[kept]))
  networks = [loading.network(str(run), dataset) for run in pair]
  found = agreement.measure(*networks, some, "test")["follows_wrong@5"]
  lists = [np.asarray(Ranked(*run.top_k(5)).items) for run in (loading.open_run(str(x), dataset) for x in pair)]
  logs = (some.train, some.validation, some.test)
  known = {(u, i) for log in logs for u, i in zip(log.users, log.items, strict=True)}
  wrong = [[i in lists[0][u] for i in lists[1][u] if (u, i) not in known] for u in range(50, dataset.num_users)]
  assert found == pytest.approx(np.mean([np.mean(x) for x in wrong if x]))


def test_a_model_agrees_with_itself(pair):
  found = run_report.evaluate(str(pair[1]), teacher=str(pair[1])).details["agreement"]
  for name in agreement.NAMES:
    assert found[f"{name}@20"] == pytest.approx(0 if name == "kl" else 1, abs=1e-6), name
