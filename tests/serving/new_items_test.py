"""A new item with features is recommended without training, with the vector that the training code would give it."""

import numpy as np
import pytest
import small_export

from kd_jax import data, serving
from kd_jax.base import InputError
from kd_jax.runs import loop
from kd_jax.serving import export, new_items
from kd_jax.teachers import loading


@pytest.fixture(scope="module")
def trained(small, flags, tmp_path_factory):
  """(module, variables, the vectors of items, an export) of a two-tower model on texts of items."""
  place, dataset = tmp_path_factory.mktemp("content"), data.load(small[0].partition("=")[2])
  texts = np.random.default_rng(0).normal(size=(dataset.num_items, 6)).astype(np.float32)
  np.savez(place / "text.npz", ids=dataset.item_ids, vectors=texts)
  loop.train(flags(*small, "--model=two_tower(dim=4)", f"--features={place / 'text.npz'}", "--epochs=1",
                   f"--workdir={place / 'run'}"))
  list(export.export_run(place / "run", place / "e", formats="npz,stablehlo"))
  return *loading.network(place / "run", dataset), texts, place / "e"


@pytest.mark.parametrize("format", ["npz", "stablehlo"])
def test_its_vector_is_that_of_an_untrained_item(format, trained):
  module, variables, texts, directory = trained
  recommender = serving.load(directory, format, trial=False)
  chosen = [3, 17, 40]
  untrained = dict(variables["constants"]["item"], trained=np.zeros(len(texts), bool))
  constants = dict(variables["constants"], item=untrained)
  expected = np.asarray(module.apply(variables | {"constants": constants}, method="tables")[1])[chosen]
  named = ["new 0", "new 1", "new 2"]
  more = new_items.add(recommender, named, {"text": 5 * texts[chosen]})  # only the direction counts
  np.testing.assert_allclose(more.contents.weights["item"][-3:], expected, rtol=1e-4, atol=1e-6)
  user = recommender.contents.user_ids[2]
  own = recommender.contents.weights["user"][2]
  answer = more.recommend(user, candidates=["new 2", "new 0", "new 1"])
  order = np.argsort(-(expected @ own))
  assert answer.items == [f"new {number}" for number in order] and answer.source == "user"
  np.testing.assert_allclose(answer.scores, (expected @ own)[order], rtol=1e-4, atol=1e-6)
  assert {*more.recommend(user, k=10_000).items} == {*recommender.recommend(user, k=10_000).items, *named}
  assert more.similar("new 1", k=3).items and "new 1" not in recommender.contents.item_ids


WRONG = (({}, "expected are text"), ({"text": [[1] * 6] * 2}, r"text: numbers of shape \(1, 6\)"),
         ({"text": [[1, float("nan"), 1, 1, 1, 1]]}, "text: numbers"), ({"text": [[1e200] * 6]}, "below 1e\\+15"),
         ({"text": [[1] * 6, [1]]}, "text: numbers"), ({"text": [[1] * 6], "image": [[1]]}, "expected are text"))


def test_wrong_features_are_named(trained, tmp_path):
  _, _, texts, directory = trained
  recommender = serving.load(directory, "npz")
  for features, said in WRONG:
    with pytest.raises(InputError, match=said):
      new_items.add(recommender, ["new"], features)
  for ids in ("new", [], ["a", "a", "b"], [1, 2, 3], [*recommender.contents.item_ids[:1], "a", "b"]):
    with pytest.raises(InputError, match="`new_items`: a list of distinct ids"):
      new_items.add(recommender, ids, {"text": texts[:3]})
  with pytest.raises(InputError, match="cannot make vectors of new items"):
    new_items.add(serving.load(small_export.write_export(tmp_path / "e"), "npz"), ["new"], {})


def test_the_service_recommends_it_with_its_features(trained, tmp_path):
  """The list over HTTP is that of the library; what is wrong gets a reason; other requests do not know the items."""
  service_test = pytest.importorskip("service_test")
  _, _, texts, directory = trained
  service = service_test.Service(tmp_path, f"--export={directory}", "--format=npz")
  try:
    assert service.wait()["models"]["a"]["new_items"] == {"vectors": {"text": 6}, "categories": {}}
    recommender = serving.load(directory, "npz", trial=False)
    user, clicked = recommender.contents.user_ids[3], recommender.contents.item_ids[7]
    new = {"ids": ["new 0", 17], "vectors": {"text": texts[[3, 17]].tolist()}}
    more = new_items.add(recommender, ["new 0", "17"], new["vectors"])
    for asked in ({"user": user, "k": 400}, {"user": user, "candidates": ["17", "new 0", clicked]},
                  {"history": ["new 0", clicked], "k": 5}, {"user": user, "exclude": [17], "k": 400}):
      status, reply = service.ask("/recommend", asked | {"new_items": new})
      assert status == 200 and service_test.seen(reply) == service_test.expected(more.recommend(**asked))
    status, reply = service.ask("/recommend", {"user": user, "new_items": new, "candidates": ["17", "new 0"]})
    assert {item["id"] for item in reply["items"]} == {"17", "new 0"} and reply["source"] == "user"
    assert service.ask("/recommend", {"user": user, "candidates": ["new 0"]})[0] == 422
    wrong = [{"ids": ["new"], "vectors": features} for features, _ in WRONG] + [
        new | {"ids": []}, new | {"ids": [clicked, "x"]}, new | {"ids": ["x", "x"]}, new | {"ids": ["x"] * 101},
        new | {"ids": [["x"]]}, new | {"vectors": {"text": "x"}}, new | {"vectors": {"text": [["1"] * 6] * 2}},
        new | {"vectors": {"text": [[10**400] * 6] * 2}}, new | {"categories": {"genre": [0, 1]}}, {}, [], "x"]
    for each in wrong:
      status, reply = service.ask("/recommend", {"user": user, "new_items": each})
      assert status == 422 and 3 < len(reply["detail"]) < 600, each
  finally:
    service.stop()
