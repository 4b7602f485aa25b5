"""Feature vectors from files: matched by id, refused in one line where wrong, pinned by hash in a run."""

import json
import shutil

import numpy as np
import pytest

from kd_jax import data, serving
from kd_jax.base import InputError
from kd_jax.data import feature_files
from kd_jax.evaluation import run_report
from kd_jax.runs import loop
from kd_jax.serving import export
from kd_jax.storage import checkpoint, run_directory
from kd_jax.teachers import loading

MODEL = "--model=two_tower(dim=4)"
RRD = "--kd=0.5*rrd(k=5, uninteresting=5, depth=30)"


@pytest.fixture(scope="module")
def dataset(small):
  return data.load(small[0].partition("=")[2])


@pytest.fixture(scope="module")
def vectors(dataset, tmp_path_factory):
  """A file with a vector for every item."""
  path = tmp_path_factory.mktemp("features") / "text.npz"
  rng = np.random.default_rng(0)
  np.savez(path, ids=dataset.item_ids, vectors=rng.normal(size=(dataset.num_items, 6)))
  return path


@pytest.fixture
def train(flags, small, tmp_path):
  def run(name, *own):
    loop.train(flags(*small, MODEL, f"--workdir={tmp_path / name}", *own))
    return tmp_path / name

  return run


def test_rows_are_matched_by_id_and_zeros_stand_for_what_is_not_known(dataset, tmp_path):
  ids = [dataset.item_ids[5], "stranger", dataset.item_ids[2]]
  np.savez(tmp_path / "a.npz", ids=np.array(ids), vectors=np.array([[1, 2], [3, 4], [5, 6]]))
  ordered = np.random.default_rng(1).normal(size=(dataset.num_users, 3)).astype(np.float32)
  np.save(tmp_path / "b.npy", ordered)
  flags = {"features": str(tmp_path / "a.npz"), "user_features": str(tmp_path / "b.npy")}
  found, used = feature_files.attach(dataset, flags)
  expected = np.zeros((dataset.num_items, 2), np.float32)
  expected[5], expected[2] = (1, 2), (5, 6)
  assert np.array_equal(found.item_features.vectors["a"], expected)
  assert np.array_equal(found.user_features.vectors["b"], ordered)
  assert [file["known"] for file in used] == [2, dataset.num_users]
  assert f"2 of {dataset.num_items} items" in feature_files.describe(dataset, used)[0]
  again = feature_files.reattach(dataset, json.loads(json.dumps(used)), "a run")
  assert np.array_equal(again.item_features.vectors["a"], expected)


def test_numbers_as_ids_are_the_text_of_them(make_dataset, tmp_path):
  dataset = make_dataset(num_items=20)
  np.savez(tmp_path / "n.npz", ids=np.arange(20)[::-1], vectors=np.arange(20.0)[:, None])
  found, _ = feature_files.attach(dataset, {"features": str(tmp_path / "n.npz")})
  assert found.item_features.vectors["n"][:, 0].tolist() == list(range(20))[::-1]


IDS = np.array(["i0", "i1"])
BAD = {
    "expected numbers": {"vectors": np.zeros(2), "ids": IDS},
    "row 1 .* not a finite float32": {"vectors": np.array([[1.0], [np.nan]]), "ids": IDS},
    "row 0 .* not a finite": {"vectors": np.array([[1e300], [1.0]]), "ids": IDS},
    "id 'i0' is there twice": {"vectors": np.ones((2, 1)), "ids": np.array(["i0", "i0"])},
    "expected text or integers": {"vectors": np.ones((2, 1)), "ids": np.array([0.5, 1.5])},
    "none of its ids, such as 'x'": {"vectors": np.ones((2, 1)), "ids": np.array(["x", "y"])},
    "holds vectors; expected ids and vectors": {"vectors": np.ones((2, 1))},
    "cannot be read": {"vectors": np.array([{}, {}]), "ids": IDS},
}


@pytest.mark.parametrize("message", BAD)
def test_wrong_files_are_refused_in_one_line(dataset, tmp_path, message):
  np.savez(tmp_path / "bad.npz", **BAD[message])
  with pytest.raises(InputError, match=f"`features=.*bad.npz`: .*{message}") as error:
    feature_files.attach(dataset, {"features": str(tmp_path / "bad.npz")})
  assert "\n" not in str(error.value)


def test_files_that_are_none_are_refused(dataset, vectors, tmp_path):
  np.save(tmp_path / "short.npy", np.ones((7, 2)))
  (tmp_path / "torn.npz").write_bytes(vectors.read_bytes()[:100])
  (tmp_path / "header.npy").write_bytes((tmp_path / "short.npy").read_bytes().replace(b"{'descr'", b"{{{{{{{{"))
  for name, message in (("none.npy", "no such file"), ("short.npy", f"7 rows, but the data has {dataset.num_items}"),
                        ("torn.npz", "cannot be read"), ("header.npy", "cannot be read"),
                        ("text.csv", "a file .npy, or .npz")):
    with pytest.raises(InputError, match=f"`features=.*{name}`: .*{message}"):
      feature_files.attach(dataset, {"features": str(tmp_path / name)})
  with pytest.raises(InputError, match="there are features 'text' of items already"):
    feature_files.attach(dataset, {"features": f"{vectors},{vectors}"})


def test_a_model_without_use_for_features_and_one_without_features_are_refused(train, vectors, tmp_path):
  with pytest.raises(InputError, match=r"`features`: `model=mf\(dim=4\)` has no use for it"):
    train("run", "--model=mf(dim=4)", f"--features={vectors}")
  with pytest.raises(InputError, match="ids=False leaves nothing"):
    train("run", "--model=two_tower(ids=False)")
  assert not (tmp_path / "run").exists()


def test_a_run_finds_the_features_that_it_was_trained_with(train, vectors, tmp_path, dataset):
  own = tmp_path / "text.npz"
  own.write_bytes(vectors.read_bytes())
  directory = train("run", f"--features={own}", "--epochs=1")
  assert run_directory.read_info(directory)["features"][0]["path"] == str(own)
  whole = train("whole", f"--features={own}")
  assert best_parameters(train("run", f"--features={own}")) == best_parameters(whole)  # gone on with
  assert list(export.export_run(str(directory), str(tmp_path / "exported")))
  other = np.load(own)
  np.savez(own, ids=other["ids"], vectors=other["vectors"] + 1)
  with pytest.raises(InputError, match=r"run: its features .*text\.npz have changed since"):
    run_report.evaluate_run(str(directory))
  with pytest.raises(InputError, match=r"run: its features .* have changed since"):
    train("student", "--model=mf(dim=4)", RRD, f"--teacher={directory}")
  with pytest.raises(InputError, match="its run used other features"):
    train("run", f"--features={own}", "--epochs=5")
  own.unlink()
  with pytest.raises(InputError, match=r"run: its features .*text\.npz are missing"):
    run_report.evaluate_run(str(directory))
  recommender = serving.load(tmp_path / "exported", trial=False)  # needs neither features nor code of the model
  assert len(recommender.recommend(dataset.user_ids[0], k=5).items) == 5
  size = sum(path.stat().st_size for path in (tmp_path / "exported" / "weights").iterdir())
  assert size < 4 * 4 * (dataset.num_users + dataset.num_items) * 10


def test_a_run_on_cold_items_is_told_how_it_does_on_them(flags, tmp_path):
  data_call = "synthetic(users=60, items=120, interactions_per_user=16, split='cold_items', ratios=(0.6, 0.2, 0.2))"
  loop.train(flags(f"--data={data_call}", "--model=pop()", f"--workdir={tmp_path / 'run'}"))
  found = run_report.evaluate_run(str(tmp_path / "run"))["metrics"]
  lost = data.load(data_call, splits=("train", "test"))
  never = len(set(lost.test.items.tolist()) - set(lost.train.items.tolist()))
  assert never >= 20 and found["recall@5(cold)"] < found["recall@5"] < found["recall@5(warm)"]


def best_parameters(directory):
  best, _ = checkpoint.restore_best(directory)
  return {name: value.tobytes() for name, value in best["student"]["item"].items()}


def test_a_teacher_with_content_teaches_a_student_of_ids_and_the_other_way_round(train, vectors, dataset, teacher):
  content = train("content", f"--features={vectors}", "--model=two_tower(dim=4, ids=False)")
  student = train("student", "--model=mf(dim=4)", RRD, f"--teacher={content}")
  loss = [next(v for k, v in line["loss"].items() if k != "base") for line in run_directory.read_metrics(student)]
  assert 0 < loss[-1] < loss[0]
  assert run_directory.read_info(student)["features"] == []
  module, variables = loading.network(str(content), dataset)
  assert module.item_features.vectors == (("text", 6),)
  np.testing.assert_allclose(np.linalg.norm(variables["constants"]["item"]["text"], axis=1), 1, rtol=1e-5)
  with pytest.raises(InputError, match=r"content: saw other item_features than .* give `data="):
    loading.load(str(content), dataset._replace(hashes=dataset.hashes | {"item_features": "0"}))
  own = shutil.copy(vectors, content / "own.npz")
  back = [f"--features={own}", "--model=two_tower(dim=4, ids=False)", RRD, f"--teacher={teacher}"]
  assert run_directory.read_info(train("back", *back))["features"][0]["known"] == dataset.num_items
  with open(own, "ab") as file:
    file.write(b"x")
  with pytest.raises(InputError, match=r"its features .*own.npz have changed since"):
    train("back", *back)
