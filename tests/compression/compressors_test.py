"""Compressors against NumPy and SciPy: what is stored, what is computed with, and that chains undo themselves."""

import itertools

import numpy as np
import pytest

import kd_jax
from kd_jax import registry
from kd_jax.base import Compressor, InputError
from kd_jax.compression import _chain

ROWS, WIDTH = 300, 32
RNG = np.random.default_rng(0)
USER = (RNG.normal(size=(ROWS, WIDTH)) * np.geomspace(1e-3, 3, ROWS)[:, None]).astype(np.float32)
ITEM = RNG.normal(size=(500, WIDTH)).astype(np.float32)
PARAMETERS = {"user": USER, "item": ITEM, "bias": RNG.normal(size=500).astype(np.float32),
              "layer/kernel": RNG.normal(size=(21, 9)).astype(np.float32)}
POPULARITY = {"user": RNG.integers(0, 40, ROWS), "item": RNG.integers(0, 40, 500)}
NAMES = registry.names("compression")


def chain(text):
  calls = [call for _, call in registry.parse_sum("compression", text, "compress")]
  return [(str(call), registry.build("compression", call)) for call in calls]


def compressed(text, parameters=PARAMETERS):
  """(what is stored, the parameters that the compressed model has)."""
  made = chain(text)
  found = _chain.pack(parameters, made, POPULARITY)
  return found, _chain.unpack(found, [compressor for _, compressor in made])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "noise"])
def test_what_every_compressor_promises(name):
  before = {key: x.copy() for key, x in PARAMETERS.items()}
  found, restored = compressed(f"{name}()")
  assert isinstance(registry.build("compression", registry.Call(name)), Compressor)
  assert found.num_bytes < sum(x.nbytes for x in PARAMETERS.values())
  assert restored.keys() == PARAMETERS.keys()
  for key, x in PARAMETERS.items():
    assert restored[key].shape == x.shape and restored[key].dtype == np.float32, key
    assert np.array_equal(x, before[key])  # nothing is changed in place
  assert np.array_equal(restored["bias"], PARAMETERS["bias"])
  again, _ = compressed(f"{name}()")
  assert all(np.array_equal(again.arrays[key], x) for key, x in found.arrays.items())
  _, twice = compressed(f"{name}()", restored)
  for key in PARAMETERS:  # compressing what is compressed changes little or nothing
    scale = np.linalg.norm(restored[key]) + 1e-9
    assert np.linalg.norm(twice[key] - restored[key]) / scale < 0.05, key


@pytest.mark.parametrize(("bits", "most"), [(8, 127), (4, 7)])
def test_integers_are_the_nearest_multiples_of_a_rows_scale(bits, most):
  found, restored = compressed(f"int{bits}()")
  for name in ("user", "item", "layer/kernel"):
    x = PARAMETERS[name].astype(np.float64)
    scales = [np.frombuffer(b"\0\0" + scale.tobytes(), np.float32)[0] for scale in found.arrays[f"{name}/scales"]]
    for row, got, step in zip(x, restored[name], scales, strict=True):
      least = np.abs(row).max() / most
      assert least * (1 - 1e-6) <= step <= least * (1 + 2**-7)
      assert np.abs(row - got).max() <= step * 0.5001
      np.testing.assert_allclose(got / step, np.rint(got / step), atol=1e-4)
    assert found.arrays[f"{name}/codes"].nbytes == len(x) * -(-x.shape[1] * bits // 8)
  size = sum(found.arrays[f"user/{part}"].nbytes for part in ("codes", "scales"))
  assert size == ROWS * (WIDTH * bits // 8 + 2)


def test_a_row_that_is_tiny_beside_the_largest_has_its_own_precision():
  x = np.vstack([np.linspace(-1, 1, 21), *(np.linspace(-1, 1, 21) * scale for scale in np.geomspace(1e-5, 3e-7, 40))])
  made = chain("int8()")
  restored = _chain.unpack(_chain.pack({"user": x.astype(np.float32)}, made, {}), [c for _, c in made])["user"]
  assert (np.abs(restored - x).max(axis=1) < 0.51 / 127 * np.abs(x).max(axis=1)).all()


def test_half_is_numpys_float16_and_too_large_numbers_are_refused():
  found, restored = compressed("half()")
  assert np.array_equal(restored["user"], USER.astype(np.float16).astype(np.float32))
  assert found.arrays["user/half"].nbytes == USER.nbytes // 2
  with pytest.raises(InputError, match=r"`compress=half\(\)`: user/half has a number that its type cannot hold"):
    _chain.pack({"user": np.full((2, 2), 1e6, np.float32)}, chain("half()"), {})


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9])
def test_pruning_keeps_the_largest_numbers(share):
  found, restored = compressed(f"prune(share={share})")
  for name in ("user", "item"):
    x, got = PARAMETERS[name], restored[name]
    kept = got != 0
    assert kept.sum() == x.size - round(share * x.size) and np.array_equal(got[kept], x[kept])
    assert np.abs(x[~kept]).max() <= np.abs(x[kept]).min()
  assert found.arrays["item/kept"].nbytes == ITEM.size // 8


def test_pruned_columns_are_those_of_small_products_of_norms():
  user, item = USER * np.linspace(3, 0.1, WIDTH, dtype=np.float32), ITEM * np.linspace(0.5, 1, WIDTH, dtype=np.float32)
  parameters = PARAMETERS | {"user": user, "item": item}
  _, restored = compressed("prune_columns(share=0.25)", parameters)
  products = [np.linalg.norm(user[:, d]) * np.linalg.norm(item[:, d]) for d in range(WIDTH)]
  gone = sorted(range(WIDTH), key=lambda d: products[d])[: WIDTH // 4]
  for name, x in (("user", user), ("item", item)):
    assert sorted(np.flatnonzero((restored[name] == 0).all(axis=0)).tolist()) == sorted(gone)
    kept = [d for d in range(WIDTH) if d not in gone]
    assert np.array_equal(restored[name][:, kept], x[:, kept])
  kernel = PARAMETERS["layer/kernel"]
  alone = sorted(np.argsort(np.linalg.norm(kernel, axis=0))[:2].tolist())
  assert np.flatnonzero((restored["layer/kernel"] == 0).all(axis=0)).tolist() == alone


def test_low_rank_is_the_truncated_svd():
  found, restored = compressed("low_rank(rank=5)")
  left, values, right = np.linalg.svd(ITEM.astype(np.float64), full_matrices=False)
  np.testing.assert_allclose(restored["item"], (left[:, :5] * values[:5]) @ right[:5], atol=1e-5)
  assert found.arrays["item/rows"].shape == (500, 5) and found.arrays["item/basis"].shape == (5, WIDTH)
  assert np.linalg.norm(ITEM - restored["item"]) == pytest.approx(np.sqrt(np.sum(values[5:] ** 2)), rel=1e-5)


def test_product_quantisation_gives_every_piece_its_nearest_centre():
  found, restored = compressed("product_quantise(parts=4, codes=16)")
  assert found.arrays["item/codes"].dtype == np.uint8 and found.arrays["item/codes"].shape == (500, 4)
  for place in range(4):
    piece = ITEM[:, place * 8 : place * 8 + 8].astype(np.float64)
    centres = found.arrays[f"item/centres{place:03d}"].astype(np.float64)
    far = ((piece[:, None] - centres[None]) ** 2).sum(axis=2)
    assert np.array_equal(far.argmin(axis=1), found.arrays["item/codes"][:, place])
    assert np.array_equal(restored["item"][:, place * 8 : place * 8 + 8], centres[far.argmin(axis=1)])
    means = np.array([piece[far.argmin(axis=1) == code].mean(axis=0) for code in range(16)])
    assert np.linalg.norm(means - centres) < 0.1 * np.linalg.norm(centres)  # nearly a fixed point of k-means


def test_hashed_rows_are_weighted_means_of_their_bucket():
  found, restored = compressed("hashed(share=0.1)")
  assert found.arrays["item/rows"].shape == (50, WIDTH) and "layer/kernel" in found.arrays
  place = [((i * 0x9E3779B97F4A7C15 % 2**64) >> 32) * 50 >> 32 for i in range(500)]  # Fibonacci hashing by hand
  assert len(set(place)) > 45 and max(place) < 50
  weights = POPULARITY["item"] + 1.0
  for i in range(500):
    same = [j for j in range(500) if place[j] == place[i]]
    np.testing.assert_allclose(restored["item"][i], np.average(ITEM[same], axis=0, weights=weights[same]), atol=1e-5)


def test_quotient_and_remainder_are_the_least_squares_fit():
  found, restored = compressed("quotient_remainder(remainders=47)")  # the last quotient has fewer rows
  assert found.arrays["user/quotients"].shape == (7, WIDTH) and found.arrays["user/remainders"].shape == (47, WIDTH)
  design = np.zeros((ROWS, 7 + 47))
  design[np.arange(ROWS), np.arange(ROWS) // 47] = 1
  design[np.arange(ROWS), 7 + np.arange(ROWS) % 47] = 1
  fit = design @ np.linalg.lstsq(design, USER.astype(np.float64), rcond=None)[0]
  np.testing.assert_allclose(restored["user"], fit, atol=1e-4)


def test_rare_rows_keep_fewer_dimensions():
  rng = np.random.default_rng(3)
  counts = np.concatenate([np.full(50, 60), np.full(450, 3)])[rng.permutation(500)]
  made = registry.build("compression", registry.parse("compression", "mixed_dims(parts=2, alpha=0.5)", "compress"))
  parts = made.pack({"item": ITEM}, {"item": counts})["item"]
  part = parts["part"]
  assert all(counts[part == 0] == 60) and 3000 * 0.6 < counts[part == 0].sum() <= 3000
  kept = round(WIDTH * (4 / 61) ** 0.5)
  mean = np.mean(counts[part == 1] + 1)
  kept = round(WIDTH * (mean / 61) ** 0.5)
  assert parts["rows01"].shape == ((part == 1).sum(), kept) and kept < WIDTH and "basis00" not in parts
  restored = made.unpack(parts, ITEM.shape)
  assert np.array_equal(restored[part == 0], ITEM[part == 0])
  left, values, right = np.linalg.svd(ITEM[part == 1].astype(np.float64), full_matrices=False)
  np.testing.assert_allclose(restored[part == 1], (left[:, :kept] * values[:kept]) @ right[:kept], atol=1e-4)


@pytest.mark.parametrize(("first", "second"), [*itertools.permutations(("prune(share=0.5)", "int8()"), 2),
                                               ("low_rank(rank=6)", "int8()"), ("low_rank(rank=6)", "half()"),
                                               ("prune_columns(share=0.5)", "int4()"), ("hashed()", "int8()"),
                                               ("quotient_remainder()", "half()"), ("mixed_dims()", "int8()"),
                                               ("product_quantise(codes=16)", "half()")])
def test_a_chain_packs_what_the_first_has_made(first, second):
  if first == "int8()":  # nothing is left for the second
    with pytest.raises(InputError, match=r"`compress=prune\(share=0.5\)`: would store none"):
      compressed(f"{first} + {second}")
    return
  found, restored = compressed(f"{first} + {second}")
  alone, by_first = compressed(first)
  assert found.num_bytes < alone.num_bytes and len(found.steps) == 2
  for name in ("user", "item"):
    near = np.linalg.norm(restored[name] - by_first[name]) / np.linalg.norm(by_first[name])
    assert 0 < near < (0.15 if "int4" in second else 0.01)


def test_a_model_without_tables_is_named():
  with pytest.raises(InputError, match=r"`compress=hashed\(share=0.25\)`: would store none .*: kernel \[4, 3\]"):
    _chain.pack({"kernel": np.ones((4, 3), np.float32)}, chain("hashed(share=0.25)"), {})
  with pytest.raises(InputError, match="there are none"):
    _chain.pack({"count": np.ones(4, np.float32)}, chain("int8()"), {})


@pytest.mark.parametrize("text", ["prune(share=1.5)", "low_rank(rank=0)", "product_quantise(codes=300)", "int9()"])
def test_wrong_arguments_are_refused(text):
  with pytest.raises(InputError, match="`compress="):
    chain(text)


def test_compressors_are_in_the_api():
  assert isinstance(kd_jax.compression.prune(share=0.9), Compressor)
