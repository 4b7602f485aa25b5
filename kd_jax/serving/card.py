"""The model card of an export: README.md, for people. And the titles of items, which it may hold."""

from __future__ import annotations

import csv
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from kd_jax import registry
from kd_jax.base import InputError
from kd_jax.evaluation.sealed_report import Stored
from kd_jax.serving import layout
from kd_jax.storage import run_directory

_CUTOFF = "@10"  # of the metrics that are shown, if the run has metrics with cut-offs
_ANSWERS = {
    layout.QUERY: "The model has a vector for every user. For a history without a known user, a vector is made from "
                  "the items' vectors by ridge regression (fold-in); the model was not trained for this.",
    layout.HISTORY: "The model reads the last {length} items of the history in their order: what is known of the user, "
                    "then the items of the request. A recommendation reflects the click before it.",
    layout.SET: "The model reads the items of the history, in any order: what is known of the user, and the items of "
                "the request.",
    layout.USERS: "The model answers for the users (or contexts) that it was trained with only."}


def write(folder: pathlib.Path, metadata: dict[str, Any], run: run_directory.Finished, report: Stored | None) -> None:
  """Writes the card to the folder of an export, after its other files."""
  sections = {"Use": _use(metadata), "Data": _data(metadata, run.info), "Training": _training(metadata, run),
              "Quality": _quality(report, run), "Size": _size(folder, metadata), "Limits": _limits(metadata)}
  text = "".join(f"\n## {heading}\n\n" + "\n".join(lines) + "\n" for heading, lines in sections.items())
  (folder / layout.CARD).write_text(f"# {metadata['model']}\n\nA recommender, exported by kd_jax "
                                    f"{metadata['kd_jax']} on {metadata['written']}.\n{text}", "utf-8")


def read_titles(path: str | os.PathLike) -> dict[str, str]:
  """{item id: title} of a CSV file with the columns item and title. Raises InputError."""
  try:
    with open(path, newline="", encoding="utf-8") as file:
      rows = csv.DictReader(file)
      if not {"item", "title"} <= set(rows.fieldnames or ()):
        raise InputError(f"`titles={path}`: needs the columns item and title")
      return {row["item"]: row["title"] or "" for row in rows if row["item"]}
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise InputError(f"`titles={path}`: {error}") from None


def _use(metadata) -> Iterator[str]:
  yield "```python"
  yield "from kd_jax import serving"
  yield "recommender = serving.load(\"this directory\")"
  yield "recommender.recommend(\"a user's id\", k=10)"
  yield "```"
  yield ""
  yield _ANSWERS[metadata["inputs"]].format(length=metadata["length"])
  yield "Users of whom nothing is known get the most popular items, and the answer says so."
  if metadata["exclude_seen"]:
    yield f"The items known of a user ({metadata['history']}) are not recommended to this user."


def _data(metadata, info) -> Iterator[str]:
  yield f"- data: `{metadata['data']}`" + (" (synthetic: generated data)" if metadata["synthetic"] else "")
  yield (f"- {metadata['users']:,} users, {metadata['items']:,} items, {metadata['interactions']:,} known interactions "
         f"({metadata['history']})")
  recipe = _recipe(info["data"])
  if recipe is not None:
    ratios = "" if recipe.split == "given" else f", {' : '.join(f'{x:g}' for x in recipe.ratios)}"
    yield f"- split into training, validation and test: {recipe.split}{ratios}"
    yield f"- terms: {recipe.terms or 'none are stated; ask the owner of the data'}"
  yield from (f"- sha256 of {part}: `{value}`" for part, value in metadata["hashes"].items())


def _recipe(text):
  """None: data that was given as an object, or whose code is not here."""
  try:
    return registry.build("data", registry.parse("data", text, "data"))
  except InputError:
    return None


def _training(metadata, run) -> Iterator[str]:
  flags = run.flags
  yield f"- model: `{metadata['model']}`, the epoch {metadata['epoch']} (best by {run.result['monitor'] or 'none'})"
  yield f"- base loss: `{flags.get('loss') or 'the default'}`; distillation: `{flags.get('kd', '') or 'none'}`"
  yield from (f"- teacher: {text}" for text in _teachers(run.info.get("teacher", [])))
  yield f"- seed {flags.get('seed', '')}, {run.result['seconds']:.1f} s on {run.info['devices']}"
  yield f"- checkpoint sha256: `{metadata['checkpoint']}`"


def _teachers(found) -> Iterator[str]:
  for provenance in found:
    inner = provenance.get("teacher")
    source = inner if isinstance(inner, dict) else provenance
    identities = ("checkpoint", "soft_labels", "file", "parameters")
    sha256 = next((str(provenance[x]) for x in identities if x in provenance), "")
    yield f"{source.get('model', 'a file of another library')}, sha256 `{sha256}`"


def _quality(report, run) -> Iterator[str]:
  if report is None:
    found, users = run.result.get("validation", {}), ""
    yield "Measured on validation, where the epoch was chosen; the run has no evaluation on test."
  else:
    found, users = report.report["metrics"], f" ({report.report['users']:,} users)"
    yield f"Measured on test{users}; candidates: {report.report['candidates']}. Means over users, by group in brackets."
  yield ""
  yield "| metric | value |"
  yield "| --- | --- |"
  shown = {name: value for name, value in found.items() if isinstance(value, int | float)}
  if any(_CUTOFF in name for name in shown):
    shown = {name: value for name, value in shown.items() if _CUTOFF in name.replace("(", " ").split(" ")[0][-3:]}
  yield from (f"| {name} | {value:.4f} |" for name, value in shown.items())
  yield from (f"- {key}: {report.report[key]:.3g}" for key in ("compression_ratio", "overlap@10")
              if report is not None and isinstance(report.report.get(key), float))


def _size(folder, metadata) -> Iterator[str]:
  yield f"{metadata['parameters']:,} parameters." + (" Tables are stored in int8." if metadata["compress"] else "")
  yield from (f"{name} with the lists before: {value:.4f}." for name, value in metadata["measured"].items())
  if metadata["index"]:
    yield from (f"{name} of the approximate index: {value:.4f}." for name, value in metadata["index"].items())
  yield ""
  yield "| file | bytes |"
  yield "| --- | --- |"
  yield from (f"| {path.relative_to(folder).as_posix()} | {path.stat().st_size:,} |"
              for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))


def _limits(metadata) -> Iterator[str]:
  yield "- Items without interactions in training are recommended only as far as the model can tell them apart."
  yield "- Popular items are recommended more often than they are liked; popularity is all that unknown users get."
  yield "- Measured on logged interactions: what users did not see is counted as not liked."
  yield "- The ids of all users and what is known of them are in this directory: treat it as personal data."
  if private := metadata.get("privacy"):
    yield (f"- Vectors of users and items are ({private['epsilon']:g}, {private['delta']:g})-differentially private: "
           f"{private['neighbours']}. Histories, counts of items and stored answers in this directory are not.")
  if "stablehlo" in metadata["formats"]:
    yield (f"- The StableHLO program was written by jax {metadata['jax']}; later versions of jax promise to read it "
           "for six months. The weights outlive it.")
  yield "- Hashes find damage, not forgery: run exports only of those whom you trust."
