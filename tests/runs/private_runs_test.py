"""What runs, soft labels, exports and tables say of privacy, and that a student said to be private reads no data."""

import jax
import numpy as np
import pytest

from kd_jax.base import KD, InputError, Lists
from kd_jax.evaluation import membership, sealed_report
from kd_jax.models.private_svd import NEIGHBOURS
from kd_jax.runs import compress, loop, privacy, setup
from kd_jax.runs.options import fit_options
from kd_jax.serving import export
from kd_jax.storage import run_directory, sealed
from kd_jax.tables import make
from kd_jax.teachers import loading, make_soft_labels

pytest.importorskip("dp_accounting")
DATA = "synthetic(users=60, items=240, interactions_per_user=16)"
STUDENT = dict(model="mf(dim=4)", kd="mse(candidates='full')", loss_weight=0.0, kd_per="user", batch_size=4096,
               monitor="epoch", patience=0, epochs=2, learning_rate=0.05)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "teacher"
  loop.fit(DATA, model="private_svd(dim=4, epsilon=2.0)", workdir=folder)
  return folder


def info(run):
  return run_directory.read_finished(run).info


def test_a_run_says_what_it_spent(teacher):
  said = info(teacher)["privacy"]
  assert said["epsilon"] == 2 == pytest.approx(said["spent"], rel=1e-6) and said["delta"] == 1e-5
  assert said["neighbours"] == NEIGHBOURS and len(said["noise_multipliers"]) == 2


@pytest.mark.parametrize(("changes", "reason"), [
    ({"loss_weight": 1.0}, "`loss_weight=0` leaves it out"), ({"kd_per": "interaction"}, "batches follow"),
    ({"batch_size": 64}, "put all users in one"), ({"monitor": "ndcg@10"}, "validation chooses the epoch"),
    ({"patience": 3}, "validation chooses the epoch"), ({"model": "lightgcn(dim=4)"}, "reads interactions"),
    ({"model": "two_tower(dim=4)"}, "or features"), ({"reduction": "mean"}, "divides by the number of interactions"),
    ({"kd": "rrd(k=5, uninteresting=5, depth=30)"}, "a method of `kd` reads"),
    ({"kd": "mse(k=5, exclude_seen=True)"}, "a method of `kd` reads"),
    ({"kd": "unkd(depth=50)"}, "a method of `kd` reads"), ({"kd": "mse(k=5)", "teacher": "two"}, "several teachers"),
    ({"kd": "mse(k=5)"}, None), ({"kd": "rcekd(k=5, sampled=5, depth=20)"}, None)])
def test_a_student_that_reads_more_is_not_and_says_why(teacher, changes, reason, capsys):
  given = STUDENT | changes | {"teacher": [teacher] * (1 + ("teacher" in changes))}
  found = privacy.statement(setup.prepare(fit_options(data=DATA, **given)))
  if reason is None:
    assert found == info(teacher)["privacy"]
  else:
    assert found is None and reason in capsys.readouterr().out


def test_a_method_that_counts_interactions_is_seen():
  def sample(rng, view):
    return {"items": view.teacher.items, "weight": view.popularity[view.teacher.items[0]].astype(float)}

  def other(rng, view):
    return {"items": view.teacher.items}

  lists = Lists(teacher=3, exclude_seen=False)
  assert not privacy._reads_lists_only(KD(None, lists, sample)) and privacy._reads_lists_only(KD(None, lists, other))


def test_other_interactions_train_the_same_private_student(teacher, make_dataset):
  """The claim itself: with the teacher fixed, interactions of the same users change no parameter of the student."""
  first = make_dataset(num_users=20, num_items=50, train=6)
  second = make_dataset(num_users=20, num_items=50, train=6, seed=5)
  second.train.users[:5] = 1  # user 0 has one interaction, user 1 has more
  fitted = loop.fit(first, model="private_svd(dim=4)")
  made = []
  for data in (first, second):
    seen = loading.Teacher(fitted.module, fitted.params, {}, None, None, {"privacy": fitted.info["privacy"]})
    student = loop.fit(data, teacher=seen, **STUDENT)
    assert student.info["privacy"]["epsilon"] == 4
    made.append(jax.tree.leaves(student.params))
  assert all(np.array_equal(a, b) for a, b in zip(*made, strict=True))


def test_soft_labels_are_private_only_with_training_items(teacher, tmp_path, capsys):
  for exclude_seen in (False, True):
    out = tmp_path / str(exclude_seen)
    make_soft_labels.write(teacher, out, 20, exclude_seen)
    provenance = sealed.read(out, "soft_labels")["provenance"]
    assert ("privacy" in provenance) != exclude_seen
    assert ("these lists are not" in capsys.readouterr().out) == exclude_seen
    given = STUDENT | {"kd": f"mse(k=5, exclude_seen={exclude_seen})", "teacher": out}
    said = privacy.statement(setup.prepare(fit_options(data=DATA, **given)))
    assert said == (None if exclude_seen else info(teacher)["privacy"])


def test_an_export_says_what_is_private_and_a_compressed_run_nothing(teacher, tmp_path):
  list(export.export_run(teacher, tmp_path / "export", formats="npz"))
  assert sealed.read(tmp_path / "export", "export")["privacy"] == info(teacher)["privacy"]
  card = (tmp_path / "export" / "README.md").read_text()
  assert "(2, 1e-05)-differentially private" in card and "Histories, counts of items and stored answers" in card
  compress.compress_run(teacher, "half()", tmp_path / "half")
  assert "privacy" not in info(tmp_path / "half")


TABLE = f"""
title = "Privacy"
seeds = 1
metrics = ["ndcg@10"]
attack = true
flags = ["--data={DATA}"]
[[row]]
row = "private"
flags = ["--model=private_svd(dim=4)"]
[[row]]
row = "popularity"
flags = ["--model=pop()"]
"""


def test_a_table_has_the_rates_of_every_attack(tmp_path):
  (tmp_path / "small.toml").write_text(TABLE)
  result = make.reproduce(str(tmp_path / "small.toml"), str(tmp_path), None, None, None)
  for row in result["rows"]:
    assert list(row["membership"]) == [f"{x} {rate}" for x in membership.ATTACKS for rate in ("auc", "tpr")]
    stored = sealed_report.read(tmp_path / "runs" / f"{row['row']}-seed0", "test").report["membership"]
    assert row["membership"]["labels tpr"]["values"] == [stored["labels"]["tpr"]]
  assert result["rows"][1]["membership"]["answers auc"]["mean"] > 0.5  # of popular items, those that are missing
  page = (tmp_path / "small.md").read_text()
  assert "## Membership inference" in page and "| private | 0." in page.split("## Membership inference")[1]
  assert "AUC of membership inference" in (tmp_path / "small.html").read_text()


def test_attack_must_be_true_or_false(tmp_path):
  (tmp_path / "wrong.toml").write_text(TABLE.replace("attack = true", "attack = 1"))
  with pytest.raises(InputError, match="attack = 1: must be true or false"):
    make.reproduce(str(tmp_path / "wrong.toml"), str(tmp_path), None, None, None)
