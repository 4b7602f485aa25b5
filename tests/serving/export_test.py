"""An export answers as the training code does in every format, and holds no more than it needs."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from kd_jax import cli, data, serving
from kd_jax.base import InputError
from kd_jax.runs import compress, loop
from kd_jax.serving import export
from kd_jax.serving.requests import Request
from kd_jax.storage import sealed
from kd_jax.teachers import loading

DATA = "synthetic(users=1000, items=300, interactions_per_user=16)"
MODELS = {"mf": "mf(dim=8)", "ease": "ease()", "sasrec": "sasrec(dim=8, length=6, blocks=1)",
          "neumf": "neumf(dim=2, layers=1)", "pop": "pop()"}
ALL = "stablehlo,onnx,npz"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="module")
def run(place, flags):
  """run("mf"): the directory of a run of this model, made when it is first asked for."""
  def made(name):
    directory = place / name
    if not directory.exists():
      loop.train(flags(f"--data={DATA}", f"--model={MODELS[name]}", "--epochs=1", "--batch_size=2048",
                       "--learning_rate=0.05", f"--workdir={directory}"))
    return directory

  return made


@pytest.fixture(scope="module")
def exported(place, run):
  """exported("mf", history="train", ...): the directory of an export, made when it is first asked for."""
  def made(name, **options):
    directory = place / f"exported {name} {sorted(options.items())}".replace("/", "")
    if not directory.exists():
      list(export.export_run(run(name), directory, **options))
    return directory

  return made


@pytest.fixture(scope="module")
def dataset():
  return data.load(DATA)


def lists(recommender, users, k=10):
  return recommender.recommend_many([Request(user, k=k) for user in users])


@pytest.mark.parametrize("name, format", [*(("mf", x) for x in ALL.split(",")), *((x, "stablehlo") for x in MODELS
                                                                                 if x != "mf")])
def test_a_thousand_users_get_the_list_of_the_training_code(name, format, exported, run, dataset):
  fitted = loading.open_run(run(name), dataset)
  expected = fitted.top_k(10)
  recommender = serving.load(exported(name, history="train", formats=ALL if name == "mf" else "stablehlo"), format,
                             trial=False)
  found = lists(recommender, dataset.user_ids)
  assert len(found) == 1000 and {answer.source for answer in found} == {"user"}
  scores = np.array([answer.scores for answer in found])
  np.testing.assert_allclose(scores, expected.scores, rtol=1e-5, atol=1e-5)
  own = np.array([[int(np.flatnonzero(dataset.item_ids == item)[0]) for item in answer.items] for answer in found])
  differ = own != expected.items
  near = np.isclose(expected.scores[:, 1:], expected.scores[:, :-1], rtol=1e-6, atol=1e-6)
  tied = np.pad(near, ((0, 0), (1, 0))) | np.pad(near, ((0, 0), (0, 1)), constant_values=True)
  assert not (differ & ~tied).any() and differ.mean() < 0.01


def test_items_of_validation_are_not_recommended_unless_it_is_asked_for(exported, dataset):
  held = {(user, item) for user, item in zip(dataset.validation.users, dataset.validation.items, strict=True)}
  counts = {}
  for history in ("train", "train+validation"):
    recommender = serving.load(exported("mf", history=history, formats=ALL), "npz")
    listed = {(place, int(np.flatnonzero(dataset.item_ids == item)[0]))
              for place, answer in enumerate(lists(recommender, dataset.user_ids[:300])) for item in answer.items}
    counts[history] = len(listed & held)
  assert counts["train"] > 0 == counts["train+validation"]
  default = serving.load(exported("mf"), trial=False)
  assert default.metadata["history"] == "train+validation"


@pytest.mark.parametrize("name", ["sasrec"])
def test_a_session_is_read_click_by_click(name, exported, run, dataset):
  """The training code's scores for a user whose history is the session are the answer to the session."""
  recommender = serving.load(exported(name, history="train"), trial=False)
  user = 7
  own = dataset.item_ids[recommender.contents.history(user)].tolist()
  known = recommender.recommend(dataset.user_ids[user])
  session = recommender.recommend(history=own)
  assert session.items == known.items and session.source == "history"
  np.testing.assert_allclose(session.scores, known.scores, rtol=1e-5)
  click = known.items[-1]
  after = recommender.recommend(dataset.user_ids[user], history=[click])
  assert click not in after.items and after.source == "user"
  assert after == recommender.recommend(history=[*own, click])._replace(source="user")
  changed = dataset._replace(train=dataset.train._replace(
      users=np.append(dataset.train.users, np.int32(user)),
      items=np.append(dataset.train.items, np.int32(np.flatnonzero(dataset.item_ids == click)[0])),
      timestamps=None if dataset.train.timestamps is None else np.append(dataset.train.timestamps, 2**40),
      ratings=None if dataset.train.ratings is None else np.append(dataset.train.ratings, np.float32(5))))
  module, variables = loading.network(run(name), changed)
  scores = np.asarray(module.apply(variables, {"users": np.array([user])}).scores)[0]
  expected = scores[[int(np.flatnonzero(dataset.item_ids == item)[0]) for item in after.items]]
  np.testing.assert_allclose(after.scores, expected, rtol=1e-4, atol=1e-5)
  assert recommender.recommend(history=[]).source == "popularity"


def test_a_set_of_items_is_scored_without_a_user(exported):
  recommender = serving.load(exported("ease", history="train"), trial=False)
  contents = recommender.contents
  user = int(np.argmax(np.diff(contents.history_starts)))
  own = [contents.item_ids[item] for item in contents.history(user)]
  found = recommender.recommend(history=own[::-1])
  known = recommender.recommend(contents.user_ids[user])
  assert found.items == known.items
  np.testing.assert_allclose(found.scores, known.scores, rtol=1e-5, atol=1e-6)


FRESH = """
import json, sys
from kd_jax import serving
recommender = serving.load(sys.argv[1], sys.argv[2], trial=False)
answer = recommender.recommend(recommender.contents.user_ids[3])
print(json.dumps([answer.items, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


@pytest.mark.parametrize("format, absent", [("npz", {"jax", "flax", "optax", "orbax", "scipy", "onnx"}),
                                            ("onnx", {"jax", "flax", "optax", "orbax", "scipy", "onnx"}),
                                            ("stablehlo", {"flax", "optax", "orbax"})])
def test_a_fresh_process_needs_no_training_code(format, absent, exported):
  directory = exported("mf", history="train", formats=ALL)
  done = subprocess.run([sys.executable, "-c", FRESH, directory, format], capture_output=True, text=True, check=True)
  items, modules = json.loads(done.stdout)
  assert not absent & set(modules)
  assert items == serving.load(directory, "npz").recommend(
      serving.load(directory, "npz").contents.user_ids[3]).items


def test_the_size_follows_the_interactions(tmp_path):
  """One user with 1,500 items among 3,000: a row of 1,500 for everybody would be 18 MB."""
  rng, lines = np.random.default_rng(0), ["user,item"]
  for user in range(3000):
    taken = rng.choice(1600, 1500 if user == 0 else 4, replace=False)
    lines += [f"u{user},i{item}" for item in taken]
  (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
  loop.train(cli.parse_fit([f"--data=interactions(path={str(tmp_path / 'log.csv')!r})", "--model=pop()",
                            f"--workdir={tmp_path / 'run'}", f"--cache_dir={tmp_path / 'cache'}"]))
  list(export.export_run(tmp_path / "run", tmp_path / "out", cache_dir=tmp_path / "cache"))
  sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()}
  interactions, users, items = len(lines) - 1, 3000, 1600
  assert sizes["history_items.npy"] < 4 * interactions + 200
  assert sizes["program.stablehlo"] < 10_000
  assert sum(sizes.values()) < 4 * interactions + 8 * users + 12 * users + 40 * items + 30_000
  assert_no_path_is_told(tmp_path / "out", tmp_path)


def assert_no_path_is_told(directory, *paths):
  package = pathlib.Path(export.__file__).parents[2]
  for file in directory.rglob("*"):
    for path in (package, *paths):
      assert not file.is_file() or os.fspath(path).encode() not in file.read_bytes(), (file, path)


@pytest.mark.parametrize("name", ["mf", "sasrec", "neumf"])
def test_no_path_of_this_machine_is_told(name, exported, place):
  assert_no_path_is_told(exported(name, history="train", formats=ALL if name == "mf" else "stablehlo"), place)


def test_the_manifest_and_the_card_say_what_it_is(exported, run):
  directory = exported("mf", history="train", formats=ALL)
  metadata = sealed.read(directory, "export")
  assert metadata["jax"] == jax.__version__ and metadata["synthetic"] and metadata["formats"] == ALL.split(",")
  card = (directory / "README.md").read_text()
  headings = [line.removeprefix("## ") for line in card.splitlines() if line.startswith("## ")]
  assert headings == ["Use", "Data", "Training", "Quality", "Size", "Limits"]
  for said in ("mf(dim=8)", "1,000 users, 300 items", "generated data", "ndcg@10", "weights/item.npy",
               metadata["checkpoint"]):
    assert said in card


def test_int8_keeps_the_lists(exported, dataset):
  exact = serving.load(exported("mf", history="train", formats=ALL), "npz")
  small = exported("mf", history="train", formats=ALL, compress="int8()")
  found = {}
  for format in ALL.split(","):
    answers = lists(serving.load(small, format, trial=False), dataset.user_ids[:200])
    shares = [len({*a.items} & {*b.items}) / 10 for a, b in zip(
        answers, lists(exact, dataset.user_ids[:200]), strict=True)]
    found[format] = [answer.items for answer in answers]
    assert np.mean(shares) >= 0.95
  assert found["npz"] == found["onnx"] == found["stablehlo"]
  ratio = sum((small / "weights" / name).stat().st_size for name in os.listdir(small / "weights")) / sum(
      x.nbytes for x in exact.contents.weights.values())
  assert ratio < 0.25 + 4 / (4 * 8) + 0.02 and sealed.read(small, "export")["measured"]["overlap@10"] >= 0.95


def test_int8_is_that_of_a_compressed_run(run, exported, tmp_path):
  """Exporting in int8 gives the tables that the run has after scripts/compress.py, number for number."""
  compress.compress_run(run("mf"), "int8()", tmp_path / "run")
  list(export.export_run(tmp_path / "run", tmp_path / "e", formats="npz"))
  small = serving.load(exported("mf", history="train", formats=ALL, compress="int8()"), "npz").contents.weights
  for name, table in serving.load(tmp_path / "e").contents.weights.items():
    integers, scale = small[name], small[f"{name}_scale"]
    assert integers.dtype == np.int8 and scale.dtype == table.dtype == np.float32
    np.testing.assert_array_equal(integers * scale[:, None], table)


@pytest.mark.parametrize("options, said", [
    ({"formats": "savedmodel"}, "`format=savedmodel`: choose from stablehlo, onnx, npz"),
    ({"formats": "npz,npz"}, "each at most once"), ({"history": "all"}, "`history=all`"),
    ({"compress": "int4()"}, "`compress=int4()`"), ({"approximately": "faiss"}, "`index=faiss`"),
    ({"titles": "nowhere.csv"}, "`titles=nowhere.csv`")])
def test_a_wrong_option_is_named(options, said, run, tmp_path):
  with pytest.raises(InputError) as error:
    list(export.export_run(run("mf"), tmp_path / "out", **options))
  assert said in str(error.value) and os.listdir(tmp_path) == []


@pytest.mark.parametrize("options", [{"formats": "npz"}, {"formats": "stablehlo,onnx"}, {"compress": "int8()"},
                                     {"approximately": "hnsw"}])
def test_what_needs_inner_products_is_refused_for_others(options, run, tmp_path):
  with pytest.raises(InputError, match="inner products"):
    list(export.export_run(run("pop"), tmp_path / "out", **options))
  assert os.listdir(tmp_path) == []


def test_titles_are_those_of_the_file(run, tmp_path, dataset):
  (tmp_path / "titles.csv").write_text(f'item,title\n{dataset.item_ids[4]},"A, and B"\nunknown,C\n')
  list(export.export_run(run("mf"), tmp_path / "out", formats="npz", titles=tmp_path / "titles.csv"))
  assert serving.load(tmp_path / "out").contents.titles == {dataset.item_ids[4]: "A, and B"}
  (tmp_path / "titles.csv").write_text("id,name\n1,2\n")
  with pytest.raises(InputError, match="needs the columns item and title"):
    list(export.export_run(run("mf"), tmp_path / "out", titles=tmp_path / "titles.csv"))


def test_an_export_that_is_there_is_replaced_or_kept(run, tmp_path, monkeypatch):
  list(export.export_run(run("pop"), tmp_path / "out"))
  before = (tmp_path / "out" / "manifest.sha256").read_bytes()
  monkeypatch.setattr(export.card, "write", lambda *_: (_ for _ in ()).throw(InputError("no card")))
  with pytest.raises(InputError, match="no card"):
    list(export.export_run(run("pop"), tmp_path / "out"))
  assert (tmp_path / "out" / "manifest.sha256").read_bytes() == before
  assert [path.name for path in pathlib.Path(tmp_path).iterdir()] == ["out"]


@pytest.mark.slow
def test_the_size_of_an_export_follows_interactions_and_not_the_longest_history(flags, tmp_path):
  """100,000 users with two items, and one with 4,000: a table of users and their items would have 1.6 GB."""
  pairs = [f"u{user},i{(user + more) % 5000}" for user in range(1, 100_000) for more in (0, 1)]
  pairs += [f"u0,i{item}" for item in range(4000)]
  (tmp_path / "log.csv").write_text("\n".join(["user,item", *pairs]) + "\n")
  loop.train(flags(f"--data=interactions(path='{tmp_path / 'log.csv'}')", "--model=mf(dim=2)", "--epochs=1",
                   "--batch_size=65536", "--monitor=epoch", f"--workdir={tmp_path / 'run'}"))
  list(export.export_run(tmp_path / "run", tmp_path / "e", formats="npz"))
  files = {path.name: path.stat().st_size for path in (tmp_path / "e").rglob("*") if path.is_file()}
  recommender = serving.load(tmp_path / "e", "npz")
  known = len(recommender.contents.history_items)
  assert files["history_items.npy"] == pytest.approx(4 * known, abs=200)
  assert files["history_starts.npy"] == pytest.approx(8 * 100_001, abs=200)
  assert sum(files.values()) < 5e6
  longest = np.diff(recommender.contents.history_starts).max()
  assert 3000 < longest <= 4000 and len(recommender.recommend("u0", k=5000).items) == 5000 - longest
