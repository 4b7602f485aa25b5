"""The pages on data: every command of the how-to is executed, and the generated page is up to date."""

import json
import re

import pytest
from conftest import DATA, ROOT, in_a_folder
from docs_test import follow

from kd_jax import registry
from kd_jax.tables import data_page

PAGE = ROOT / "docs/bring_your_own_data.md"


def commands_of_the_page(folder):
  """[(command, what it printed)] of all commands of the how-to."""
  commands, run = follow(PAGE, folder, DATA)
  return [(command, run(command)) for command in commands]


BESIDE = {"page": in_a_folder(commands_of_the_page)}


@pytest.mark.slow
def test_every_command_of_the_how_to(beside):
  done = dict(beside("page"))
  assert len(done) == 13 and len(done) == PAGE.read_text().count("\npython ")
  said = next(out for command, out in done.items() if "ratings.dat" in command)
  shown, = re.findall(r"```text\n(.*?)```", PAGE.read_text(), re.DOTALL)
  assert said.startswith(shown)
  for command, words in (
      ("sequences.txt')", "layout='user items'"), ("published", "validation_from_train 0.1"),
      ("path='set'", "user='user_id'"), ("events", "unit='milliseconds'"), ("broken", "missing_rows 1"),
      ("plays", "repeated='sum'"), ("loo_last", "is taken for that of time"), ("clicks", "positive labels in train")):
    assert words in next(out for text, out in done.items() if command in text), command


def test_the_page_of_data_sets_is_up_to_date():
  assert (ROOT / "docs/data.md").read_text() == data_page.write(), "run: python scripts/data_page.py"


def test_every_data_set_is_counted_and_calls_of_the_page_are_calls():
  counted = set(json.loads(data_page.COUNTS.read_text()))
  assert counted | set(data_page.PUBLISHED) == set(data_page.names()) and not counted & set(data_page.PUBLISHED)
  assert set(data_page.PAPERS) <= set(data_page.names())
  for _, _, call in data_page.BY_PATH.values():
    registry.build("data", registry.parse("data", call, "data"))
