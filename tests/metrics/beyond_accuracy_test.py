"""Metrics beyond accuracy against loops in float64 from their formulas, and against SciPy and scikit-learn."""

import itertools
import math
import sys

import numpy as np
import pytest
from scipy import stats
from scipy.spatial import distance
from sklearn.metrics.pairwise import cosine_similarity

import kd_jax
from kd_jax.base import Dataset, Features, InputError, Interactions, Ranked
from kd_jax.evaluation import metric_names, protocols
from kd_jax.metrics._held_out import lay_out

USERS, ITEMS, K = 12, 25, 4
NEW = 5  # a user without training interactions
NAMES = ("coverage", "gini", "entropy", "personalisation", "average_popularity", "popularity_lift", "novelty",
         "popularity_deviation", "diversity", "vector_diversity", "feature_diversity", "serendipity", "miscalibration",
         "user_gap", "item_gap")


def build_case(seed):
  """Held-out ranks with lists of 6 items (one user has 3, one has 1), and data with cold items and a new user."""
  rng = np.random.default_rng(seed)
  popular = rng.permutation(ITEMS - 3) ** 2 + 1.0  # the last three items are cold
  train = [(u, i) for u in range(USERS) if u != NEW
           for i in rng.choice(ITEMS - 3, rng.integers(2, 9), False, popular / popular.sum())]
  items, held, ranks = np.full((USERS - 1, 6), -1), [], []
  evaluated = [u for u in range(USERS) if u != 7]
  for row, user in enumerate(evaluated):
    left = rng.permutation([i for i in range(ITEMS) if (user, i) not in train])
    items[row] = left[:6]
    places = rng.choice(len(left), rng.integers(1, 5), replace=False)
    held += [(user, left[place]) for place in places]
    ranks += places.tolist()
  items[2, 3:], items[9, 1:] = -1, -1
  shuffled = rng.permutation(len(held))
  held, ranks = np.array(held, np.int32)[shuffled], np.array(ranks)[shuffled]
  vectors = {"text": rng.normal(size=(ITEMS, 3)).astype(np.float32), "size": rng.normal(size=(ITEMS, 1))}
  vectors["text"][4], vectors["size"][4] = 0, 0
  categories = np.stack([rng.integers(3, size=ITEMS), rng.integers(5, size=ITEMS)], 1).astype(np.int32)
  log = Interactions(*np.array([*train, train[0]], np.int32).T)  # the first interaction is there twice
  dataset = Dataset("in_memory()", USERS, ITEMS, log, log, log, np.arange(USERS).astype(str),
                    np.arange(ITEMS).astype(str), {}, {}, item_features=Features(
                        ("kind", "maker"), (3, 5), categories, vectors))
  return dataset, held, ranks, items


CASES = [build_case(seed) for seed in range(3)]


def value(name, case, k=K):
  """The metric, by name as on the command line, from a whole evaluation."""
  dataset, held, ranks, items = case
  metric = metric_names.build(f"{name}@{k}", "interactions")
  groups = protocols._groups(dataset, Interactions(*held.T))
  found = protocols.Ranks(Interactions(*held.T), ranks, groups, None, 0, Ranked(items, np.zeros(items.shape)))
  users, made = protocols.values(found, {name: metric}, dataset)
  assert users.tolist() == sorted(set(held[:, 0].tolist()))
  return made[name]


def lists(case, k=K):
  return [[i for i in row[:k].tolist() if i >= 0] for row in case[3]]


def popularity(dataset):
  return [int(np.sum(dataset.train.items == i)) for i in range(ITEMS)]


def profile(dataset, user):
  return [int(i) for u, i in zip(dataset.train.users, dataset.train.items, strict=True) if u == user]


def counts_of(case):
  return [sum(i in row for row in lists(case)) for i in range(ITEMS)]


def evaluated(case):
  return sorted(set(case[1][:, 0].tolist()))


def coverage(case):
  return len(set().union(*lists(case))) / ITEMS


def gini(case):
  """Half of the relative mean absolute difference: another form of the index."""
  c = counts_of(case)
  return sum(abs(a - b) for a in c for b in c) / (2 * ITEMS * sum(c))


def entropy(case):
  return stats.entropy(counts_of(case), base=2)


def personalisation(case):
  pairs = list(itertools.combinations(lists(case), 2))
  return 1 - sum(len({*a} & {*b}) / K for a, b in pairs) / len(pairs)


def average_popularity(case):
  n = popularity(case[0])
  return [sum(n[i] for i in row) / len(row) for row in lists(case)]


def popularity_lift(case):
  n, given, chosen = popularity(case[0]), [], []
  for user, row in zip(evaluated(case), lists(case), strict=True):
    if own := profile(case[0], user):
      given.append(sum(n[i] for i in row) / len(row))
      chosen.append(sum(n[i] for i in own) / len(own))
  return np.mean(given) / np.mean(chosen) - 1


def novelty(case):
  n = popularity(case[0])
  return [sum(-math.log2(max(n[i], 1) / USERS) for i in row) / len(row) for row in lists(case)]


def popularity_deviation(case):
  n, part = popularity(case[0]), {}
  total, above = sum(n), 0
  for count in sorted(set(n), reverse=True):
    same = [i for i in range(ITEMS) if n[i] == count]
    middle = (above + count * len(same) / 2) / total
    part |= dict.fromkeys(same, 0 if middle <= 0.2 else 1 if middle <= 0.8 else 2)
    above += count * len(same)
  found = []
  for user, row in zip(evaluated(case), lists(case), strict=True):
    own = profile(case[0], user)
    p, q = ([sum(part[i] == g for i in items) / max(len(items), 1) for g in range(3)] for items in (own, row))
    found.append(distance.jensenshannon(p, q, base=2) ** 2 if own else math.nan)
  return found


def mean_distance(row, similarity):
  pairs = list(itertools.combinations(row, 2))
  return 1 - sum(similarity(a, b) for a, b in pairs) / len(pairs) if pairs else math.nan


def diversity(case):
  users = {i: {u for u in range(USERS) if i in profile(case[0], u)} for i in range(ITEMS)}

  def similarity(a, b):
    return len(users[a] & users[b]) / math.sqrt(len(users[a]) * len(users[b])) if users[a] and users[b] else 0

  return [mean_distance(row, similarity) for row in lists(case)]


def vector_diversity(case):
  vectors = np.concatenate([*case[0].item_features.vectors.values()], axis=1)
  similar = cosine_similarity(vectors)
  return [mean_distance(row, lambda a, b: similar[a, b]) for row in lists(case)]


def feature_diversity(case):
  categories = case[0].item_features.categories
  return [mean_distance(row, lambda a, b: 1 - distance.hamming(categories[a], categories[b])) for row in lists(case)]


def serendipity(case):
  n, found = popularity(case[0]), dict.fromkeys(evaluated(case), 0.0)
  places = stats.rankdata([-x for x in n], method="average") - 1
  for (user, item), rank in zip(case[1].tolist(), case[2].tolist(), strict=True):
    recommended, expected = (ITEMS - rank) / ITEMS, (ITEMS - places[item]) / ITEMS
    found[user] += max(recommended - expected, 0) / K if rank < K else 0
  return list(found.values())


def miscalibration(case):
  features, found = case[0].item_features, []
  for user, row in zip(evaluated(case), lists(case), strict=True):
    own, of_fields = profile(case[0], user), []
    for field, size in enumerate(features.sizes):
      p, q = ([sum(features.categories[i, field] == g for i in items) / max(len(items), 1) for g in range(size)]
              for items in (own, row))
      of_fields.append(stats.entropy(p, 0.99 * np.array(q) + 0.01 * np.array(p)) if own else math.nan)
    found.append(np.mean(of_fields))
  return found


def ndcg(ranks):
  return (sum(1 / math.log2(r + 2) for r in ranks if r < K)
          / sum(1 / math.log2(r + 2) for r in range(min(len(ranks), K))))


def ranks_of(case, user, items=range(ITEMS)):
  return [r for (u, i), r in zip(case[1].tolist(), case[2].tolist(), strict=True) if u == user and i in items]


def halves(counts):
  """The entities in the first half of all interactions, the most frequent ones first; equal ones are together."""
  total, above, first = sum(counts), 0, set()
  for count in sorted(set(counts), reverse=True):
    same = [i for i in range(len(counts)) if counts[i] == count]
    first |= {*same} if above + count * len(same) / 2 < total / 2 else set()
    above += count * len(same)
  return first


def user_gap(case):
  active = halves([len(profile(case[0], user)) for user in range(USERS)])
  found = [[ndcg(ranks_of(case, user)) for user in evaluated(case) if (user in active) == wanted]
           for wanted in (True, False)]
  return abs(np.mean(found[0]) - np.mean(found[1]))


def item_gap(case):
  held = Interactions(*case[1].T)
  popular = set(held.items[protocols._groups(case[0], held)["popular"]].tolist())  # tested with the groups of items
  means = []
  for items in (popular, set(range(ITEMS)) - popular):
    own = [ranks for user in evaluated(case) if (ranks := ranks_of(case, user, items))]
    means.append(np.mean([np.mean([r < K for r in ranks]) for ranks in own]))
  return abs(means[0] - means[1])


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("name", NAMES)
def test_a_metric_is_its_formula(name, case):
  expected, found = np.array(globals()[name](CASES[case])), value(name, CASES[case])
  assert found.shape == expected.shape and np.isfinite(expected).any()
  assert len(np.unique(expected)) > (expected.ndim > 0)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_every_metric_that_is_no_accuracy_is_compared():
  assert set(NAMES) | set(metric_names.NAMES) == set(kd_jax.metrics.registry.names("metrics"))


def test_extremes():
  dataset, held, ranks, items = CASES[0]
  same = np.tile(np.arange(6), (len(items), 1))
  found = {name: value(name, (dataset, held, ranks, same)) for name in ("coverage", "gini", "entropy",
                                                                        "personalisation")}
  assert found["coverage"] == K / ITEMS and found["personalisation"] == 0
  assert found["gini"] == pytest.approx(1 - K / ITEMS) and found["entropy"] == pytest.approx(math.log2(K))
  everything = (np.arange(5 * 5).reshape(5, 5), *(np.array(x) for x in ([[u, 0] for u in range(5)], [9] * 5)))
  case = dataset, everything[1], everything[2], everything[0]
  assert value("coverage", case, 5) == value("personalisation", case, 5) == 1
  assert value("gini", case, 5) == pytest.approx(0) and value("entropy", case, 5) == pytest.approx(math.log2(ITEMS))


def test_lists_without_items_have_no_value():
  dataset, held, ranks, items = CASES[0]
  case = dataset, held, ranks, np.full_like(items, -1)
  for name in ("coverage", "gini", "entropy", "average_popularity", "novelty", "diversity", "vector_diversity",
               "feature_diversity", "popularity_lift", "miscalibration", "popularity_deviation"):
    found = value(name, case)
    assert found == 0 if name == "coverage" else np.isnan(found).all(), name


def test_users_are_active_by_halves_of_all_training_interactions():
  counts = np.array([7, 3, 3, 1, 1, 1, 0])  # 16 in all; 7 of them, then 3 + 3 whose middle is 10
  assert protocols.is_active(counts).tolist() == [True, *[False] * 6]
  assert protocols.is_active(np.array([2, 2, 2])).tolist() == [False] * 3


def test_active_users_are_counted_apart():
  dataset, held, ranks, _ = CASES[0]
  found = protocols.Ranks(Interactions(*held.T), ranks, {}, None, 0, None)
  users, made = protocols.values(found, {"recall@4": metric_names.build("recall@4", "interactions")}, dataset)
  active = halves([len(profile(dataset, user)) for user in range(USERS)])
  assert 0 < len(active) < USERS and NEW not in active
  for user, own, other in zip(users, made["recall@4(active)"], made["recall@4(inactive)"], strict=True):
    expected = np.mean([r < K for r in ranks_of(CASES[0], user)])
    assert (own, other) == pytest.approx((expected, math.nan) if user in active else (math.nan, expected), nan_ok=True)


def test_parts_of_the_data_give_the_values_of_the_whole():
  """Metrics of lists are computed in blocks of users."""
  module, before = sys.modules["kd_jax.metrics.diversity"], {}  # the name in the package is the factory
  for name in ("diversity", "vector_diversity", "feature_diversity"):
    before[name] = value(name, CASES[1])
  whole, module._NUMBERS = module._NUMBERS, 1
  try:
    for name, expected in before.items():
      np.testing.assert_allclose(value(name, CASES[1]), expected, atol=1e-12)
  finally:
    module._NUMBERS = whole


@pytest.mark.parametrize(("name", "needed"), [
    ("feature_diversity", "categorical fields"), ("vector_diversity", "vectors"),
    ("miscalibration", "categorical fields")])
def test_what_the_data_does_not_have_is_named(name, needed, make_dataset):
  metric = {f"{name}@10": metric_names.build(f"{name}@10", "interactions")}
  with pytest.raises(InputError, match=f"`metrics={name}@10`: needs {needed}"):
    metric_names.check_needs("metrics", metric, make_dataset())
  with pytest.raises(InputError, match="they are streamed"):
    metric_names.check_needs("metrics", {"x": metric_names.build("diversity@10", "interactions")},
                             make_dataset()._replace(stream=object()))


def test_sampled_candidates_have_no_such_metrics():
  held = Interactions(*CASES[0][1].T)
  found = protocols.Ranks(held, CASES[0][2], {}, np.zeros(len(held.users), int), 9, None)
  metrics = {name: metric_names.build(name, "interactions") for name in ("serendipity@4", "ndcg@4", "user_gap@4")}
  assert "ndcg@4(sampled 9)" in (made := protocols.values(found._replace(groups=protocols._groups(
      CASES[0][0], held)), metrics, CASES[0][0])[1])
  assert not any(name.startswith(("serendipity@4(", "user_gap@4(")) for name in made)


def test_held_out_masks_are_sorted_with_the_items():
  mask = np.array([True, False, True])
  found = lay_out(np.array([2, 0, 2]), np.array([5, 6, 7]), np.array([3, 1, 0]), groups={"odd": mask})
  assert found.items.tolist() == [6, 7, 5] and found.groups["odd"].tolist() == [False, True, True]
