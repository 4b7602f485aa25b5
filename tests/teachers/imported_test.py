"""Teachers of other frameworks: every format says the same, and what does not fit the data is refused by line."""

import gzip
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kd_jax import data
from kd_jax.base import InputError
from kd_jax.runs import loop, setup
from kd_jax.teachers import imported, loading
from kd_jax.training import kd_targets

USERS, ITEMS = 5, 9


@pytest.fixture(scope="module")
def dataset(make_dataset):
  found = make_dataset(num_users=USERS, num_items=ITEMS, train=3)
  ids = [np.array([f"{prefix}{n:02d}" for n in range(count)], object) for prefix, count in (("u", USERS), ("i", ITEMS))]
  return found._replace(user_ids=ids[0], item_ids=ids[1])


def write(path, content):
  """A list of objects or a dict of arrays, in the format of the file's name."""
  kind = path.name.partition(".")[2]
  if kind == "npz":
    np.savez(path, **{name: np.asarray(values) for name, values in content.items()})
  elif kind == "parquet":
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = {name: None for row in content for name in row}
    parquet.write_table(pyarrow.Table.from_pylist([names | row for row in content]), path)
  elif kind == "jsonl":
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
  else:
    delimiter = "," if kind.startswith("csv") else "\t"
    lines = [delimiter.join(content[0]), *(delimiter.join(map(str, row.values())) for row in content)]
    text = "\n".join([*lines, ""]).encode()
    path.write_bytes(gzip.compress(text) if kind.endswith("gz") else text)
  return str(path)


SCORES = {("u03", "i01"): 0.5, ("u00", "i08"): -1.5, ("u03", "i07"): 2.0, ("u00", "i02"): 0.0, ("u03", "i00"): 0.5}
# Of equal scores the item whose id has the lower hash: b2sum --length=64 of i01 begins with b4, of i00 with f6.
BEST_FIRST = {0: [(2, 0.0), (8, -1.5)], 3: [(7, 2.0), (1, 0.5), (0, 0.5)]}
LISTS = {"u03": ["i07", "i00", "i01"], "u00": ["i02", "i08"]}
CONFIDENCES = {"u03": [0.25, 4.0, 1.0], "u00": [-3.0, 2.0]}  # need not fall with the rank


def listed(found):
  """{user: [(item, score), ...]} of ranked lists, their padding checked."""
  assert ((found.items >= 0) == np.isfinite(found.scores)).all()
  rows = [[(int(i), float(s)) for i, s in zip(*row, strict=True) if i >= 0] for row in zip(*found, strict=True)]
  return {user: row for user, row in enumerate(rows) if row}


@pytest.mark.parametrize("name", ["x.tsv", "x.txt", "x.csv", "x.csv.gz", "x.jsonl", "x.parquet", "x.npz"])
def test_scores_of_pairs_are_ranked_alike_in_every_format(name, dataset, tmp_path):
  rows = [{"user": u, "item": i, "why": "x", "score": s} for (u, i), s in SCORES.items()]
  columns = {f"{k}s": [row[k] for row in rows] for k in ("user", "item", "score")}
  found = imported.read(write(tmp_path / name, columns if name == "x.npz" else rows), dataset)
  assert listed(found.lists) == BEST_FIRST and found.scored and not found.tables
  assert "2 of 5 users" in found.coverage and "5 of 9 items" in found.coverage
  assert "2 to 3 items each, median 2.5" in found.coverage


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("name", ["x.tsv", "rows.jsonl", "x.jsonl", "x.parquet", "x.npz"])
def test_ranked_lists_keep_their_order_and_confidences(name, scored, dataset, tmp_path):
  rows = [{"user": u, "items": x} | ({"confidences": CONFIDENCES[u]} if scored else {}) for u, x in LISTS.items()]
  if name in ("x.tsv", "rows.jsonl"):  # a row per item, in no order
    rows = [{"user": r["user"], "item": i, "rank": n + 1} | ({"confidence": r["confidences"][n]} if scored else {})
            for r in rows for n, i in enumerate(r["items"])][::-1]
  if name == "x.npz":
    rows = {"users": list(LISTS), "lists": [x + [""] * (3 - len(x)) for x in LISTS.values()]}
    rows |= {"confidences": [x + [np.nan] * (3 - len(x)) for x in CONFIDENCES.values()]} if scored else {}
  found = imported.read(write(tmp_path / name, rows), dataset)
  expected = {int(u[1:]): [(int(i[1:]), CONFIDENCES[u][n] if scored else 0.0) for n, i in enumerate(x)]
              for u, x in LISTS.items()}
  assert listed(found.lists) == expected and found.scored == scored


@pytest.mark.parametrize("name", ["x.npz", "all.npz", "x.jsonl", "x.parquet"])
def test_embeddings_and_all_scores_are_a_live_teacher(name, dataset, tmp_path):
  rng = np.random.default_rng(0)
  users, items = rng.normal(size=(USERS, 4)), rng.normal(size=(ITEMS, 4))
  shuffled = [rng.permutation(n) for n in (USERS, ITEMS)]  # the file has an order of its own
  ids = {"users": dataset.user_ids[shuffled[0]].astype(str), "items": dataset.item_ids[shuffled[1]].astype(str)}
  u, v = users[shuffled[0]], items[shuffled[1]]
  if name == "all.npz":
    content = ids | {"scores": u @ v.T}
  elif name == "x.npz":
    content = ids | {"user_vectors": u, "item_vectors": v}
  else:
    content = [{"user": str(n), "vector": list(x)} for n, x in zip(ids["users"], u, strict=True)]
    content += [{"item": str(n), "vector": list(x)} for n, x in zip(ids["items"], v, strict=True)]
  teacher = loading.load(f"file:{write(tmp_path / name, content)}", dataset)
  variables = {"params": jax.tree.map(jnp.asarray, teacher.params)}
  batch = {"users": jnp.array([4, 0, 4])}
  out = teacher.module.apply(variables, batch)
  np.testing.assert_allclose(out.scores, (users @ items.T)[[4, 0, 4]], rtol=1e-5, atol=1e-6)
  some = teacher.module.apply(variables, batch | {"items": jnp.array([[8, 0]] * 3)})
  np.testing.assert_allclose(some.scores, (users @ items.T)[[4, 0, 4]][:, [8, 0]], rtol=1e-5, atol=1e-6)
  assert (out.query is None) == (name == "all.npz")


PAIR = {"user": "u01", "item": "i01", "score": 1.0}
EVERYONE = {"users": [f"u{n:02d}" for n in range(USERS)], "items": [f"i{n:02d}" for n in range(ITEMS)]}
ALL = EVERYONE | {"scores": np.zeros((USERS, ITEMS))}
VECTORS = EVERYONE | {"user_vectors": np.ones((USERS, 2)), "item_vectors": np.ones((ITEMS, 2))}
REFUSED = [
    ("x.tsv", [PAIR, PAIR | {"user": "7"}], [":3:", "no user '7'", "`teacher_unknown_ids=1`"]),
    ("x.jsonl", [PAIR, PAIR | {"item": 1}], [":2:", "no item '1'"]),
    ("x.jsonl", [PAIR, PAIR | {"item": 1.0}], [":2:", "neither text nor an integer"]),
    ("x.parquet", [PAIR, PAIR | {"item": "1"}], [":row 2:", "no item '1'"]),
    ("x.csv", [PAIR, PAIR], [":3:", "this item twice"]),
    ("x.jsonl", [{"user": "u01", "items": ["i01", "i01"]}], [":1:", "this item twice"]),
    ("x.jsonl", [{"user": "u01", "items": ["i01"]}, {"user": "u01", "items": ["i02"]}], [":2:", "of this rank"]),
    ("x.tsv", [PAIR | {"score": "nan"}], [":2:", "no finite number"]),
    ("x.jsonl", [PAIR, PAIR | {"item": "i02", "score": 1e39}], [":2:", "no finite number"]),
    ("x.tsv", [PAIR | {"score": "high"}], [":2:", "'high'"]), ("x.jsonl", [PAIR | {"score": True}], [":1:", "'True'"]),
    ("x.jsonl", [{"user": "u01", "items": ["i01", "i02"], "confidences": [1.0]}], [":1:", "as long"]),
    ("x.jsonl", [{"user": "u01", "items": "i01"}], [":1:", "a list"]),
    ("x.jsonl", [PAIR, {"user": "u01", "items": ["i01"]}], [":2:", "another kind"]),
    ("x.tsv", [{"user": "u01", "item": "i01"}], [":2:", "user, item, score"]), ("x.jsonl", [], ["no rows"]),
    ("x.jsonl", [{"user": "u01", "vector": [1.0]}, {"user": "u02", "vector": [1.0, 2.0]}], [":2:", "has 1 numbers"]),
    ("x.jsonl", [{"user": "u01", "vector": [1.0]}], ["no vectors of items"]),
    ("x.npz", ALL | {"scores": np.zeros((ITEMS, USERS))}, ["scores [9, 5]", "fitting"]),
    ("x.npz", ALL | {"scores": np.full((USERS, ITEMS), np.nan)}, [":users[0]:", "no finite number"]),
    ("x.npz", ALL | {"scores": np.full((USERS, ITEMS), "a")}, ["scores", "numbers"]),
    ("x.npz", ALL | {"users": ["u00", *EVERYONE["users"][:-1]]}, [":users[1]:", "the user is there twice"]),
    ("x.npz", ALL | {"items": [*EVERYONE["items"][:-1], "i99"]}, [":items[8]:", "no item 'i99'"]),
    ("x.npz", VECTORS | {"items": EVERYONE["items"][:-1], "item_vectors": np.ones((ITEMS - 1, 2))},
     ["1 of 9 items", "'i08'"]),
    ("x.npz", VECTORS | {"user_vectors": np.ones((USERS, 3))}, ["3 numbers", "items 2"]),
    ("x.npz", VECTORS | {"user_vectors": np.array([[object()] * 2] * USERS)}, [".npz file of plain arrays"]),
    ("x.npz", {"users": ["u01"], "lists": [["i01", "i02", "i01"]]}, [":lists[0, 2]:", "this item twice"]),
    ("x.npz", {"users": ["u01"], "lists": ["i01"]}, ["lists [1]", "fitting"]),
    ("x.pkl.txt", [PAIR | {"user": ""}], [":2:", "no user ''"]),
    ("x.jsonl", [{"user": "u01", "items": []}], ["all its lists are empty"]),
    ("x.jsonl", [{"user": "u01", "items": [], "confidences": []}, {"user": "u02", "items": [], "confidences": []}],
     ["all its lists are empty"]),
    ("x.jsonl", [PAIR | {"score": 10**400}], [":1:", "no finite number"]),
    ("x.tsv", [PAIR | {"score": "9" * 400}], [":2:", "no finite number"]),
    ("x.jsonl", [{"user": "u01", "item": "i01", "rank": 10**400}], [":1:", "no finite number"]),
    ("x.jsonl", [{"user": "u01", "items": ["i01"], "confidences": [-(10**400)]}], [":1:", "no finite number"]),
    ("x.jsonl", [{"user": u, "vector": [10**400]} for u in EVERYONE["users"]]
     + [{"item": i, "vector": [1]} for i in EVERYONE["items"]], [":1:", "no finite number"]),
    ("x.jsonl", [{"user": "u01", "items": ["i01"], "confidences": [[1.0]]}], [":1:", "as long"]),
    ("x.jsonl", [{"user": "u01", "items": ["i01", "i02"], "confidences": [1.0, [2.0]]}], [":1:"]),
    ("x.jsonl", [{"user": "u01", "items": [["i01"]]}], [":1:", "neither text nor an integer"]),
    ("x.jsonl", [{"user": {"a": 1}, "items": ["i01"]}], [":1:", "neither text nor an integer"]),
    ("x.jsonl", [PAIR | {"score": None}], [":1:", "user, item, score"]),
    ("x.npz", {"users": np.zeros(0, "U1"), "lists": np.zeros((0, 0), "U1")}, ["says nothing"]),
    ("x.npz", {"users": ["u01"], "lists": np.zeros((1, 0), "U1")}, ["says nothing"]),
    ("x.npz", {"users": "u01", "lists": "i01"}, ["fitting"]), ("x.npz", {}, ["holds nothing"])]


@pytest.mark.parametrize(("name", "content", "said"), REFUSED)
def test_what_does_not_fit_is_refused_by_its_place(name, content, said, dataset, tmp_path):
  with pytest.raises(InputError) as error:
    imported.read(write(tmp_path / name, content), dataset)
  message = str(error.value)
  assert message.startswith(f"`teacher=file:{tmp_path / name}`") and len(message.splitlines()) == 1
  assert not [text for text in said if text not in message], message


def test_unsigned_scores_rank_as_the_numbers_that_they_are(dataset, tmp_path):
  content = {"users": ["u01"] * 3, "items": ["i00", "i01", "i02"], "scores": np.array([0, 200, 7], np.uint8)}
  found = imported.read(write(tmp_path / "x.npz", content), dataset)
  assert listed(found.lists) == {1: [(1, 200.0), (2, 7.0), (0, 0.0)]}


@pytest.mark.parametrize(("name", "content", "said"), [
    ("x.jsonl", b"{}\n{", ":1:"), ("x.jsonl", b"[" * 100_000, ":1: not JSON"),
    ("x.jsonl", b'{"user": "u01", "item": "i01", "score": ' + b"9" * 5000 + b"}", ":1: not JSON"),
    ("x.jsonl", b"[]\n", ":1: not an object"),
    ("x.tsv", b"user\titem\tscore\nu01\n", ":2: 1 columns"), ("x.jsonl", b"\xff\n", ":1: not JSON"),
    ("x.npz", b"x", ".npz"), ("x.parquet", b"x", "cannot be read"),
    ("x.pkl", b"x", ".jsonl"), ("x.tsv.gz", b"x", "cannot be read")])
def test_damaged_and_foreign_files_are_refused(name, content, said, dataset, tmp_path):
  if name == "x.parquet":
    pytest.importorskip("pyarrow")
  (tmp_path / name).write_bytes(content)
  with pytest.raises(InputError, match=r"`teacher[`=]") as error:
    imported.read(str(tmp_path / name), dataset)
  assert said in str(error.value) and len(str(error.value).splitlines()) == 1


def test_unknown_ids_are_left_out_up_to_an_allowance(dataset, tmp_path):
  rows = [{"user": "u01", "items": ["x", "i05", "y", "i02"]}, {"user": "z", "items": ["i05", "x"]}]
  path = write(tmp_path / "x.jsonl", rows)
  with pytest.raises(InputError, match="3 unknown ids; `teacher_unknown_ids=3` would leave them out"):
    imported.read(path, dataset, unknown_ids=2)
  found = imported.read(path, dataset, unknown_ids=3)
  assert listed(found.lists) == {1: [(5, 0.0), (2, 0.0)]} and "3 unknown ids left out" in found.coverage
  with pytest.raises(InputError, match="nothing of any user and item"):
    imported.read(write(tmp_path / "x.jsonl", rows[1:]), dataset, unknown_ids=9)


DATA = "--data=synthetic(users=60, items=80, interactions_per_user=12)"


@pytest.fixture(scope="module")
def half(tmp_path_factory):
  """Lists of 12 items with confidences of every second user; every fifth item of them is one of training."""
  dataset = data.load(DATA.removeprefix("--data="))
  rng, rows = np.random.default_rng(0), []
  for user in range(0, dataset.num_users, 2):
    seen = dataset.train.items[dataset.train.users == user]
    unseen = rng.permutation(np.setdiff1d(np.arange(dataset.num_items), seen))[:10]
    items = np.insert(unseen, [4, 8], seen[:2])
    rows.append({"user": dataset.user_ids[user], "items": dataset.item_ids[items].tolist(),
                 "confidences": rng.normal(size=12).tolist()})
  return write(tmp_path_factory.mktemp("half") / "lists.jsonl", rows), rows, dataset


@pytest.mark.parametrize("kd", ["dllm2rec(k=10, position=0.0, consistency=0.0, confidence=1.0)",
                                "kl(k=12, temperature=1.0)"])
def test_lists_reach_the_method_with_their_confidences(kd, half, flags):
  path, rows, dataset = half
  ready = setup.prepare(flags(DATA, "--model=mf(dim=4)", f"--kd={kd}", f"--teacher=file:{path}", "--workdir=x"))
  sources = kd_targets.prepare(ready.run, dataset, ready.given, ready.teachers[0].stored)
  student = {"user": jnp.zeros((dataset.num_users, 4)), "item": jnp.ones((dataset.num_items, 4))}
  params = {"networks": {"student": student}}
  lists = kd_targets.learner_lists(ready.run, params, ready.given, sources, 0, None)
  targets, = kd_targets.targets(jax.random.key(0), params, ready.given, sources, lists, {}, jnp.int32(0),
                              run=ready.run).values()
  assert targets["weight"].tolist() == [1.0, 0.0] * (dataset.num_users // 2)
  for row in rows:
    user = dataset.user_ids.tolist().index(row["user"])
    kept = [n for n, i in enumerate(row["items"]) if "kl" in kd or i not in dataset.item_ids[
        dataset.train.items[dataset.train.users == user]]]
    assert dataset.item_ids[np.asarray(targets["items"][user])][: len(kept)].tolist() == [row["items"][n] for n in kept]
    confidences = np.array(row["confidences"])[kept]
    expected = confidences if "kl" in kd else np.exp(confidences) / np.exp(confidences).sum()
    np.testing.assert_allclose(targets["teacher" if "kl" in kd else "importance"][user], expected, rtol=1e-5)


def test_users_without_a_list_are_not_distilled_and_the_file_is_pinned(half, flags, tmp_path, capsys):
  _, rows, dataset = half
  path = write(tmp_path / "own.jsonl", rows)
  base = (DATA, "--model=mf(dim=4)", "--batch_size=4096", "--optimizer=sgd", "--learning_rate=0.1")
  kd = (*base, "--kd=dllm2rec(k=10)", f"--teacher=file:{path}", f"--workdir={tmp_path / 'kd'}")
  loop.train(flags(*base, "--epochs=1", f"--workdir={tmp_path / 'plain'}"))
  loop.train(flags(*kd, "--epochs=1"))
  said = capsys.readouterr().out
  assert "30 of 60 users" in said and "30 of 60 users have lists of 10 items" in said
  plain, distilled = (loading.network(str(tmp_path / x), dataset)[1]["params"]["user"] for x in ("plain", "kd"))
  moved = (np.asarray(plain) != np.asarray(distilled)).any(axis=1)  # after one step with all interactions
  assert moved.tolist() == [True, False] * (dataset.num_users // 2)
  info = json.loads((tmp_path / "kd" / "run.json").read_text())
  with open(path, "rb") as file:
    assert info["teacher"][0]["file"] == hashlib.sha256(file.read()).hexdigest()
  write(tmp_path / "own.jsonl", rows[1:])
  with pytest.raises(InputError, match="other teacher"):
    loop.train(flags(*kd, "--epochs=2"))


@pytest.mark.parametrize(("kd", "scored", "said"), [
    ("kl(k=5)", False, "without confidences"), ("ftd()", True, "run directory"), ("kl(k=13)", True, "12 items"),
    ("dllm2rec(k=11)", True, "no user has one"), ("fitnet()", True, "run directory")])
def test_methods_that_ask_for_more_than_lists_hold_are_refused(kd, scored, said, half, flags, tmp_path):
  rows = half[1] if scored else [{k: v for k, v in row.items() if k != "confidences"} for row in half[1]]
  path = write(tmp_path / "x.jsonl", rows)
  with pytest.raises(InputError, match=said):
    setup.prepare(flags(DATA, "--model=mf(dim=4)", f"--kd={kd}", f"--teacher=file:{path}", "--workdir=x"))


@pytest.mark.parametrize("kd", ["fitnet()", "kl(candidates='student', k=5)"])
def test_embeddings_teach_scores_and_representations(kd, half, flags, tmp_path):
  dataset, rng = half[2], np.random.default_rng(0)
  arrays = {"users": dataset.user_ids.astype(str), "items": dataset.item_ids.astype(str)}
  arrays |= {f"{x}_vectors": rng.normal(size=(len(arrays[f"{x}s"]), 6)) for x in ("user", "item")}
  path = write(tmp_path / "x.npz", arrays)
  result = loop.train(flags(
      DATA, "--model=mf(dim=4)", "--epochs=1", f"--kd={kd}", f"--teacher=file:{path}", f"--workdir={tmp_path / 'run'}"))
  assert np.isfinite(list(result["validation"].values())).all()
