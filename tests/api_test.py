"""The public Python API: what `import kd_jax` gives, as a notebook uses it."""

import dataclasses
import inspect
import typing

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kd_jax
from kd_jax import KD, Callback, InputError, Lists, Outputs

DATA = "synthetic(users=100, items=240, interactions_per_user=16)"
QUICK = dict(epochs=3, batch_size=256, learning_rate=0.02)


class Biased(nn.Module):
  """Matrix factorisation with item biases."""

  num_users: int
  num_items: int
  dim: int = 4
  inner_product = False

  def setup(self):
    def table(name, rows):
      return self.param(name, nn.initializers.normal(0.1), (rows, self.dim))

    self.user, self.item = table("user", self.num_users), table("item", self.num_items)
    self.bias = self.param("bias", nn.initializers.zeros, (self.num_items,))

  def tables(self):
    return self.user, self.item, self.bias

  def __call__(self, batch, tables=None) -> Outputs:
    user, item, bias = self.tables() if tables is None else tables
    query = user[batch["users"]]
    if "items" not in batch:
      return Outputs(query @ item.T + bias, query, item)
    items = batch["items"]
    return Outputs(jnp.einsum("bd,bcd->bc", query, item[items]) + bias[items], query, item[items])


def pull(k=5):
  """The student's scores of the teacher's top k are pulled up."""
  return KD(lambda student, teacher, batch: -jnp.mean(student.scores, axis=1), Lists(teacher=k),
            lambda rng, view: {"items": view.teacher.items}, teacher_scores=False)


@pytest.mark.short
@pytest.mark.parametrize("written", [False, True], ids=["in memory", "with a workdir"])
def test_teacher_student_evaluation(written, tmp_path):
  def place(name):
    return {"workdir": tmp_path / name} if written else {}

  told = []
  data = kd_jax.load_data(DATA)
  teacher = kd_jax.fit(data, model="mf(dim=16)", weight_decay=1e-4, **QUICK, **place("teacher"))
  student = kd_jax.fit(
      data, model=Biased(data.num_users, data.num_items), kd=0.1 * kd_jax.losses.rrd(k=5, depth=30) + pull(),
      teacher=teacher, callbacks=[Callback(epoch=lambda run: told.append(run.epoch))], **QUICK, **place("student"))
  report = kd_jax.evaluate(student, teacher=teacher, compare=[teacher])
  assert 0 < report["ndcg@10"] < 1 and told == [1, 2, 3]
  assert report["ndcg@10"] == pytest.approx(np.nanmean(report.values["ndcg@10"]))
  assert 0 <= report.details["overlap@10"] <= 1
  (difference,) = report.details["differences"].values()
  own, other = report["ndcg@10"], kd_jax.evaluate(teacher)["ndcg@10"]
  assert difference["ndcg@10"]["difference"] == pytest.approx(own - other) and own != other
  assert [line["epoch"] for line in student.history] == [1, 2, 3] and student.params["bias"].shape == (data.num_items,)
  assert (tmp_path / "student" / "result.json").exists() == written
  assert written or not list(tmp_path.iterdir())
  if written:
    again = kd_jax.fit(
        data, model=Biased(data.num_users, data.num_items), kd=0.1 * kd_jax.losses.rrd(k=5, depth=30) + pull(),
        teacher=teacher, **QUICK, **place("student"))
    assert again.result == student.result and again.history == student.history
    assert all((again.params[name] == value).all() for name, value in student.params.items())
    with pytest.raises(InputError, match="other flags: `kd="):
      kd_jax.fit(data, model=Biased(data.num_users, data.num_items), kd=pull(k=6), teacher=teacher, **QUICK,
                 **place("student"))


def test_in_memory_and_on_disk_are_the_same_run(tmp_path):
  written = kd_jax.fit(DATA, model="mf(dim=4)", workdir=tmp_path / "run", **QUICK)
  kept = kd_jax.fit(DATA, model="mf(dim=4)", **QUICK)
  assert all((kept.params[name] == value).all() for name, value in written.params.items())
  assert kept.info["hashes"] == written.info["hashes"]


def test_scores_and_lists():
  fitted = kd_jax.fit(DATA, model="mf(dim=4)", **QUICK)
  data, users = fitted.dataset, [3, 7]
  scores = fitted.scores(users)
  assert scores.shape == (2, data.num_items)
  for row, user in enumerate(users):
    scores[row, data.train.items[data.train.users == user]] = -np.inf
  found = fitted.top_k(k=5, users=users)
  assert np.array_equal(found.items, np.argsort(-scores, axis=1, kind="stable")[:, :5])
  assert np.array_equal(fitted.top_k(k=5).items[users], found.items)
  for wrong in ([100_000], [-1], ["u1"], [1.5]):
    with pytest.raises(InputError, match="`users`: indices of 0"):
      fitted.scores(wrong)


def test_adapters_are_part_of_what_was_fitted():
  teacher = kd_jax.fit(DATA, model="mf(dim=8)", **QUICK)
  student = kd_jax.fit(DATA, model="mf(dim=4)", kd="fitnet()", teacher=teacher, **QUICK)
  (adapter,) = student.adapters.values()
  assert adapter


def test_methods_are_weighted_and_added():
  a, b = kd_jax.losses.rrd(), kd_jax.losses.kl()
  assert (2 * a).terms == ((2.0, a),) == (a * 2).terms
  assert (a + b).terms == ((1.0, a), (1.0, b)) and (0.5 * (a + 2 * b)).terms == ((0.5, a), (1.0, b))
  schedule = optax.linear_schedule(0.0, 1.0, 10)
  weighted = (schedule * a + b) * 3
  assert weighted.terms[0][0](10) == 3.0 and weighted.terms[1] == (3.0, b)
  for wrong in (lambda: "2" * a, lambda: a + 1, lambda: True * a, lambda: schedule * (schedule * a)):
    with pytest.raises(TypeError):
      wrong()


@pytest.mark.parametrize(("arguments", "said"), [
    (dict(modle="mf()"), "fit has no argument 'modle'; did you mean model?"),
    (dict(epochs=0), "`epochs=0`: must be positive"), (dict(loss="bqr"), "`loss=bqr`: no 'bqr' among"),
    (dict(kd="kl()"), "`kd` needs `teacher=RUN_OR_DIR`"), (dict(kd=3), "`kd`: a text, a KD"),
    (dict(monitor="ndcg"), "`monitor`: 'ndcg' is not a metric like"), (dict(profile=True), "give a `workdir`"),
    (dict(callbacks=[3]), "`callbacks`: a Callback is expected, not int"),
    (dict(metrics="mine.nothing@3"), "cannot import mine")])
def test_errors_name_the_argument(arguments, said):
  with pytest.raises(InputError) as error:
    kd_jax.fit(DATA, **arguments)
  assert said in str(error.value) and "--" not in str(error.value) and "\n" not in str(error.value)


def test_weight_decay_covers_what_it_is_told_to():
  made = {}
  for decayed in ("*", "networks/student/user", "adapters/*"):
    made[decayed] = kd_jax.fit(DATA, model="mf(dim=4)", weight_decay=10.0, decayed=decayed, optimizer="sgd",
                               learning_rate=0.01, epochs=1, batch_size=4096)
  start = kd_jax.fit(DATA, model="mf(dim=4)", optimizer="sgd", learning_rate=0.01, epochs=1, batch_size=4096)

  def norm(run, name):
    return float(np.linalg.norm(run.params[name]))

  for name in ("user", "item"):
    assert norm(made["*"], name) == pytest.approx(0.9 * norm(start, name), rel=0.02)
    assert norm(made["adapters/*"], name) == norm(start, name)
  assert norm(made["networks/student/user"], "user") == norm(made["*"], "user")
  assert norm(made["networks/student/user"], "item") == norm(start, "item")


def test_the_public_part_is_annotated_and_documented():
  for name in kd_jax.__all__:
    part = getattr(kd_jax, name)
    if inspect.isfunction(part):
      hints = typing.get_type_hints(part, vars(inspect.getmodule(part)) | {"Fitted": kd_jax.Fitted})
      parameters = list(inspect.signature(part).parameters)
      assert set(parameters) | {"return"} <= set(hints), name
    if inspect.isfunction(part) or inspect.isclass(part):
      assert inspect.getdoc(part), name
  assert set(dir(kd_jax)) == set(kd_jax.__all__)
  assert all(field.metadata["help"] for field in dataclasses.fields(kd_jax.FitOptions))


@pytest.fixture(scope="module")
def plain():
  return kd_jax.fit(DATA, model="mf(dim=4)", **QUICK)


def test_another_object_is_another_run(plain, tmp_path):
  """A finished run is never taken for one with another optimiser, schedule, loss, teacher or data."""
  def methods(k):
    return KD(lambda student, teacher, batch: -jnp.mean(student.scores, axis=1) / k, Lists(teacher=5),
              lambda rng, view: {"items": view.teacher.items}, teacher_scores=False)

  other = kd_jax.fit(DATA, model="mf(dim=4)", **(QUICK | {"learning_rate": 0.03}))
  data = kd_jax.load_data(DATA)
  half = data._replace(train=data.train._replace(users=data.train.users[::2], items=data.train.items[::2]))
  pairs = {
      "optimizer": (optax.adam(0.1), optax.sgd(0.001)),
      "loss": (kd_jax.Objective(lambda o, b, r: o.scores[:, 0] * 2.0),
               kd_jax.Objective(lambda o, b, r: o.scores[:, 0] * 3.0)),
      "schedule": (optax.constant_schedule(0.1), optax.constant_schedule(0.2)), "data": (data, half),
      "seed": (np.int64(0), np.int64(1)), "kd": (methods(5), methods(50)), "teacher": (plain, other)}
  for name, (first, second) in pairs.items():
    given = dict(data=DATA, model="mf(dim=4)", workdir=tmp_path / name, epochs=1, batch_size=256)
    given |= {"kd": methods(5), "teacher": plain} if name in ("kd", "teacher") else {}
    made = kd_jax.fit(**given | {name: first})
    assert kd_jax.fit(**given | {name: first}).result == made.result
    with pytest.raises(InputError, match=r"other flags|other data|not what the finished run|changed since"):
      kd_jax.fit(**given | {name: second})


def test_built_in_methods_are_told_apart_by_every_argument():
  from kd_jax.runs import identity

  losses = kd_jax.losses
  for first, second in ((losses.rrd(), losses.rrd(uninteresting=41)), (losses.kl(), losses.kl(exclude_seen=True)),
                        (losses.fitnet(), losses.fitnet(hidden=7)), (losses.cd(), losses.cd(depth=99)),
                        (losses.rrd(), losses.ir_rrd()), (losses.de(), losses.de(experts=7))):
    assert identity.describe(first) != identity.describe(second)
  assert identity.describe(losses.rrd()) == identity.describe(losses.rrd())
  assert identity.describe(optax.adam(0.1)) == identity.describe(optax.adam(0.1))


@pytest.mark.parametrize(("arguments", "said"), [
    (dict(epochs="3"), "`epochs`: an integer is expected, not str"),
    (dict(learning_rate="0.1"), "`learning_rate`: a number"),
    (dict(batch_size=np.int64(-3)), "`batch_size=-3`: must be positive"),
    (dict(model=3), "`model`: a text or a Flax module"),
    (dict(optimizer=3), "`optimizer`: a text or an optax"), (dict(metrics=["ndcg@7"]), "`metrics`: a text, or"),
    (dict(metrics="hit@10(sampled 50)"), "only `monitor` and the option `sampled`"),
    (dict(weight_decay=1.0, decayed="item"), "`decayed=item`: matches none of networks/student/"),
    (dict(callbacks=Callback()), "`callbacks`: a text or a list"),
    (dict(loss=kd_jax.Objective(lambda o, b, r: jnp.mean(o.scores))), "a loss returned [] values")])
def test_values_of_another_kind_are_refused(arguments, said):
  with pytest.raises(InputError) as error:
    kd_jax.fit(DATA, **QUICK | arguments)
  assert said in str(error.value) and "\n" not in str(error.value)


def test_runs_on_other_data_are_not_compared(plain):
  elsewhere = kd_jax.fit(DATA.replace(")", ", split_seed=3)"), model="mf(dim=4)", **QUICK)
  for given in (dict(teacher=elsewhere), dict(compare=[elsewhere])):
    with pytest.raises(InputError, match="trained on other data"):
      kd_jax.evaluate(plain, **given)
  with pytest.raises(InputError, match="evaluate has no argument 'sampeld'"):
    kd_jax.evaluate(plain, sampeld=5)


def test_data_in_memory_is_evaluated_where_it_has_the_split():
  whole = kd_jax.load_data(DATA, splits=("train", "validation", "test"))
  own = whole._replace(name="mine", hashes={}, report={})
  assert kd_jax.evaluate(kd_jax.fit(own, model="mf(dim=4)", **QUICK))["ndcg@10"] > 0
  fitted = kd_jax.fit(own._replace(test=None), model="mf(dim=4)", **QUICK)
  assert kd_jax.evaluate(fitted, split="validation")["ndcg@10"] == fitted.history[-1]["validation"]["ndcg@10"]
  with pytest.raises(InputError, match="mine"):
    kd_jax.evaluate(fitted)


def test_soft_labels_of_a_run(tmp_path):
  fitted = kd_jax.fit(DATA, model="mf(dim=4)", workdir=tmp_path / "run", **QUICK)
  found = kd_jax.soft_labels(fitted, tmp_path / "labels", top_k=20)
  assert found["top_k"] == 20 and 0 < found["tail_mass_mean"] < 1


def test_callbacks_of_several_runs_end_with_their_runs():
  told = []

  def watch(name):
    def end(run):
      told.append((name, "end", bool(np.isfinite(np.asarray(run.params["student"]["user"])).all())))

    return Callback(epoch=lambda run: told.append((name, run.epoch)), end=end)

  options = [kd_jax.FitOptions(data=DATA, model="mf(dim=4)", batch_size=256, epochs=epochs, optimizer="sgd",
                               learning_rate=rate, callbacks=[watch(name)])
             for name, rate, epochs in (("diverges", 1e6, 3), ("short", 0.1, 1), ("long", 0.1, 2))]
  results = kd_jax.fit_many(options)
  assert isinstance(results[0], InputError) and results[2].result["epochs"] == 2
  assert told.index(("short", "end", True)) < told.index(("long", 2)) < told.index(("long", "end", True))
  assert [x for x in told if x[0] == "diverges"] == [("diverges", "end", True)]
