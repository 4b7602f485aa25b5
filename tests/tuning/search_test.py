"""A search: what it varies, that kills do not change it, that processes share it, and that it reads no test data."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

import kd_jax
from kd_jax import data, registry
from kd_jax.base import InputError
from kd_jax.runs.options import FitOptions
from kd_jax.tuning import figure, space, study
from kd_jax.tuning.options import SearchOptions

pytest.importorskip("optuna", reason="pip install 'kd_jax[search]'")
DATA = "synthetic(users=60, items=120, interactions_per_user=12)"
SPACE = "learning_rate=log(1e-3, 1e-1); mf.init_std=0.01|0.1; weight_decay=0|1e-4"
QUICK = dict(data=DATA, model="mf(dim=4)", epochs=2, batch_size=256)
DECLARED = [(package, name) for package in ("losses", "models") for name in registry.names(package)]


@pytest.mark.parametrize(("package", "name"), DECLARED)
def test_what_a_factory_declares_is_within_its_bounds_and_holds_its_defaults(package, name):
  options = FitOptions(**{"losses": {"kd": name}, "models": {"model": name}}[package])
  declared = space.parse(registry.search_space(package, name))
  assert package == "models" or "weight" in declared
  assert space.of(options, "").keys() >= {f"{name}.{x}" for x in declared}  # both ends are tried
  for argument, distribution in declared.items():
    text = space.present(options, f"{name}.{argument}")
    if distribution.choices:
      assert text in distribution.choices or float(text) in map(float, distribution.choices), argument
    else:
      assert distribution.low <= float(text) <= distribution.high, argument


@pytest.mark.parametrize(("text", "said"), [
    ("learning_rate=log(0, 1)", "LOW must be less than HIGH, and above 0"),
    ("learning_rate=log(-1, 1)", "above 0"), ("learning_rate=uniform(2, 1)", "LOW must be less"),
    ("learning_rate=normal(0, 1)", "not log"), ("learning_rate=log(1e-3)", "not log"),
    ("learning_rate=0.1", "at least two different values"), ("learning_rate=0.1|0.1", "at least two different"),
    ("learning_rate", "is not NAME=DISTRIBUTION"), ("learning_rate=1|2; learning_rate=3|4", "there twice"),
    ("learning_rate=uniform(-1, 1)", "`learning_rate=-1.0`: must be positive"),
    ("learnin_rate=1|2", "learnin_rate is not searched"), ("seed=1|2", "seed is not searched"),
    ("log_test=true|false", "log_test is not searched"), ("model=a|b", "model is not searched"),
    ("kl.k=1|2", "kl is named 0 times"), ("rrd.q=1|2", "rrd has no argument 'q'; it has k, uninteresting"),
    ("rrd.k=integer(0, 5)", r"k=0 is not in \[1, 1000000\]"), ("rrd.k=uniform(1, 5)", "k=1.0 is not of type int"),
    ("rrd.weight=uniform(0, 2000000)", "weight is a number in"), ("mf.num_users=1|2", "mf has no argument"),
    ("mf.dim=integer(1, 1.5)", "its ends are not integers"), ("epochs=0|1", "`epochs=0`: must be positive")])
def test_a_space_that_cannot_be_searched_is_refused_at_once(tmp_path, text, said):
  with pytest.raises(InputError, match=f"`space`.*{said}"):
    kd_jax.search(workdir=tmp_path / "s", how=SearchOptions(space=text), kd="0.1*rrd() + mse()", teacher="x", **QUICK)
  assert not (tmp_path / "s").exists()


def test_values_are_put_into_the_texts_that_name_them():
  options = FitOptions(model="mf(dim=4)", kd="0.5*rrd(k=10) + kl()", loss="bce()")
  changed = space.changed(options, {"rrd.weight": "0.25", "rrd.temperature": "3.5", "kl.candidates": "full",
                                    "mf.dim": "6", "learning_rate": "0.5"})
  assert (changed.model, changed.kd) == ("mf(dim=6)", "0.25*rrd(k=10, temperature=3.5) + kl(candidates='full')")
  assert changed.learning_rate == 0.5 and changed.loss == "bce()"
  assert space.present(options, "rrd.weight") == "0.5" and space.present(options, "kl.candidates") == "teacher"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A search that was not interrupted."""
  workdir = tmp_path_factory.mktemp("search") / "s"
  return kd_jax.search(workdir=workdir, how=SearchOptions(space=SPACE, trials=7), **QUICK)


def test_the_best_trial_is_a_run_like_any_other(whole):
  values = [x.value for x in whole.trials]
  assert whole.best.value == max(values) and len(values) == 7 and len(set(values)) > 1
  assert whole.trials[0].values == {"learning_rate": "0.001", "mf.init_std": "0.01", "weight_decay": "0"}  # its own
  again = kd_jax.fit(options=whole.options)
  assert again.result["validation"]["ndcg@10"] == whole.best.value
  assert any(whole.best.workdir in line and "--flagfile" in line for line in study.summary(whole))


class Killed(BaseException):
  pass


def test_a_search_that_is_killed_anywhere_ends_with_the_same_trials(whole, tmp_path, monkeypatch):
  """A kill is an exception that nothing handles, before a call of what draws, trains or records."""
  import optuna

  kills, order = [], 2 * ["enqueue_trial", "ask", "_suggest", "train", "tell"]

  def killing(owner, name):
    function = getattr(owner, name)

    def called(*args, **kwargs):
      if name in order[len(kills) : len(kills) + 1]:
        kills.append(name)
        raise Killed
      return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, called)

  for owner, name in [(optuna.Study, "enqueue_trial"), (optuna.Study, "ask"), (optuna.Trial, "_suggest"),
                      (study.loop, "train"), (optuna.Study, "tell")]:
    killing(owner, name)
  how = SearchOptions(space=SPACE, trials=7)
  for _ in range(11):
    try:
      found = kd_jax.search(workdir=tmp_path / "s", how=how, **QUICK)
      break
    except Killed:
      continue
  assert kills == order
  assert [(x.values, x.value, x.state) for x in found.trials] == [(x.values, x.value, x.state) for x in whole.trials]


def test_a_search_is_extended_but_not_changed(whole, tmp_path):
  workdir = tmp_path / "a {b}?c=%41#d é"
  few = kd_jax.search(workdir=workdir, how=SearchOptions(space=SPACE, trials=2), **QUICK)
  more = kd_jax.search(workdir=workdir, how=SearchOptions(space=SPACE, trials=4), **QUICK)
  assert more.trials[:2] == few.trials and [x.value for x in more.trials] == [x.value for x in whole.trials[:4]]
  stored = json.loads((workdir / study.RECORD).read_text())
  assert stored["space"]["learning_rate"] == "log(0.001, 0.1)" and len(stored["trials"]) == 4
  for changes, named in [({"space": "mf.dim=2|3"}, "space"), ({"sampler": "random"}, "sampler"),
                         ({"sampler_seed": 3}, "sampler_seed"), ({"pruner": "median"}, "pruner")]:
    with pytest.raises(InputError, match=f"a search with another `{named}`"):
      kd_jax.search(workdir=workdir, how=SearchOptions(**({"space": SPACE, "trials": 4} | changes)), **QUICK)
  with pytest.raises(InputError, match="a search with another `epochs`"):
    kd_jax.search(workdir=workdir, how=SearchOptions(space=SPACE, trials=4), **(QUICK | {"epochs": 3}))
  (workdir / "study.db").write_bytes(b"x" * 5000)
  with pytest.raises(InputError, match=r"study\.db: .*not a database"):
    kd_jax.search(workdir=workdir, how=SearchOptions(space=SPACE, trials=4), **QUICK)


def test_data_that_changed_is_another_search(tmp_path):
  rows = [f"{u},{i}\n" for u in range(40) for i in range(u, u + 12)]
  (tmp_path / "log.csv").write_text("user,item\n" + "".join(rows))
  given = QUICK | {"data": f"interactions(path={str(tmp_path / 'log.csv')!r})", "epochs": 1}
  kd_jax.search(workdir=tmp_path / "s", how=SearchOptions(space=SPACE, trials=1), **given)
  (tmp_path / "log.csv").write_text("user,item\n" + "".join(rows[:-1]) + "3,51\n")
  with pytest.raises(InputError, match=r"is a search on other data: interactions\(.* has changed since"):
    kd_jax.search(workdir=tmp_path / "s", how=SearchOptions(space=SPACE, trials=2), **given)


def test_trials_are_pruned_diverge_and_are_drawn_at_random(tmp_path):
  text = "learning_rate=1e-3|1e6; mf.init_std=log(0.01, 1000)"
  how = SearchOptions(space=text, trials=8, pruner="median", sampler="random")
  found = kd_jax.search(workdir=tmp_path / "s", how=how, **(QUICK | {"epochs": 4, "optimizer": "sgd"}))
  states = {x.state for x in found.trials}
  assert {"complete", "diverged"} <= states and all((x.value is None) == (x.state != "complete") for x in found.trials)
  figure.write(found, tmp_path / "search.png")
  assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")


def test_the_best_value_of_a_metric_may_be_a_low_one_or_one_between():
  trials = [study.Trial(n, "complete", {}, value, "") for n, value in enumerate((0.2, 1.1, 3.0))]
  order = {name: [x.number for x in study.complete(name, trials)] for name in ("ndcg@10", "log_loss", "calibration")}
  assert order == {"ndcg@10": [2, 1, 0], "log_loss": [0, 1, 2], "calibration": [1, 0, 2]}


def test_the_pruner_ends_trials_below_the_median(tmp_path, monkeypatch):
  ended = []
  monkeypatch.setattr("optuna.Trial.should_prune", lambda trial: ended.append(trial.number) or trial.number == 1)
  how = SearchOptions(space=SPACE, trials=3, pruner="median")
  found = kd_jax.search(workdir=tmp_path / "s", how=how, **QUICK)
  assert [x.state for x in found.trials] == ["complete", "pruned", "complete"] and ended.count(1) == 1


def test_no_trial_opens_the_test_split(tmp_path, monkeypatch):
  asked, load = [], data.load

  def loading(spec, data_dir, cache_dir, splits, *rest, **named):
    asked.append(splits)
    return load(spec, data_dir, cache_dir, splits, *rest, **named)

  monkeypatch.setattr(data, "load", loading)
  kd_jax.search(workdir=tmp_path / "s", how=SearchOptions(space=SPACE, trials=1), **QUICK)
  assert set(asked) == {("train", "validation")}
  with pytest.raises(InputError, match="`log_test`: a search reads no test data"):
    kd_jax.search(workdir=tmp_path / "t", how=SearchOptions(space=SPACE), log_test=True, **QUICK)
  with pytest.raises(InputError, match="`monitor=epoch`"):
    kd_jax.search(workdir=tmp_path / "t", how=SearchOptions(space=SPACE), monitor="epoch", **QUICK)


def test_a_run_that_cannot_begin_ends_the_search(tmp_path):
  with pytest.raises(InputError, match="is neither a run directory nor soft labels"):
    kd_jax.search(workdir=tmp_path / "s", how=SearchOptions(space=SPACE), kd="kl()", teacher=str(tmp_path), **QUICK)


@pytest.mark.slow
def test_processes_share_a_search_and_survive_sigkill(whole, tmp_path):
  """Ten kills at moments of their own; then two processes do the rest, and no trial is done twice."""
  command = [sys.executable, str(ROOT / "scripts" / "search.py"), f"--space={SPACE}", "--trials=7",
             f"--workdir={tmp_path / 's'}", *(f"--{name}={value}" for name, value in QUICK.items())]
  for number in range(10):
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(2 + 0.37 * number)
    process.send_signal(signal.SIGKILL)
    process.wait()
  done = subprocess.run(command, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  stored = json.loads((tmp_path / "s" / study.RECORD).read_text())
  assert [(x["values"], x["value"]) for x in stored["trials"]] == [(x.values, x.value) for x in whole.trials]
  done = subprocess.run([*command, "--trials=12", "--jobs=2"], capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  trials = json.loads((tmp_path / "s" / study.RECORD).read_text())["trials"]
  assert [x["number"] for x in trials] == list(range(12))
  assert {x["state"] for x in trials} == {"complete"}
  assert len(list(pathlib.Path(tmp_path / "s").glob("trial_*/result.json"))) == 12
