"""Metrics against ir-measures and scikit-learn, and rankings against brute force."""

import ir_measures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from kd_jax import registry
from kd_jax.base import InputError, Interactions
from kd_jax.data import index, order
from kd_jax.evaluation import metric_names, protocols
from kd_jax.metrics import transfer
from kd_jax.metrics._held_out import lay_out
from kd_jax.ranking import rank

USERS, ITEMS, CUTOFFS = 70, 40, (1, 3, 10)
METRICS = metric_names.usual("interactions", CUTOFFS)


def per_user(users, items, ranks, metrics=METRICS):
  """(evaluated users [V], {name: values [V]}) of held-out interactions."""
  found = lay_out(users, items, ranks)
  return found.users, {name: metric.value(found) for name, metric in metrics.items()}


def priority(num_items):
  """Of the items of data sets in these tests."""
  return order.priority(np.arange(num_items).astype(str))


def brute_ranks(scores, held, masked):
  """Ranks from 0 of held-out (user, item) pairs by (score desc, priority asc) among items not in `masked`."""
  ranks, places = [], priority(scores.shape[1])
  for user, item in zip(held.users.tolist(), held.items.tolist(), strict=True):
    rivals = [i for i in range(scores.shape[1]) if i not in masked[user]]
    ranks.append(sorted(rivals, key=lambda i: (-scores[user, i], places[i])).index(item))
  return np.array(ranks)


@pytest.fixture(scope="module")
def case():
  """(scores with many ties, held out, {user: masked}): users of 1 item, of many, with few rivals, without any."""
  rng = np.random.default_rng(0)
  scores = rng.integers(0, 7, size=(USERS, ITEMS)).astype(np.float64)
  users, items, masked = [], [], {}
  for user in range(USERS):
    order = rng.permutation(ITEMS)
    held = {0: 1, 1: 25, 2: 2, 3: 0}.get(user, int(rng.integers(1, 15)))
    hidden = {1: 10, 2: ITEMS - 4}.get(user, int(rng.integers(0, 20)))
    users += [user] * held
    items += order[:held].tolist()
    masked[user] = set(order[held : held + hidden].tolist())
  shuffled = rng.permutation(len(users))
  return scores, Interactions(np.array(users, np.int32)[shuffled], np.array(items, np.int32)[shuffled]), masked


def test_metrics_are_those_of_ir_measures(case):
  scores, held, masked = case
  ranks = brute_ranks(scores, held, masked)
  evaluated, values = per_user(*held[:2], ranks)
  assert evaluated.tolist() == sorted(set(held.users.tolist())) and 3 not in evaluated
  qrels = {str(u): {str(i): 1 for i in held.items[held.users == u]} for u in evaluated}
  for k in CUTOFFS:
    run = {}
    for user in evaluated:  # strictly falling scores, cut at k first: what oracles do with ties cannot differ
      rivals = (i for i in range(ITEMS) if i not in masked[user])
      best = sorted(rivals, key=lambda i: (-scores[user, i], priority(ITEMS)[i]))[:k]
      run[str(user)] = {str(i): float(k - place) for place, i in enumerate(best)}
    oracle = {"recall": ir_measures.R @ k, "precision": ir_measures.P @ k, "ndcg": ir_measures.nDCG @ k,
              "hit": ir_measures.Success @ k, "mrr": ir_measures.RR, "map": ir_measures.AP @ k}
    found = {}
    for name, measure in oracle.items():  # one at a time: together they share settings
      for result in ir_measures.iter_calc([measure], qrels, run):
        found[name, int(result.query_id)] = result.value
    for name in oracle:
      expected = [found[name, user] for user in evaluated]
      np.testing.assert_allclose(values[f"{name}@{k}"], expected, rtol=0, atol=1e-9, err_msg=f"{name}@{k}")
    precision, recall = (np.array([found[name, u] for u in evaluated]) for name in ("precision", "recall"))
    with np.errstate(invalid="ignore"):
      f1 = np.nan_to_num(2 * precision * recall / (precision + recall))
    np.testing.assert_allclose(values[f"f1@{k}"], f1, rtol=0, atol=1e-9)


def test_ndcg_is_that_of_scikit_learn(case):
  scores, held, masked = case
  evaluated, values = per_user(*held[:2], brute_ranks(scores, held, masked))
  for row, user in enumerate(evaluated):
    rivals = (i for i in range(ITEMS) if i not in masked[user])
    listed = sorted(rivals, key=lambda i: (-scores[user, i], priority(ITEMS)[i]))
    relevant = np.isin(listed, held.items[held.users == user]).astype(float)
    for k in CUTOFFS:
      expected = ndcg_score([relevant], [-np.arange(len(listed), dtype=float)], k=k, ignore_ties=True)
      assert values[f"ndcg@{k}"][row] == pytest.approx(expected, abs=1e-9)


def of(ranks, k):
  users = np.zeros(len(ranks), int)
  values = per_user(users, np.arange(len(ranks)), np.array(ranks), metric_names.usual("interactions", (k,)))[1]
  return {name.partition("@")[0]: value[0] for name, value in values.items()}


def test_one_hit_at_the_top_is_perfect():
  assert of([0], 5) == pytest.approx(
      {"recall": 1, "precision": 1 / 5, "f1": 1 / 3, "ndcg": 1, "hit": 1, "mrr": 1, "map": 1})


def test_no_hit_is_zero():
  assert set(of([5, 9], 5).values()) == {0.0}


def test_the_last_place_counts_and_the_next_does_not():
  assert of([4], 5)["hit"] == 1 and of([5], 5)["hit"] == 0
  assert of([4], 5)["mrr"] == pytest.approx(1 / 5) and of([5], 5)["mrr"] == 0


def test_two_hits_of_three_by_hand():
  expected = {"recall": 2 / 3, "precision": 2 / 4, "f1": 4 / 7, "hit": 1, "mrr": 1 / 2,
              "map": (1 / 2 + 2 / 4) / 3,
              "ndcg": (1 / np.log2(3) + 1 / np.log2(5)) / (1 + 1 / np.log2(3) + 1 / np.log2(4))}
  assert of([1, 3, 8], 4) == pytest.approx(expected)


def test_more_held_out_items_than_places_can_still_be_perfect_in_ndcg():
  found = of([0, 1, 2, 3, 4], 2)
  assert found["ndcg"] == pytest.approx(1) and found["precision"] == 1 and found["recall"] == pytest.approx(2 / 5)


@pytest.mark.parametrize("name", ["ndcg", "ndcg@", "ndcg@0", "ndcg@-1", "ndcg@x", "auc@10", "@10", "ndcg@1.5", "",
                                  "hit@5(sampled 0)", "hit@5(sampled)", "hit@5 (sampled 9)"])
def test_wrong_names_are_refused(name):
  with pytest.raises(ValueError, match="is not a metric"):
    metric_names.read(name, "interactions")


def test_names_are_parsed():
  def read(name):
    return metric_names.read(name, "interactions")

  def call(name, k):
    return registry.Call(name, (("k", k),))

  assert [read(f"{n}@20") for n in metric_names.NAMES] == [(call(n, 20), 0, f"{n}@20") for n in metric_names.NAMES]
  assert read("hit@5(sampled 499)") == (call("hit", 5), 499, "hit@5")
  assert set(of([0], 1)) == set(metric_names.NAMES) < set(registry.names("metrics"))


def test_overlap_is_of_sets_and_ignores_empty_places():
  a, b = np.array([[1, 2, 3], [4, 5, -1], [-1, -1, -1]]), np.array([[3, 9, 1], [5, -1, -1], [-1, -1, -1]])
  assert transfer.overlap(a, b) == pytest.approx([2 / 3, 1 / 2, 0])


@pytest.fixture(scope="module")
def tied(make_dataset):
  """(dataset, module, variables, scores): 130 users, no multiple of a block; small integers, so exact ties."""
  dataset = make_dataset(num_users=130, num_items=50, train=8, validation=5, test=6, seed=5)
  rng = np.random.default_rng(6)
  keep = np.sort(rng.permutation(len(dataset.test.users))[:500])  # users with few test items, in mixed order
  keep = rng.permutation(keep[dataset.test.users[keep] != 7])
  dataset = dataset._replace(test=Interactions(dataset.test.users[keep], dataset.test.items[keep]))
  module = registry.build("models", registry.Call("mf", (("dim", 2),)), num_users=130, num_items=50)
  user, item = (rng.integers(-2, 3, size=(n, 2)).astype(np.float32) for n in (130, 50))
  user[user == 0], item[item == 0] = 1, 1
  variables = {"params": {"user": jnp.asarray(user), "item": jnp.asarray(item)}, "constants": {}}
  return dataset, module, variables, user @ item.T


def masks(dataset, *splits):
  return {u: set(np.concatenate([s.items[s.users == u] for s in splits]).tolist()) for u in range(dataset.num_users)}


@pytest.mark.parametrize(("split", "mask_validation"), [("validation", False), ("test", False), ("test", True)])
def test_full_ranking_is_brute_force(tied, split, mask_validation):
  dataset, module, variables, scores = tied
  held = getattr(dataset, split)
  masked = masks(dataset, dataset.train, *([dataset.validation] if mask_validation else []))
  users, values = per_user(*held[:2], brute_ranks(scores, held, masked))
  found_users, found = protocols.full_ranking(module, variables, protocols.layout(dataset, split, mask_validation),
                                              METRICS)
  assert np.array_equal(users, found_users) and {name for name in found if "(" not in name} == set(values)
  for name in values:
    np.testing.assert_allclose(found[name], values[name], rtol=0, atol=1e-12, err_msg=name)


def test_groups_of_items_are_counted_apart_among_all_items(tied):
  dataset, module, variables, scores = tied
  gone = np.isin(dataset.train.items, dataset.test.items[::7])  # these items lose all their training
  dataset = dataset._replace(train=Interactions(dataset.train.users[~gone], dataset.train.items[~gone]))
  held = dataset.test
  ranks = np.array(brute_ranks(scores, held, masks(dataset, dataset.train)))
  evaluated, found = protocols.full_ranking(module, variables, protocols.layout(dataset, "test"), METRICS)
  popularity = np.bincount(dataset.train.items, minlength=50)
  is_cold = popularity[held.items] == 0
  popular, total = set(), 0  # greedily: while less than half of all training interactions are spoken for
  for item in sorted(range(50), key=lambda i: (-popularity[i], priority(50)[i])):
    if total + popularity[item] / 2 < popularity.sum() / 2:
      popular.add(item)
    total += popularity[item]
  is_popular = np.array([i in popular for i in held.items])
  assert 0 < is_cold.sum() < len(is_cold) and 0 < is_popular.sum() < (~is_popular).sum()
  for word, kept in (("cold", is_cold), ("warm", ~is_cold), ("popular", is_popular), ("unpopular", ~is_popular)):
    users, expected = per_user(held.users[kept], held.items[kept], ranks[kept])
    own = np.isin(evaluated, users)
    assert 0 < own.sum() < len(own) or word in ("cold", "unpopular")
    for k in CUTOFFS:
      recall, ndcg = (found[f"{name}@{k}({word})"] for name in ("recall", "ndcg"))
      assert np.isnan(recall[~own]).all() and np.isnan(ndcg[~own]).all()
      np.testing.assert_allclose(ndcg[own], expected[f"ndcg@{k}"], atol=1e-12)
      hits = [(ranks[kept][held.users[kept] == u] < k).mean() for u in users]
      np.testing.assert_allclose(recall[own], hits, atol=1e-12)
      assert protocols.means(found)[f"recall@{k}({word})"] == pytest.approx(np.mean(hits))
  assert {n for n in found if "(" not in n} == {f"{n}@{k}" for n in metric_names.NAMES for k in CUTOFFS}


def test_the_item_in_the_middle_of_all_popularity_is_popular(make_dataset):
  dataset = make_dataset(num_users=10, num_items=30)  # five, three and two of ten training interactions
  dataset = dataset._replace(train=Interactions(np.arange(10), np.repeat([4, 9, 2], [5, 3, 2])))
  groups = protocols._groups(dataset, Interactions(np.zeros(4, np.int32), np.array([2, 4, 9, 0])))
  assert groups["popular"].tolist() == [False, True, False, False] == (~groups["unpopular"]).tolist()
  assert groups["cold"].tolist() == [False, False, False, True]


@pytest.mark.parametrize("word", ["name", "number", "x"])
def test_of_equally_popular_items_at_the_border_the_priority_decides(make_dataset, word):
  ids = np.array([f"{word} {n}" for n in range(30)])
  dataset = make_dataset(num_users=9, num_items=30)._replace(item_ids=ids)
  dataset = dataset._replace(train=Interactions(np.arange(9), np.repeat([4, 9, 2], 3)))  # the border is in the second
  groups = protocols._groups(dataset, Interactions(np.zeros(3, np.int32), np.array([2, 4, 9])))
  places = order.priority(ids)[[2, 4, 9]]
  assert groups["popular"].tolist() == (places == places.min()).tolist()


def test_validation_is_masked_only_on_request(tied):
  dataset, module, variables, _ = tied
  plain, masked = (protocols.means(protocols.full_ranking(
      module, variables, protocols.layout(dataset, "test", m),
      metric_names.usual("interactions", (10,)))[1]) for m in (False, True))
  assert masked["recall@10"] > plain["recall@10"]


def test_ranks_are_places_in_the_ranked_lists(tied):
  dataset, module, variables, scores = tied
  seen = jax.tree.map(jnp.asarray, index.seen_by_users(dataset))
  listed = rank.network_top_k(module, variables, seen, k=50, exclude_seen=True)
  items = np.asarray(listed.items)
  for user, row in enumerate(items):
    own = dataset.train.items[dataset.train.users == user]
    left = [i for i in range(50) if i not in own]
    assert row[: len(left)].tolist() == sorted(left, key=lambda i: (-scores[user, i], priority(50)[i]))
    assert (row[len(left) :] == -1).all() and (np.asarray(listed.scores)[user, len(left) :] == -np.inf).all()
  held, where = rank.held_out(dataset.test, [dataset.train], priority(50))
  lines = np.asarray(rank.network_ranks(module, variables, jax.tree.map(jnp.asarray, held)))
  ranks = lines[where[:, 0], where[:, 1]]
  assert np.array_equal(items[dataset.test.users, ranks], dataset.test.items)
  with_seen = np.asarray(rank.network_top_k(module, variables, seen, k=50, exclude_seen=False).items)
  assert np.array_equal(with_seen, np.lexsort((np.broadcast_to(priority(50), scores.shape), -scores), axis=1))


def test_tail_is_the_probability_of_what_is_not_listed(tied):
  dataset, module, variables, scores = tied
  seen = jax.tree.map(jnp.asarray, index.seen_by_users(dataset))
  found, tail = rank.network_soft_labels(module, variables, seen, k=5, exclude_seen=True)
  scores = scores.astype(np.float64)
  scores[dataset.train.users, dataset.train.items] = -np.inf
  p = np.exp(scores - scores.max(axis=1, keepdims=True))
  p /= p.sum(axis=1, keepdims=True)
  listed = np.take_along_axis(p, np.asarray(found.items), axis=1).sum(axis=1)
  np.testing.assert_allclose(tail, 1 - listed, atol=2e-6)


def test_sampled_ranking_among_all_unknown_items_is_full_ranking(make_dataset):
  dataset = make_dataset(num_users=70, num_items=40, train=8, validation=2, test=1, seed=7)
  module = registry.build("models", registry.Call("mf", (("dim", 2),)), num_users=70, num_items=40)
  rng = np.random.default_rng(8)
  params = {k: jnp.asarray(rng.integers(1, 4, size=(n, 2)), jnp.float32) for k, n in (("user", 70), ("item", 40))}
  variables = {"params": params, "constants": {}}
  layout = protocols.layout(dataset, "test", sampled=40 - 11, only_sampled=True)
  users, sampled = protocols.full_ranking(module, variables, layout, METRICS)
  evaluated, full = protocols.full_ranking(module, variables, protocols.layout(dataset, "test", True), METRICS)
  full = {name: value for name, value in full.items() if "(" not in name}
  assert {f"{name}(sampled 29)" for name in full} == set(sampled) and np.array_equal(users, evaluated)
  for name in full:
    np.testing.assert_allclose(sampled[f"{name}(sampled 29)"], full[name], rtol=0, atol=1e-12)
  few = protocols.sampled_candidates(dataset, dataset.test, 7, seed=0)
  known = masks(dataset, dataset.train, dataset.validation, dataset.test)
  assert not any(set(row) & known[user] for user, row in enumerate(few.tolist()))
  assert np.array_equal(few, protocols.sampled_candidates(dataset, dataset.test, 7, seed=0))
  assert not np.array_equal(few, protocols.sampled_candidates(dataset, dataset.test, 7, seed=1))
  short = protocols.sampled_candidates(dataset, dataset.test, 30, seed=0)
  assert (short[:, :29] >= 0).all() and (short[:, 29] == -1).all()
  with pytest.raises(InputError, match="`sampled=30`"):
    protocols.short_of_unknown(dataset, "test", 30)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("table", ["user", "item"])
def test_scores_that_are_not_finite_are_refused(tied, table, bad):
  dataset, module, variables, _ = tied
  broken = variables["params"] | {table: variables["params"][table].at[11, 0].set(bad)}
  with pytest.raises(InputError, match="not finite"):
    protocols.full_ranking(module, variables | {"params": broken}, protocols.layout(dataset, "validation"))
  with pytest.raises(InputError, match="not finite"):
    protocols.sampled_ranks(module, variables | {"params": broken}, dataset.validation,
                            np.full((len(dataset.validation.users), 1), 11), priority(50))
