"""MovieLens from archives of GroupLens' layout that these tests write; the real archives were not at hand."""

import hashlib
import pathlib
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import ROOT

from kd_jax import data
from kd_jax.base import InputError
from kd_jax.data import _grouplens

ALL = ("train", "validation", "test")
NAMES = {"movielens_1m": "ml-1m", "movielens_20m": "ml-20m", "movielens_25m": "ml-25m",
         "movielens_latest_small": "ml-latest-small"}


def made(half, seed=0):
  rng = np.random.default_rng(seed)
  pairs = sorted({(int(u), int(i)) for u, i in rng.integers((1, 1), (30, 50), size=(900, 2))})
  stars = rng.integers(1, 11, len(pairs)) / 2 if half else rng.integers(1, 6, len(pairs))
  return [(u, i, x, 10**9 + int(rng.integers(40))) for (u, i), x in zip(pairs, stars.tolist(), strict=True)]


def write(folder, name, rows, monkeypatch, member=None):
  """An archive with a file of ratings and others, whose sha256 is the expected one."""
  old = name == "ml-1m"
  text = "" if old else "userId,movieId,rating,timestamp\n"
  text += "".join(("::" if old else ",").join(map(str, row)) + "\n" for row in rows)
  with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr(f"{name}/README.txt", "Summary\n")
    archive.writestr(member or f"{name}/ratings.{'dat' if old else 'csv'}", text)
    archive.writestr(f"{name}/movies.csv", b"1,\xe9,Drama\n")
  monkeypatch.setitem(_grouplens.SHA256, name, hashlib.sha256((folder / f"{name}.zip").read_bytes()).hexdigest())


def pairs_of(dataset, split):
  part = getattr(dataset, split)
  return set(zip(dataset.user_ids[part.users].tolist(), dataset.item_ids[part.items].tolist(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_ratings_of_an_archive(tmp_path, monkeypatch, capfd, name):
  rows = made(half=name != "movielens_1m")
  write(tmp_path, NAMES[name], rows, monkeypatch)
  loaded = data.load(name, data_dir=tmp_path, cache_dir=tmp_path / "cache", splits=ALL)
  assert "neither be redistributed nor used commercially" in capfd.readouterr().err
  found = [pairs_of(loaded, split) for split in ALL]
  assert set.union(*found) == {(str(u), str(i)) for u, i, stars, _ in rows if stars >= 4}
  assert loaded.report["cleaning"]["below_min_rating"] == sum(stars < 4 for _, _, stars, _ in rows) > 0
  everything = data.load(f"{name}(min_rating=None, split='temporal')", tmp_path, tmp_path / "cache", ALL)
  last = {(str(u), str(i)) for u, i, _, time in rows if time >= everything.report["audit"]["first_test_second"]}
  assert pairs_of(everything, "test") == last and sum(len(pairs_of(everything, x)) for x in ALL) == len(rows)


def test_the_order_of_rows_does_not_matter(tmp_path, monkeypatch):
  rows, hashes = made(half=False), []
  for folder, shuffled in ((tmp_path / "a", rows), (tmp_path / "b", rows[::-1])):
    folder.mkdir()
    write(folder, "ml-1m", shuffled, monkeypatch)
    hashes.append(data.load("movielens_1m(split='loo_last')", folder, folder / "cache").hashes)
  assert hashes[0] == hashes[1]
  with pytest.raises(InputError, match="split='position': the order of the rows of ml-1m means nothing"):
    data.load("movielens_1m(split='position')", tmp_path / "a", tmp_path / "cache")


def test_another_archive_is_refused(tmp_path, monkeypatch):
  write(tmp_path, "ml-25m", made(half=True), monkeypatch)
  monkeypatch.undo()
  with pytest.raises(InputError, match=r"^`data`: .*ml-25m\.zip: sha256 .* is not the expected 8b21cfb7[^\n]*$"):
    data.load("movielens_25m", tmp_path, tmp_path / "cache")
  write(tmp_path, "ml-20m", made(half=True), monkeypatch, member="ratings.csv")
  with pytest.raises(InputError, match=r"ml-20m\.zip: the archive has no ml-20m/ratings\.csv$"):
    data.load("movielens_20m", tmp_path, tmp_path / "cache")


def test_the_hashes_are_those_of_tensorflow_datasets():
  lines = (pathlib.Path(tfds.__file__).parent / "url_checksums/movielens.txt").read_text().splitlines()
  known = {line.split("\t")[0]: line.split("\t")[2] for line in lines}
  assert _grouplens.SHA256 == {
      name: known[f"https://files.grouplens.org/datasets/movielens/{name}.zip"] for name in NAMES.values()}
  for name in NAMES:
    text = (ROOT / f"kd_jax/data/{name}.py").read_text()
    assert _grouplens.SHA256[NAMES[name]][:8] + "..." in text and text.count("\n") <= 20
