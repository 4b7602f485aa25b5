"""Requests: what each field does, and which values are refused before anything is computed."""

import numpy as np
import pytest
import small_export as small

from kd_jax import serving
from kd_jax.base import InputError
from kd_jax.serving import inputs, ranking
from kd_jax.serving.requests import Request

USER, ITEM = small.tables()
SCORES, KNOWN = USER @ ITEM.T, small.histories()


@pytest.fixture(scope="module")
def recommender(tmp_path_factory):
  return serving.load(small.write_export(tmp_path_factory.mktemp("small") / "e"), "npz")


def ids(items):
  return [f"i{item}" for item in items]


def test_a_user_gets_the_best_items_that_are_not_known(recommender):
  for user in range(small.USERS):
    answer = recommender.recommend(f"u{user}", k=7)
    expected = small.best(SCORES[user], KNOWN[user], 7)
    assert answer.items == ids(expected) and answer.source == "user"
    np.testing.assert_allclose(answer.scores, SCORES[user][expected], rtol=1e-5)
  assert len(recommender.recommend("u5").items) == 2


def test_fields_exclude_and_choose(recommender):
  listed = recommender.recommend("u1", k=5).items
  assert recommender.recommend("u1", exclude=listed[:2], k=3).items == listed[2:]
  assert recommender.recommend("u1", history=listed[:1], k=4).items == listed[1:]
  among = recommender.recommend("u1", candidates=[listed[3], listed[1], listed[3], ids(KNOWN[1])[0]])
  assert among.items == [listed[1], listed[3]]
  assert recommender.recommend("u1", candidates=[]).items == []
  assert recommender.recommend("u1", k=10_000).items == ids(small.best(SCORES[1], KNOWN[1], small.ITEMS))


def test_unknown_users_get_popular_items_and_are_told_so(recommender):
  counts = np.bincount(np.concatenate(list(KNOWN.values())).astype(int), minlength=small.ITEMS)
  for user in (None, "nobody", ""):
    answer = recommender.recommend(user, k=6)
    assert answer.source == "popularity"
    assert answer.scores == sorted(counts.tolist(), reverse=True)[:6]
    assert answer.scores == [counts[int(item[1:])] for item in answer.items]
  assert recommender.recommend(candidates=["i3", "i4"]).source == "popularity"
  first = recommender.recommend(k=6).items
  assert recommender.recommend(exclude=first[:1], k=5).items == first[1:]


def test_equal_scores_are_in_the_order_of_priorities():
  rng = np.random.default_rng(0)
  for trial in range(50):
    scores = rng.integers(4, size=30).astype(np.float32)
    scores[rng.integers(30, size=trial % 28)] = -np.inf
    priority = rng.permutation(30)
    expected = sorted((i for i in range(30) if scores[i] > -np.inf), key=lambda i: (-scores[i], priority[i]))
    assert ranking.best(scores, priority, 8).tolist() == expected[:8]
  with pytest.raises(InputError, match="not a number"):
    ranking.best(np.array([1, np.nan], np.float32), np.arange(2), 1)


def test_a_history_without_a_user_is_folded_in(recommender):
  answer = recommender.recommend(history=["i4", "i9", "i30"])
  query = inputs.fold_in(ITEM[[4, 9, 30]])
  assert answer.source == "fold-in" and answer.items == ids(small.best(ITEM @ query, [4, 9, 30], 10))


@pytest.mark.parametrize("n", [1, 3, 5, 12])
def test_fold_in_is_ridge_regression(n):
  """Least squares of the rows [items; sqrt(penalty) I] on [1; 0], by NumPy's solver."""
  items = np.random.default_rng(n).normal(size=(n, 5))
  penalty = 0.1 * sum(float(x) ** 2 for x in items.flat)
  rows = np.concatenate([items, np.sqrt(penalty) * np.eye(5)])
  expected = np.linalg.lstsq(rows, np.array([1.0] * n + [0.0] * 5), rcond=None)[0]
  np.testing.assert_allclose(inputs.fold_in(items.astype(np.float32)), expected, rtol=1e-5, atol=1e-7)


def test_similar_items_have_large_cosines(recommender):
  lengths = [np.sqrt(sum(x * x for x in row)) for row in ITEM.tolist()]
  cosines = [float(ITEM[7] @ ITEM[j]) / lengths[7] / lengths[j] for j in range(small.ITEMS)]
  answer = recommender.similar("i7", k=4)
  assert answer.items == ids(small.best(np.array(cosines), [7], 4))
  np.testing.assert_allclose(answer.scores, sorted(cosines)[-2:-6:-1], rtol=1e-5)
  with pytest.raises(InputError, match="unknown item 'j7'"):
    recommender.similar("j7")


def test_many_requests_are_answered_as_one(recommender):
  many = [Request(f"u{user % 45}", k=1 + user % 12) for user in range(300)]
  many += [Request(history=["i1"]), Request(), Request("u2", candidates=["i1", "i2"])]
  for found, one in zip(recommender.recommend_many(many), many, strict=True):
    alone, = recommender.recommend_many([one])
    assert (found.items, found.source) == (alone.items, alone.source)
    np.testing.assert_allclose(found.scores, alone.scores, rtol=1e-5)  # a product of matrices rounds in another order
  assert recommender.recommend_many([]) == []


def test_a_number_is_the_id_of_its_digits(tmp_path):
  recommender = serving.load(small.write_export(tmp_path / "numbered", users="{}"), "npz")
  answers = [recommender.recommend(user) for user in ("12", 12, np.int64(12), np.str_("12"))]
  assert answers == answers[:1] * 4 and answers[0].source == "user"
  assert answers[0].items == ids(small.best(SCORES[12], KNOWN[12], 10))
  assert recommender.recommend("1 2").source == "popularity"


WRONG = [
    ({"user": ["u1"]}, r"`user`: one id, a text or an integer, is expected, not list; recommend_many takes many"),
    ({"user": True}, "`user`: one id"), ({"user": 1.0}, "`user`: one id"), ({"user": b"u1"}, "`user`: one id"),
    ({"history": "i1"}, "`history`: a list of ids is expected, not 'i1'"), ({"history": 3}, "`history`: a list"),
    ({"exclude": "i1"}, "`exclude`: a list"), ({"candidates": {"i1": 1}}, "`candidates`: a list"),
    ({"history": ["i1", None]}, "`history`: one id"), ({"exclude": ["j1"]}, "`exclude`: unknown item 'j1'"),
    ({"candidates": ["i60"]}, "`candidates`: unknown item 'i60': the export knows 60 items"),
    *(({"k": k}, "`k=") for k in (0, -1, 1.5, float("nan"), "3", True, None, 10**9))]


@pytest.mark.parametrize("fields, said", WRONG, ids=[str(fields) for fields, _ in WRONG])
def test_a_wrong_field_is_named(fields, said, recommender):
  with pytest.raises(InputError, match=said):
    recommender.recommend(**fields)


@pytest.mark.parametrize("many", ["u1", Request("u1"), 7, [("u1",)], ["u1"]])
def test_many_requests_are_a_list_of_them(many, recommender):
  with pytest.raises(InputError, match="`requests`"):
    recommender.recommend_many(many)
