"""The HTML page of a table and of runs: what it says, that it stands alone, and that its figures have their numbers."""

import csv
import html.parser
import re

import numpy as np
import pytest

from kd_jax import data
from kd_jax.base import InputError
from kd_jax.evaluation import run_report, sealed_report
from kd_jax.runs import compress, loop
from kd_jax.storage import run_directory
from kd_jax.tables import figures, of_runs, report, verdict
from kd_jax.teachers import loading

VOID = {"meta", "path", "use", "br", "rect"}


class Parsed(html.parser.HTMLParser):
  """The text, elements and ids of a page; fails if tags are not balanced."""

  def __init__(self, page):
    super().__init__()
    self.open, self.elements, self.ids, self.text = [], [], [], ""
    self.feed(page)
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    self.ids += [value for name, value in attrs if name == "id"]
    if tag not in VOID or (tag in ("path", "use", "rect") and not self.get_starttag_text().endswith("/>")):
      self.open += [tag] if tag != "meta" else []

  def handle_startendtag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    self.ids += [value for name, value in attrs if name == "id"]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, text):
    self.text += text


@pytest.fixture(scope="module")
def runs(tmp_path_factory, flags, small, teacher):
  """Run directories: a plain student, a distilled one, the teacher in int8 and in four columns."""
  folder = tmp_path_factory.mktemp("runs")
  loop.train(flags(*small, f"--workdir={folder / 'student'}"))
  loop.train(flags(*small, "--kd=kl(k=10)", f"--teacher={teacher}", f"--workdir={folder / 'distilled'}"))
  compress.compress_run(teacher, "int8()", folder / "int8")
  compress.compress_run(teacher, "prune_columns(share=0.75)", folder / "columns")
  with open(folder / "titles.csv", "w", newline="") as file:
    csv.writer(file).writerows([("item", "title"), *((f"i{n}", f"<Film> & {n}") for n in range(240))])
  return folder


@pytest.fixture(scope="module")
def page(runs, teacher):
  """(the page, the result behind it)."""
  out, chosen = runs / "report.html", [str(runs / name) for name in ("distilled", "int8", "columns")]
  size = report.write(out, chosen, str(teacher), str(runs / "student"), titles=str(runs / "titles.csv"))
  assert size == out.stat().st_size < 3_000_000
  asked = of_runs.Asked(chosen, str(teacher), str(runs / "student"))
  return out.read_text(), of_runs.result(asked)


def test_the_page_stands_alone(page):
  parsed = Parsed(page[0])
  tags = {tag for tag, _ in parsed.elements}
  assert not tags & {"script", "link", "img", "iframe", "object"} and "@import" not in page[0]
  assert len(parsed.ids) == len(set(parsed.ids)) > 10
  for _, attributes in parsed.elements:
    for name in ("src", "href", "xlink:href"):
      assert attributes.get(name, "#").startswith("#"), attributes
  used = set(re.findall(r'(?:xlink:href="#|url\(#)([\w-]+)', page[0]))
  assert used and used <= set(parsed.ids)
  assert parsed.elements[0][1]["lang"] == "en" and "main" in tags


def test_every_figure_has_its_numbers_beside_it(page):
  parts = page[0].split("<figure>")[1:]
  titles = [panel.title for panel in figures.panels(page[1], {"x": [([1], [0.5])]})]
  assert len(parts) == len(titles) >= 5
  for part, title in zip(parts, titles, strict=True):
    before, after = part.split("</figure>")
    assert re.search(r'<svg role="img" aria-label="[^"]+"', before)
    assert after.lstrip().startswith("<details>") and "<table>" in after.partition("</details>")[0], title


def test_the_numbers_are_those_of_the_reports(page, runs, teacher):
  text, rows = Parsed(page[0]).text, page[1]["rows"]
  assert [row["row"] for row in rows] == ["run", "student", "distilled", "int8", "columns"]
  assert [row["kind"] for row in rows] == ["trained", "trained", "distilled", "compressed", "compressed"]
  directories = (teacher, *(runs / name for name in ("student", "distilled", "int8", "columns")))
  for row, run in zip(rows, directories, strict=True):
    stored = sealed_report.read(run, "test")
    values = stored.values["ndcg@10"]
    half = 1.96 * np.std(values, ddof=1) / np.sqrt(len(values))
    found = row["metrics"]["ndcg@10"]
    assert found["mean"] == pytest.approx(values.mean())
    assert found["interval"] == pytest.approx([values.mean() - half, values.mean() + half])
    assert f"{found['mean']:.4f} [{found['interval'][0]:.4f}, {found['interval'][1]:.4f}]" in text
    assert f"{row['bytes']:,}" in text and run_directory.read_finished(run).seal[:16] in text
    assert "interval" not in row["metrics"]["coverage@10"]
    assert row["cost"]["bytes_on_disk"]["mean"] == stored.report["cost"]["bytes_on_disk"]
  expected = run_report.evaluate(str(runs / "distilled"), teacher=str(teacher), student=str(runs / "student")).details
  assert rows[2].get("transfer_ratio", {})["ndcg@10"] == pytest.approx(expected["transfer_ratio"]["ndcg@10"])
  assert "transfer_ratio" not in rows[0] and "transfer_ratio" not in rows[1]


def test_lists_are_those_of_the_models_with_their_titles(page, runs, small):
  dataset = data.load(small[0].partition("=")[2], splits=("train", "validation", "test"))
  fitted = loading.open_run(str(runs / "distilled"), dataset)
  one = of_runs.lists({"distilled": runs / "distilled"}, None, None, {"i0": "zero"})[0]
  user = dataset.user_ids.tolist().index(one.user)
  listed = fitted.top_k(10, [user]).items[0]
  held = set(dataset.test.items[dataset.test.users == user].tolist())
  expected = [("zero" if (name := str(dataset.item_ids[i])) == "i0" else name, i in held) for i in listed.tolist()]
  assert one.listed["distilled"] == expected and held
  text = Parsed(page[0]).text
  assert f"User {one.user}" in text and "<Film> & " in text and "&lt;Film&gt; &amp; " in page[0]


def test_wrong_runs_are_named(runs, teacher, flags, small, tmp_path):
  with pytest.raises(InputError, match="`runs`: name run directories"):
    report.write(tmp_path / "x.html", [])
  with pytest.raises(InputError, match="no run directory"):
    report.write(tmp_path / "x.html", [str(tmp_path / "nowhere")])
  loop.train(flags(*small, "--data=synthetic(users=90, items=240, interactions_per_user=16)", "--epochs=1",
                   f"--workdir={tmp_path / 'other'}"))
  with pytest.raises(InputError, match="trained on other data than"):
    report.write(tmp_path / "x.html", [str(teacher), str(tmp_path / "other")])
  assert not (tmp_path / "x.html").exists()


def test_labelled_data_has_a_page_without_lists(tmp_path, flags, monkeypatch):
  rng = np.random.default_rng(0)
  lines = [f"{kind},{kind == 1:d},{rng.integers(2)}" for kind in rng.integers(3, size=150)]
  (tmp_path / "tags.csv").write_text("\n".join(["kind,red,round", *lines, ""]))
  monkeypatch.chdir(tmp_path)
  call = "--data=labelled(path='tags.csv', labels=('red', 'round'), fields=('kind',))"
  loop.train(flags(call, "--model=mlp(dim=4)", "--epochs=2", "--workdir=run"))
  compress.compress_run("run", "int8()", "int8")
  report.write("report.html", ["run", "int8"])
  text = Parsed((tmp_path / "report.html").read_text()).text
  assert "micro_f1" in text and "Lists of a few users" not in text and "bytes on disk" in text


def test_streamed_data_has_a_page_without_costs(tmp_path, flags, small):
  loop.train(flags(*small, "--epochs=1", "--data_memory=1e-5", f"--workdir={tmp_path / 'run'}"))
  compress.compress_run(tmp_path / "run", "int8()", tmp_path / "int8")
  names = [str(tmp_path / name) for name in ("run", "int8")]
  report.write(tmp_path / "report.html", names, metrics="ndcg@10,coverage@10,novelty@10")
  text = Parsed((tmp_path / "report.html").read_text()).text
  assert "coverage@10" in text and "bytes on disk" not in text
  with pytest.raises(InputError, match=r"`metrics=diversity@10`: .* they are streamed"):
    report.write(tmp_path / "report.html", names)


def summary(mean, std=None):
  return {"mean": mean, "std": std, "values": [mean]}


def row(name, kind, mean, size, **more):
  return {"row": name, "kind": kind, "bytes": size, "metrics": {"ndcg@10": summary(mean)}, "groups": {}, **more}


ROWS = [row("big", "trained", 0.2, 1600), row("small", "trained", 0.15, 100),
        row("kd", "distilled", 0.19, 100, transfer_ratio={"ndcg@10": 0.8}), row("wide", "distilled", 0.3, 1600),
        row("int8", "compressed", 0.199, 400), row("rank", "compressed", 0.18, 109)]
RESULT = {"rows": ROWS, "teacher_row": "big", "student_row": "small", "seeds": 1, "monitor": "ndcg@10",
          "higher_is_better": True, "comparisons": [{"rows": ["rank", "kd"], "metrics": {"ndcg@10": {
              "t_test_holm": 0.012}}}]}


def test_three_sentences_are_computed_from_the_numbers():
  assert verdict.sentences(RESULT) == [
      "The teacher, big, has ndcg@10 0.2000; the plain student, small, has 0.1500 (-0.0500) with 0.062 of the bytes.",
      "The best distilled row, kd, has 0.1900 (+0.0400 against the plain student) with 0.062 of the bytes, and closes "
      "80% of the gap between them.",
      "Of the compressed rows with at most 1.1 times the bytes of kd, the best is rank with 0.1800: kd is better than "
      "it by 0.0100 (p 0.012 over users, corrected)."]


def test_it_is_said_where_distillation_loses_or_something_is_missing():
  lost = RESULT | {"rows": [*ROWS[:5], row("rank", "compressed", 0.195, 109)], "comparisons": []}
  assert verdict.sentences(lost)[2].endswith("rank with 0.1950: kd loses to it by 0.0050 (not tested).")
  assert "No compressed row has at most 1.1 times the bytes of kd; the best of all, int8, has 0.1990 with 4 times" in (
      verdict.sentences(RESULT | {"rows": ROWS[:5]})[2])
  assert verdict.sentences(RESULT | {"rows": ROWS[:1], "student_row": None}) == [
      "There is no teacher with a plain student here, so nothing is said of a gap between them.",
      "No row is distilled.", "No row is compressed in another way."]
  lower = verdict.sentences(RESULT | {"higher_is_better": False, "comparisons": []})
  assert "kd loses to it by 0.0100" in lower[2]


def test_the_frontier_is_what_nothing_dominates():
  rng = np.random.default_rng(0)
  cost, value = rng.integers(0, 9, 40).astype(float), rng.integers(0, 9, 40).astype(float)
  expected = [i for i in range(40) if not any(
      cost[j] <= cost[i] and value[j] >= value[i] and (cost[j], value[j]) != (cost[i], value[i]) for j in range(40))]
  found = figures.frontier(cost, value)
  assert sorted(found) == expected and (np.diff(cost[found]) <= 0).all()


def test_methods_with_several_teachers_are_lines_over_the_value_of_the_teacher():
  rows = [row(f"t{n}", "trained", n / 10, 9) for n in (3, 1, 2)]
  rows += [row(f"kd{n}", "distilled", n / 20, 9, teachers=[f"t{n}"], method="kl()") for n in (3, 1, 2)]
  rows += [row("other", "distilled", 0.1, 9, teachers=["t1"], method="mse()")]
  rows += [row("early", "distilled", 0.1, 9, teachers=["t1@5"], method="kl()")]  # the quality after 5 epochs is unknown
  lines = figures._by_teacher({"rows": rows}, "ndcg@10")
  assert {method: [(x, y["mean"]) for x, y in points] for method, points in lines.items()} == {
      "kl()": [(0.1, 0.05), (0.2, 0.1), (0.3, 0.15)]}
  panels = figures.panels({"rows": rows, "seeds": 1, "monitor": "ndcg@10", "student_row": "t1"}, {})
  titles = [panel.title for panel in panels]
  assert titles == ["ndcg@10 of every row", "ndcg@10 against bytes", "ndcg@10 of students against their teachers'"]
  assert all(figures.svg(panel).count("<svg") == 1 for panel in panels)


def test_points_have_their_intervals_and_published_values(monkeypatch):
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  rows = [row("a", "trained", 0.5, 9), row("b", "distilled", 0.6, 9)]
  rows[0]["metrics"]["ndcg@10"] |= {"std": 0.05, "published": 0.4}
  rows[1]["metrics"]["ndcg@10"] |= {"interval": [0.5, 0.9]}
  drawing, axes = pyplot.subplots()
  figures._points(axes, {"rows": rows, "seeds": 2, "teacher_row": "a"}, "ndcg@10")
  ends = [container[2][0].get_segments()[0][:, 0].tolist() for container in axes.containers]
  assert ends == [pytest.approx([0.45, 0.55]), pytest.approx([0.5, 0.9])]
  assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b"] and axes.get_ylim()[0] > axes.get_ylim()[1]
  lines = {line.get_label(): line for line in axes.get_lines()}
  assert lines["published"].get_xdata()[0] == 0.4 and set(lines["a"].get_xdata()) == {0.5}
  assert axes.get_xlim()[0] > 0.3  # the axis shows the differences
  pyplot.close(drawing)
