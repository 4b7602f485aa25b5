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


def test_wrong_features_are_named(trained, tmp_path):
  _, _, texts, directory = trained
  recommender = serving.load(directory, "npz")
  for ids, features, said in (
      (["new"], {}, "expected are text"), (["new"], {"text": texts[:2]}, r"text: finite numbers of shape \(1, 6\)"),
      (["new"], {"text": np.full((1, 6), np.nan)}, "finite"), ("new", {"text": texts[:3]}, "`ids`"),
      (["a", "a"], {"text": texts[:2]}, "`ids`"), (recommender.contents.item_ids[:1], {"text": texts[:1]}, "`ids`")):
    with pytest.raises(InputError, match=said):
      new_items.add(recommender, ids, features)
  with pytest.raises(InputError, match="cannot make vectors of new items"):
    new_items.add(serving.load(small_export.write_export(tmp_path / "e"), "npz"), ["new"], {})
