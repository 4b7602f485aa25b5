"""The audit of protocols: leaks, the model that it measures with, and the numbers of docs/audit.md."""

import pathlib
import re

import numpy as np
import pytest

from kd_jax.base import InputError, Interactions
from kd_jax.evaluation import protocol_audit

PAGE = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "audit.md").read_text()
SMALL = "synthetic(users=80, items=240, interactions_per_user=16)"


def test_leaks_are_interactions_that_two_splits_share(make_dataset):
  dataset = make_dataset(num_users=20, num_items=40, train=8, validation=2, test=2)
  assert protocol_audit.leaks(dataset) == {"train and validation": 0, "train and test": 0, "validation and test": 0}
  test = Interactions(np.concatenate([dataset.test.users, dataset.train.users[:3]]),
                      np.concatenate([dataset.test.items, dataset.train.items[:3]]))
  assert protocol_audit.leaks(dataset._replace(test=test)) == {
      "train and validation": 0, "train and test": 3, "validation and test": 0}


def test_the_model_is_the_best_approximation_of_its_rank(make_dataset):
  dataset = make_dataset(num_users=20, num_items=30, train=8, validation=2, test=2)
  matrix = np.zeros((20, 30))
  matrix[dataset.train.users, dataset.train.items] = 1
  left, values, right = np.linalg.svd(matrix)
  expected = (left[:, :5] * values[:5]) @ right[:5]
  params = protocol_audit.pure_svd(dataset, 5)[1]["params"]
  np.testing.assert_allclose(params["user"] @ params["item"].T, expected, atol=1e-5)
  again = protocol_audit.pure_svd(dataset, 5)[1]["params"]
  assert all(np.array_equal(params[k], again[k]) for k in params)


def test_the_audit_of_a_split_that_is_drawn():
  found = protocol_audit.run(SMALL, factors=8, split_seeds=2)
  assert found["full"]["recall@10"] == found["split_seeds"][0]["recall@10"] != found["split_seeds"][1]["recall@10"]
  n, = {int(re.search(r"sampled (\d+)\)", name)[1]) for name in found["sampled"]}
  assert found["sampled"][f"recall@10(sampled {n})"] >= found["full"]["recall@10"] > 0
  text = protocol_audit.describe(found)
  for words in ("PureSVD, 8 factors", "over 2 seeds of the split", "shared by two splits: train and validation 0"):
    assert words in text


def test_labelled_data_is_refused(tmp_path, monkeypatch):
  dataset = type("Labelled", (), {"contexts": {}})
  monkeypatch.setattr(protocol_audit.data, "load", lambda *_, **__: dataset)
  with pytest.raises(InputError, match="labelled"):
    protocol_audit.run("synthetic()")


@pytest.mark.parametrize("command", re.findall(r"^python scripts/audit\.py .*$", PAGE, re.MULTILINE))
def test_the_page_says_what_the_command_says(command, real_data):
  call = re.search(r'--data="(.+?)"', command)[1]
  said = PAGE.partition(command)[2].partition("```text\n")[2].partition("```")[0].splitlines()
  found = protocol_audit.run(call, factors=0, data_dir=real_data)
  assert protocol_audit.describe(found).splitlines() == said[: len(said) - sum("recall@10" in line for line in said)]
  share = f"{found['counts']['cold_test_share']:.1%}".replace("%", " %")
  split = re.search(r"split='(\w+)'", call)[1]
  row, = re.findall(rf"^\| `{split}` .*$", PAGE, re.MULTILINE)
  assert f"| {share} |" in row
