"""The notebooks run from top to bottom."""

import functools
import os
import pathlib
import tempfile

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = pathlib.Path(os.environ.get("KD_JAX_DATA") or ROOT.parent / "shared" / "data")
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def execute(path):
  """(the notebook after it was executed in an empty folder, what it left there)."""
  os.environ.setdefault("KD_JAX_DATA", str(DATA))
  notebook = nbformat.read(path, nbformat.NO_CONVERT)
  with tempfile.TemporaryDirectory() as folder:
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
    return notebook, os.listdir(folder)


BESIDE = {path: functools.partial(execute, path) for path in (NOTEBOOKS if DATA.is_dir() else [])}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_runs_and_shows_a_figure(path, real_data, beside):
  notebook, left = beside(path)
  shown = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
  assert any("image/png" in output["data"] for output in shown)
  assert not left  # without a workdir nothing is written
